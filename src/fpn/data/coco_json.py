"""Fields of a COCO-format JSON file as arrays, or one line that names the entry at fault.

Symbols: E entries of a list: images, annotations or categories.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpn.errors import InputError

_LISTS = ("images", "annotations", "categories")
_LARGEST = 2**62

Entries = list[dict[str, Any]]


def read_json(path: Path, name: str) -> Any:
    """What a JSON file holds, but for masks.

    Raises:
        InputError: if the file, which messages call by `name`, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=_without_mask)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {name} file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise InputError(f"{path}: not a JSON file: {error}") from None


def read_lists(path: Path, need_annotations: bool = True) -> tuple[Entries, Entries, Entries]:
    """Images, annotations (without their masks) and categories.

    Args:
        path: the JSON file.
        need_annotations: False takes a file without that list for one that has it empty.

    Raises:
        InputError: if the file cannot be read, is not JSON, or lacks one of the lists; only annotations may
            be empty.
    """
    content = read_json(path, "annotation")
    if isinstance(content, dict) and not need_annotations:
        content.setdefault("annotations", [])
    lists = [content.get(key) if isinstance(content, dict) else None for key in _LISTS]
    for key, entries in zip(_LISTS, lists, strict=True):
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise InputError(f"{path}: not in COCO's format: {key!r} is not a list of objects")
        if not entries and key != "annotations":
            raise InputError(f"{path}: the list {key!r} is empty")
    images, annotations, categories = lists
    return images, annotations, categories  # type: ignore[return-value]


def integers(path: Path, name: str, entries: Entries, key: str) -> NDArray[np.int64]:
    """(E,) the integers at `key`; whole floats are taken too.

    Raises:
        InputError: if an entry lacks the key or has something else there.
    """
    values = [entry.get(key) for entry in entries]
    for place, value in enumerate(values):
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if not whole or abs(value) >= _LARGEST:  # type: ignore[arg-type]
            raise InputError(f"{path}: {name}: {key!r} of entry {place} is {_shown(value)}, not an integer")
    return np.array(values, dtype=np.int64)


def strings(path: Path, name: str, entries: Entries, key: str) -> list[str]:
    """E strings at `key`.

    Raises:
        InputError: if an entry lacks the key or has something else there.
    """
    values = [entry.get(key) for entry in entries]
    for place, value in enumerate(values):
        if not isinstance(value, str):
            raise InputError(f"{path}: {name}: {key!r} of entry {place} is {_shown(value)}, not a string")
    return values  # type: ignore[return-value]


def numbers(path: Path, name: str, entries: Entries, key: str) -> NDArray[np.float64]:
    """(E,) the numbers at `key`.

    Raises:
        InputError: if an entry lacks the key or has something else there.
    """
    values = [entry.get(key) for entry in entries]
    for place, value in enumerate(values):
        if not _is_number(value):
            raise InputError(f"{path}: {name}: {key!r} of entry {place} is {_shown(value)}, not a number")
    return np.array(values, dtype=np.float64)


def boxes(path: Path, name: str, entries: Entries) -> NDArray[np.float64]:
    """(E, 4) the numbers at `bbox`.

    Raises:
        InputError: if an entry has something else there.
    """
    values = [entry.get("bbox") for entry in entries]
    for place, value in enumerate(values):
        if not isinstance(value, list) or len(value) != 4 or not all(map(_is_number, value)):
            raise InputError(f"{path}: {name}: 'bbox' of entry {place} is {_shown(value)}, not four numbers")
    return np.array(values, dtype=np.float64).reshape(-1, 4)


def unique(path: Path, name: str, ids: NDArray[np.int64]) -> NDArray[np.int64]:
    """The ids (E,) themselves, none of them twice.

    Raises:
        InputError: if one occurs more than once.
    """
    values, counts = np.unique(ids, return_counts=True)
    if (counts > 1).any():
        raise InputError(f"{path}: {name} id {values[counts > 1][0]} occurs more than once")
    return ids


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    # Nine tenths of COCO's files are masks: dropped as they are parsed, they never fill the memory.
    entry.pop("segmentation", None)
    return entry


def _is_number(value: object) -> bool:
    return isinstance(value, float) or (isinstance(value, int) and abs(value) < _LARGEST)


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)[:60]
