"""Fields of COCO-format JSON as arrays, or one line that names the entry at fault.

Training, scoring and the audit read by the same rules: an integer is whole and of 64 bits, be it
written 12 or 12.0; a number is anything of float64, NaN and infinities too, which are refused where
they do harm; true and false are neither; null stands for nothing.

Symbols: E entries of a list, I images, K categories.
"""

import gc
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpn.errors import InputError

_EXACT = 2**53
"""Up to here every whole number has a float of its own."""
_UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
"""JSON can hold these characters, and neither a file's name nor UTF-8 can."""


class Entries:
    """One list of a file, of objects: its images, annotations, categories or results.

    Its methods read a field of all entries, and raise InputError if one lacks it or has something
    else there. A lenient reader has zeros there, and remembers the entry.

    Args:
        source: what messages call the file.
        name: what they call the list.
        values: the list.
        lenient: whether anything goes.

    Raises:
        InputError: if it is no list, or not one of objects.
    """

    def __init__(self, source: str | Path, name: str, values: Any, lenient: bool = False) -> None:
        self.source, self.name, self.lenient = source, name, lenient
        if not isinstance(values, list):
            self._refuse(f"not in COCO's format: {name!r} is not a list of objects: it is {kind_of(values)}")
            values = []
        kinds = {kind for kind in set(map(type, values)) if not issubclass(kind, Mapping)}
        self.fine: NDArray[np.bool_] = np.array([type(value) not in kinds for value in values], dtype=bool)
        """(E,) whether all that has been read of an entry is as it should be."""
        self._given: Sequence[Any] = values
        if kinds:
            fault = self.fault(int(self.fine.argmin()))
            self._refuse(f"not in COCO's format: {name!r} is not a list of objects: {fault}")
            values = [value if fine else {} for value, fine in zip(values, self.fine, strict=True)]
        self._values: Sequence[Mapping[str, Any]] = values
        self._faults: dict[str, tuple[NDArray[np.bool_], str]] = {}

    def __len__(self) -> int:
        return len(self._values)

    def integers(self, key: str) -> NDArray[np.int64]:
        """(E,) the integers at `key`."""
        return self._checked(key, "an integer", *_column(self._of(key), {int}, _integer, np.int64))

    def integers_or_zero(self, key: str) -> NDArray[np.int64]:
        """(E,) the integers at `key`, 0 where there is none."""
        return _column(self._of(key), {int}, _integer, np.int64)[0]

    def strings(self, key: str) -> list[str]:
        """E strings at `key`, such as UTF-8 and names of files can hold."""
        values = self._of(key)
        fine = [isinstance(value, str) and _UNWRITABLE.search(value) is None for value in values]
        self._checked(key, "a string", None, np.array(fine, dtype=bool))
        return [value if good else "" for value, good in zip(values, fine, strict=True)]

    def numbers(self, key: str, finite: bool = False) -> NDArray[np.float64]:
        """(E,) the numbers at `key`, which have to be finite where that is asked for."""
        wanted = "a finite number" if finite else "a number"
        return self._checked(key, wanted, *_numbers(self._of(key), finite))

    def boxes(self, finite: bool = False) -> NDArray[np.float64]:
        """(E, 4) the numbers at `bbox`, which have to be finite where that is asked for."""
        values = self._of("bbox")
        if set(map(type, values)) != {list} or set(map(len, values)) != {4}:
            values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
            values = [v if isinstance(v, list | tuple) and len(v) == 4 else (None,) * 4 for v in values]
        sides, fine = _numbers(list(chain.from_iterable(values)), finite)
        wanted = "four finite numbers" if finite else "four numbers"
        return self._checked("bbox", wanted, sides.reshape(-1, 4), fine.reshape(-1, 4).min(axis=1))

    def areas(self, boxes: NDArray[np.float64], finite: bool = False) -> NDArray[np.float64]:
        """(E,) the numbers at `area`, those of boxes (E, 4) where there is none.

        COCO requires `area`, the area of the mask, which files without masks leave out.
        """
        values = self._of("area")
        if any(value is None for value in values):
            with np.errstate(over="ignore", invalid="ignore"):
                # Should one overflow, the greatest float is beyond all of COCO's ranges too.
                own = np.nan_to_num(boxes[:, 2] * boxes[:, 3]).tolist()
            values = [mine if value is None else value for value, mine in zip(values, own, strict=True)]
        wanted = "a finite number" if finite else "a number"
        return self._checked("area", wanted, *_numbers(values, finite))

    def crowd(self) -> NDArray[np.bool_]:
        """(E,) whether `iscrowd` is 1 or true; 0, false or nothing says it is not."""
        values = [int(v) if isinstance(v, bool) else 0 if v is None else v for v in self._of("iscrowd")]
        crowd, fine = _numbers(values, finite=True)
        fine &= np.isin(crowd, (0, 1))
        return self._checked("iscrowd", "0 or 1", crowd == 1, fine)

    def places(self, key: str, known: NDArray[np.int64]) -> NDArray[np.int64]:
        """(E,) the place of the id at `key` among those known; a lenient reader's is -1 for none."""
        ids = self.integers(key)
        order = np.argsort(known, kind="stable")
        places = np.append(order, -1)[np.searchsorted(known, ids, sorter=order)]
        listed = (places >= 0) & (np.append(known, 0)[places] == ids)
        if not listed.all():
            first = int(listed.argmin())
            self._refuse(
                f"{self.name}: {key!r} of entry {first} is {ids[first]}, which is not listed; "
                "list it, or drop the entry"
            )
        return np.where(listed, places, -1)

    def unique(self, key: str = "id") -> NDArray[np.int64]:
        """(E,) the integers at `key`, none of them twice."""
        ids = self.integers(key)
        again = repeated(ids)
        if again.any():
            place = int(again.argmax())
            self._refuse(f"{self.name}: {key!r} of entry {place} is {ids[place]}, which an earlier one has")
        return ids

    def fault(self, place: int) -> str:
        """What is wrong with an entry that is not fine."""
        if not isinstance(self._given[place], Mapping):
            return f"entry {place} is {kind_of(self._given[place])}, not an object"
        for key, (fine, wanted) in self._faults.items():
            if not fine[place]:
                value = self._values[place].get(key)
                shown = "missing" if value is None else reprlib.repr(value)
                return f"{key!r} of entry {place} is {shown}, not {wanted}"
        raise LookupError(f"entry {place} is fine")

    def _of(self, key: str) -> list[Any]:
        return [value.get(key) for value in self._values]

    def _checked(self, key: str, wanted: str, values: Any, fine: NDArray[np.bool_]) -> Any:
        if not fine.all():
            self._faults[key] = fine, wanted
            self.fine = self.fine & fine
            self._refuse(f"{self.name}: {self.fault(int(fine.argmin()))}")
        return values

    def _refuse(self, message: str) -> None:
        if not self.lenient:
            raise InputError(f"{self.source}: {message}")


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cyclic garbage meanwhile: it would look at each of the dicts here, none in a cycle."""
    was_on = gc.isenabled()
    try:
        gc.disable()
        yield
    finally:
        if was_on:
            gc.enable()


@uncollected()
def read_json(path: Path, name: str) -> Any:
    """What a JSON file holds, but for masks.

    Raises:
        InputError: if the file, which messages call by `name`, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=_without_mask)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {name} file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable {name} file") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a JSON file ({reason}); give a COCO {name} file") from None


def lists_of(source: str | Path, content: Any, lenient: bool = False) -> tuple[Entries, Entries, Entries]:
    """Images, annotations and categories of what an annotation file holds.

    Raises:
        InputError: if one of them is no list of objects.
    """
    if not isinstance(content, Mapping):
        if not lenient:
            raise InputError(f"{source}: not in COCO's format: it is {kind_of(content)}, not an object")
        content = {}
    images, annotations, categories = (
        Entries(source, name, content.get(name), lenient) for name in ("images", "annotations", "categories")
    )
    return images, annotations, categories


def repeated(ids: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(E,) whether an earlier entry has the same id."""
    order = np.argsort(ids, kind="stable")
    again = np.zeros(len(ids), dtype=bool)
    again[order[1:]] = ids[order[1:]] == ids[order[:-1]]
    return again


def kind_of(value: object) -> str:
    """What a value is in JSON's terms, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "missing"}
    return names.get(type(value), "a number" if isinstance(value, Real) else type(value).__name__)


def _column(
    values: Sequence[Any], plain: set[type], accept: Callable[[Any], Any], dtype: type
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """(E,) what is accepted of each value, zeros for others, and (E,) which are accepted.

    Where all are of plain types, NumPy converts them in one go.
    """
    if set(map(type, values)) <= plain:
        with suppress(OverflowError):
            return np.array(values, dtype=dtype), np.ones(len(values), dtype=bool)
    accepted = [accept(value) for value in values]
    fine = np.array([value is not None for value in accepted], dtype=bool)
    return np.array([0 if value is None else value for value in accepted], dtype=dtype), fine


def _numbers(values: Sequence[Any], finite: bool) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    numbers, fine = _column(values, {int, float}, _number, np.float64)
    return numbers, fine & np.isfinite(numbers) if finite else fine


def _integer(value: object) -> int | None:
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    whole = isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63
    return int(value) if whole else None  # type: ignore[call-overload]


def _number(value: object) -> float | None:
    if isinstance(value, float | Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # JSON has integers of any size
            return float(value)
    return None


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    # Nine tenths of COCO's files are masks: dropped as they are parsed, they never fill the memory.
    entry.pop("segmentation", None)
    return entry
