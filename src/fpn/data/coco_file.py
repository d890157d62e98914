"""A file in COCO's format, read once into flat arrays.

Training, scoring and the audit look at the same columns. A field that is no integer, number or string where
one belongs is remembered together with its entry, and has a zero in its column. Each reader refuses only the
faults of the fields that it uses (`Entries.refuse`), in one line that names the entry; the audit lists all.

An integer is whole and of 64 bits, be it written 12 or 12.0; a number is anything of float64, NaN and
infinities too; true and false are neither; null stands for nothing.

Symbols: E entries of a list, I images, B annotations, K categories.
"""

import gc
import json
import re
import reprlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpn.errors import InputError

MIN_SIDE = 0.01
"""Boxes with a side below this many pixels are degenerate: resized in float32 they may lose all area."""
MAX_NAME = 1000
"""The most characters of a file name: an array of names is as wide as the longest."""

_EXACT = 2**53
"""Up to here every whole number has a float of its own."""
_UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
"""JSON can hold these characters, and neither a file's name nor UTF-8 can."""
_NOT_INSIDE = re.compile(r"[\\/]|[A-Za-z]:|\.?[\\/.]*$|(.*[\\/])?\.\.([\\/]|$)|.*[\0-\x1f]", re.DOTALL)
"""Paths from a root or a drive, of the folder itself, with a step up, or that no line could show."""


class Fault(NamedTuple):
    """What is wrong with some entries of a list."""

    key: str
    """The field; empty where the entry is no object."""
    bad: NDArray[np.bool_]
    """(E,) the entries."""
    tell: Callable[[int], str]
    """Says it of one of them, by its place."""
    malformed: bool


class Entries:
    """One list of a file: its images, annotations, categories or results.

    Its methods read a field of all entries.

    Args:
        source: what messages call the file.
        name: what they call the list.
        values: the list.
    """

    def __init__(self, source: str | Path, name: str, values: Any) -> None:
        self.source, self.name = source, name
        self.flaw = ""
        """Why there is no list at all."""
        self.faults: list[Fault] = []
        if not isinstance(values, list):
            self.flaw = f"not in COCO's format: {name!r} is not a list of objects: it is {kind_of(values)}"
            values = []
        self.fine: NDArray[np.bool_] = np.ones(len(values), dtype=bool)
        """(E,) whether all that has been read of an entry is of the right type."""
        self._values: Sequence[Mapping[str, Any]] = values
        strange = {kind for kind in set(map(type, values)) if not issubclass(kind, Mapping)}
        if strange:
            bad = np.array([type(value) in strange for value in values])
            self.note("", bad, lambda place: f"entry {place} is {kind_of(values[place])}, not an object")
            self._values = [{} if type(value) in strange else value for value in values]

    def __len__(self) -> int:
        return len(self._values)

    def note(
        self, key: str, bad: NDArray[np.bool_], tell: Callable[[int], str], malformed: bool = True
    ) -> None:
        """Remember what is wrong with some entries, unless there are none."""
        if bad.any():
            self.faults.append(Fault(key, bad, tell, malformed))
            if malformed:
                self.fine = self.fine & ~bad

    def tell_not(self, key: str, wanted: str) -> Callable[[int], str]:
        """Says of an entry what it has at `key`, which is not what is wanted there."""

        def tell(place: int) -> str:
            value = self._values[place].get(key)
            shown = "missing" if value is None else reprlib.repr(value)
            return f"{key!r} of entry {place} is {shown}, not {wanted}"

        return tell

    def refuse(self, *keys: str) -> None:
        """Raise InputError for the first fault of these fields, in their order."""
        if self.flaw:
            raise InputError(f"{self.source}: {self.flaw}")
        for key in ("", *keys):
            for fault in self.faults:
                if fault.key == key:
                    what = (
                        self.name if key else f"not in COCO's format: {self.name!r} is not a list of objects"
                    )
                    raise InputError(f"{self.source}: {what}: {fault.tell(int(fault.bad.argmax()))}")

    def malformed(self) -> list[str]:
        """What is wrong with each entry that is not `fine`."""
        faults = [fault for fault in self.faults if fault.malformed]
        places = np.flatnonzero(~self.fine).tolist()
        return [next(fault.tell(place) for fault in faults if fault.bad[place]) for place in places]

    def integers(self, key: str) -> NDArray[np.int64]:
        """(E,) the integers at `key`."""
        return self._typed(key, "an integer", *_column(self._of(key), {int}, _integer, np.int64))

    def strings(self, key: str) -> list[str]:
        """E strings at `key`, such as UTF-8 and names of files can hold."""
        values = self._of(key)
        fine = [isinstance(value, str) and _UNWRITABLE.search(value) is None for value in values]
        self._typed(key, "a string", None, np.array(fine, dtype=bool))
        return [value if good else "" for value, good in zip(values, fine, strict=True)]

    def numbers(self, key: str) -> NDArray[np.float64]:
        """(E,) the numbers at `key`; those that are not finite are a fault of the field `key` finite."""
        return self._numbers(key, self._of(key))

    def boxes(self) -> NDArray[np.float64]:
        """(E, 4) the numbers at `bbox`; those that are not finite are a fault of the field `bbox` finite."""
        values = self._of("bbox")
        if set(map(type, values)) != {list} or set(map(len, values)) != {4}:
            values = [value.tolist() if isinstance(value, np.ndarray) else value for value in values]
            values = [v if isinstance(v, list | tuple) and len(v) == 4 else (None,) * 4 for v in values]
        sides, fine = _column(list(chain.from_iterable(values)), {int, float}, _number, np.float64)
        boxes = self._typed("bbox", "four numbers", sides.reshape(-1, 4), fine.reshape(-1, 4).min(axis=1))
        return self._finite("bbox", "four finite numbers", boxes)

    def areas(self, boxes: NDArray[np.float64]) -> NDArray[np.float64]:
        """(E,) the numbers at `area`, those of boxes (E, 4) where there is none.

        COCO requires `area`, the area of the mask, which files without masks leave out.
        """
        values = self._of("area")
        if any(value is None for value in values):
            with np.errstate(over="ignore", invalid="ignore"):
                # Should one overflow, the greatest float is beyond all of COCO's ranges too.
                own = np.nan_to_num(boxes[:, 2] * boxes[:, 3]).tolist()
            values = [mine if value is None else value for value, mine in zip(values, own, strict=True)]
        return self._numbers("area", values)

    def crowd(self) -> NDArray[np.bool_]:
        """(E,) whether `iscrowd` is 1 or true; 0, false or nothing says it is not."""
        values = [int(v) if isinstance(v, bool) else 0 if v is None else v for v in self._of("iscrowd")]
        crowd, fine = _column(values, {int, float}, _number, np.float64)
        return self._typed("iscrowd", "0 or 1", crowd == 1, fine & np.isin(crowd, (0, 1)))

    def unique(self, key: str = "id") -> NDArray[np.int64]:
        """(E,) the integers at `key`; that an earlier entry has the same is a fault."""
        ids, again = self.integers(key), np.zeros(len(self), dtype=bool)
        read = self.has(key)
        again[read] = repeated(ids[read])
        self.note(
            key,
            again,
            lambda place: f"{key!r} of entry {place} is {ids[place]}, which an earlier one has",
            malformed=False,
        )
        return ids

    def places(self, key: str, others: "Entries", known: NDArray[np.int64]) -> NDArray[np.int64]:
        """(E,) the place of the entry of another list whose id, in `known`, is the integer at `key`.

        -1 where there is none, which is a fault.
        """
        ids = self.integers(key)
        with_id = np.flatnonzero(others.has("id"))
        order = with_id[np.argsort(known[with_id], kind="stable")]
        places = np.append(order, -1)[np.searchsorted(known[order], ids)]
        listed = (places >= 0) & (np.append(known, 0)[places] == ids)
        self.note(
            key,
            self.has(key) & ~listed,
            lambda place: (
                f"{key!r} of entry {place} is {ids[place]}, which is not listed; list it, or drop the entry"
            ),
            malformed=False,
        )
        return np.where(listed & self.has(key), places, -1)

    def has(self, key: str) -> NDArray[np.bool_]:
        """(E,) whether the field could be read."""
        bad = [fault.bad for fault in self.faults if fault.malformed and fault.key in ("", key)]
        return ~np.logical_or.reduce([np.zeros(len(self), dtype=bool), *bad])

    def _of(self, key: str) -> list[Any]:
        return [value.get(key) for value in self._values]

    def _numbers(self, key: str, values: list[Any]) -> NDArray[np.float64]:
        numbers = self._typed(key, "a number", *_column(values, {int, float}, _number, np.float64))
        return self._finite(key, "a finite number", numbers)

    def _finite(self, key: str, wanted: str, numbers: NDArray[np.float64]) -> NDArray[np.float64]:
        finite = np.isfinite(numbers)
        self.note(
            f"{key} finite",
            ~(finite if finite.ndim == 1 else finite.min(axis=1)),
            self.tell_not(key, wanted),
            malformed=False,
        )
        return numbers

    def _typed(self, key: str, wanted: str, values: Any, fine: NDArray[np.bool_]) -> Any:
        self.note(key, ~fine, self.tell_not(key, wanted))
        return values


class CocoFile:
    """Images, annotations and categories in arrays, in the order of the file.

    Args:
        source: what messages call the file.
        content: what it holds: JSON's objects, lists, strings and numbers.
    """

    def __init__(self, source: str | Path, content: Any) -> None:
        lists = content if isinstance(content, Mapping) else {}
        self.images, self.annotations, self.categories = images, annotations, categories = (
            Entries(source, "images", lists.get("images")),
            Entries(source, "annotations", lists.get("annotations")),
            Entries(source, "categories", lists.get("categories")),
        )
        if lists is not content:
            images.flaw = f"not in COCO's format: it is {kind_of(content)}, not an object"
        self.source = source
        self.category_ids, self.category_names = categories.unique(), categories.strings("name")
        self.image_ids = images.unique()
        self.sizes = np.stack([images.integers(side) for side in ("height", "width")], axis=1)
        """(I, 2) heights and widths in pixels."""
        self.file_names = images.strings("file_name")
        self.ids = annotations.unique()
        self.image = annotations.places("image_id", images, self.image_ids)
        """(B,) the place of an annotation's image, -1 for none."""
        self.category = annotations.places("category_id", categories, self.category_ids)
        """(B,) the place of its category, -1 for none."""
        self.bbox = annotations.boxes()
        """(B, 4) x, y, width, height as written."""
        self.crowd = annotations.crowd()
        self.area = annotations.areas(self.bbox)
        possible = (self.sizes >= 1).all(axis=1) & (self.sizes <= np.iinfo(np.int32).max).all(axis=1)
        images.note("size", images.has("height") & images.has("width") & ~possible, self._impossible)
        outside = np.array([leaves_folder(name) for name in self.file_names], dtype=bool)
        images.note("outside", images.has("file_name") & outside, self._outside, malformed=False)

    @classmethod
    def read(cls, path: Path, need_annotations: bool = True) -> "CocoFile":
        """Read a file; without `need_annotations` also one that has no list of them.

        Raises:
            InputError: it cannot be read, or is not JSON.
        """
        content = read_json(path, "annotation")
        if isinstance(content, dict) and content.get("annotations") is None and not need_annotations:
            content["annotations"] = []
        return cls(path, content)

    @cached_property
    def clipped(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Boxes within their images, and which can be learned from.

        (B, 4) corners, clipped; (B,) whether a box is finite, of an image, and not degenerate.
        """
        sizes = np.append(self.sizes, [[1, 1]], axis=0)[self.image]
        finite = np.isfinite(self.bbox).all(axis=1)
        with np.errstate(over="ignore", invalid="ignore"):
            corners = np.concatenate([self.bbox[:, :2], self.bbox[:, :2] + self.bbox[:, 2:]], axis=1)
        corners[~finite] = 0
        limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
        boxes = np.clip(corners, 0, limits).astype(np.float32)
        fits = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= MIN_SIDE
        return boxes, finite & (self.image >= 0) & fits

    def _impossible(self, place: int) -> str:
        height, width = self.sizes[place]
        return f"image {self.image_ids[place]} cannot be of {width} × {height} pixels"

    def _outside(self, place: int) -> str:
        return f"file_name {reprlib.repr(self.file_names[place])} is not a path inside the image folder"


def leaves_folder(file_name: str) -> bool:
    """Whether a name is no path inside the folder it starts from, on this system or another."""
    return len(file_name) > MAX_NAME or _NOT_INSIDE.match(file_name) is not None


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
