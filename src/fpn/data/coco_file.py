"""A file in COCO's format, read once into flat arrays.

Training, scoring and the audit look at the same columns. A field that does not hold what belongs there is
remembered together with its entry, and has a blank in its column. Each reader refuses only the faults of the
fields that it uses (`Entries.refuse`), in one line that names the entry; the audit lists all.

An integer is whole and of 64 bits, be it written 12 or 12.0; a number is anything of float64, NaN and
infinities too; true and false are neither; null stands for nothing. What else is to be taken is taken by the
function of its `Kind`, and what stands for a field that is absent is the default of its column.

An id is an integer of any size or a string; a string that spells an integer is that integer. Where all ids of
a list are integers of 64 bits they are their own numbers; otherwise they are numbered from 1, in the order of
integers and then of strings. Everything inside goes by these numbers, and what is written by the ids.

Symbols: E entries of a list, I images, B annotations, K categories.
"""

import gc
import json
import re
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpn.data.decoding import shown_size
from fpn.errors import InputError

Crowds = Literal["regions", "objects"]
"""What annotations of `iscrowd` 1 are: regions of many objects, as in COCO, or objects like others."""
MIN_SIDE = 0.01
"""Boxes with a side below this many pixels are degenerate: resized in float32 they may lose all area."""
MAX_NAME = 1000
"""The most characters of a file name: an array of names is as wide as the longest."""

_EXACT = 2**53
"""Up to here every whole number has a float of its own."""
_SPELT = re.compile(r"0|-?[1-9][0-9]{0,99}")
_NUMERAL = re.compile(r" *[+-]?([0-9]{1,15}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})? *")
_UNWRITABLE = re.compile(r"[\0\ud800-\udfff]")
"""JSON can hold these characters, and neither a file's name nor UTF-8 can."""
_NOT_INSIDE = re.compile(r"\.?[\\/.]*$|(.*[\\/])?\.\.([\\/]|$)|.*[\0-\x1f]", re.DOTALL)
"""Paths of the folder itself, with a step up, or that no line could show; `file_names` judges the others."""


class Kind(NamedTuple):
    """What belongs in a field."""

    wanted: str
    take: Callable[[Any], Any]
    """What a value means; None where it means nothing of this kind."""
    blank: Any
    """Stands in the column for what means nothing."""
    dtype: type
    plain: Callable[[list[Any]], bool] = lambda values: False
    """Whether NumPy can convert these values as they are, in one go."""


def _unquoted(value: object) -> object:
    """The number that a string spells; anything else as it is."""
    return float(value) if isinstance(value, str) and _NUMERAL.fullmatch(value) else value


def _integer(value: object) -> int | None:
    value = _unquoted(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    whole = isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63
    return int(value) if whole else None  # type: ignore[call-overload]


def identity(value: object) -> int | str | None:
    """What an id of a file is equal to, as `5`, `5.0` and `"5"` are the same; None for what is no id."""
    if isinstance(value, str):
        spelt = _SPELT.fullmatch(value)
        return int(value) if spelt else (_string(value) or None)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return _integer(value) if isinstance(value, float) else None


def _number(value: object) -> float | None:
    value = _unquoted(value)
    if isinstance(value, float | Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # JSON has integers of any size
            return float(value)
    return None


def _side(value: object) -> int | None:
    return side if (side := _integer(value)) is not None and 1 <= side < 2**31 else None


def _flag(value: object) -> bool | None:
    value = _unquoted(value)
    return value == 1 if value in (None, 0, 1) else None


def _box(value: object) -> list[float | None] | None:
    sides = [_number(side) for side in value] if isinstance(value, list | tuple | np.ndarray) else []
    return sides if len(sides) == 4 and None not in sides else None


def _string(value: object) -> str | None:
    return value if isinstance(value, str) and _UNWRITABLE.search(value) is None else None


def _all_of(values: Iterable[Any], *types: type) -> bool:
    return {*types}.issuperset(map(type, values))


def _plain_boxes(values: list[Any]) -> bool:
    lists = _all_of(values, list) and {4}.issuperset(map(len, values))
    return lists and _all_of(chain.from_iterable(values), int, float)


ID = Kind("an integer or a string", identity, 0, np.object_)
SIDE = Kind(
    "a length in whole pixels", _side, 0, np.int64, lambda v: _all_of(v, int) and all(map(_side, {*v}))
)
NUMBER = Kind("a number", _number, 0.0, np.float64, lambda values: _all_of(values, int, float))
BOX = Kind("four numbers", _box, (0.0,) * 4, np.float64, _plain_boxes)
STRING = Kind("a string", _string, "", np.object_)
FLAG = Kind("0 or 1", _flag, False, np.bool_, lambda v: _all_of(v, int) and {0, 1}.issuperset(v))


class Fault(NamedTuple):
    """What is wrong with some entries of a list."""

    key: str
    """The field, and a word more where it is what only some readers refuse; empty for the entry itself."""
    bad: NDArray[np.bool_]
    """(E,) the entries."""
    complaint: str
    """What is said of the value there."""
    malformed: bool


class Ids(NamedTuple):
    """The ids of a list."""

    keys: NDArray[Any]
    """(E,) int64, or objects where an id is no integer of 64 bits."""
    numbers: NDArray[np.int64]
    """(E,) what they go by inside: equal where the ids are, and in their order."""
    written: NDArray[Any]
    """(E,) as the file has them."""

    @property
    def lost(self) -> int:
        """How many are missing, or the same as one before."""
        if self.written is self.numbers:
            return len(self.keys) - len(np.unique(self.keys))
        pairs = zip(self.keys.tolist(), self.written.tolist(), strict=True)
        return len(self.keys) - len({key for key, written in pairs if written is not None})

    @property
    def as_written(self) -> dict[int, int | str]:
        """Ids by their numbers, but for those that are their own numbers."""
        if self.written is self.numbers:
            return {}
        pairs = zip(self.numbers.tolist(), self.written.tolist(), strict=True)
        return {number: written for number, written in pairs if written != number}


def places_in(known: NDArray[Any], keys: NDArray[Any]) -> NDArray[np.int64]:
    """(M,) the first place in `known` (E,) of each of `keys` (M,), -1 for none; both as in `Ids`."""
    if known.dtype == keys.dtype == np.int64:
        listed, first = np.unique(known, return_index=True)
        order = np.searchsorted(listed, keys)
        there = np.append(listed, 0)[order] == keys
        return np.where(there, np.append(first, -1)[order], -1)
    places = {key: place for place, key in reversed([*enumerate(known.tolist())])}
    return np.array([places.get(key, -1) for key in keys.tolist()], dtype=np.int64)


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
        self.spelt = 0
        """Numbers, or boxes of some, that are written as strings."""
        self.flaw = ""
        """Why this is no list of objects."""
        if not isinstance(values, list):
            self.flaw = f"{name!r} is not a list of objects: it is {kind_of(values)}"
            values = []
        self._values: list[Any] = values
        self._entries = [value if isinstance(value, dict) else {} for value in values]
        strange = np.array([not isinstance(value, dict) for value in values], dtype=bool)
        self.faults = [Fault("", strange, ", not an object", malformed=True)]
        if strange.any():
            first = self._tell(self.faults[0], int(strange.argmax()))
            self.flaw = f"{name!r} is not a list of objects: {first}"

    def __len__(self) -> int:
        return len(self._values)

    def note(self, key: str, bad: NDArray[np.bool_], complaint: str, malformed: bool = True) -> None:
        """Remember what is wrong with some entries, if any."""
        self.faults.append(Fault(key, bad, complaint, malformed))

    def refuse(self, *keys: str) -> None:
        """Raise InputError for the first fault of these fields, in their order."""
        if self.flaw:
            raise InputError(f"{self.source}: not in COCO's format: {self.flaw}")
        for fault in (fault for key in keys for fault in self.faults if fault.key == key):
            if fault.bad.any():
                raise InputError(f"{self.source}: {self.name}: {self._tell(fault, int(fault.bad.argmax()))}")

    def has(self, *keys: str) -> NDArray[np.bool_]:
        """(E,) whether an entry has what belongs in these fields; in all that were read, if none is named."""
        bad = [one.bad for one in self.faults if one.malformed and (not keys or one.key in ("", *keys))]
        return ~np.any(bad, axis=0)

    def malformed(self) -> list[str]:
        """What is wrong with each entry that has not what belongs in it."""
        faults = [fault for fault in self.faults if fault.malformed]
        places = np.flatnonzero(~self.has()).tolist()
        return [self._tell(next(one for one in faults if one.bad[place]), place) for place in places]

    def column(self, key: str, kind: Kind, default: NDArray[Any] | None = None) -> NDArray[Any]:
        """(E, …) what the entries hold at `key`; numbers that are not finite are a fault of `key` finite.

        Args:
            key: the field.
            kind: what belongs there.
            default: (E, …) what stands for nothing; if it is None, nothing is a fault.
        """
        values = [entry.get(key) for entry in self._entries]
        if default is not None and any(value is None for value in values):
            pairs = zip(values, default.tolist(), strict=True)
            values = [other if value is None else value for value, other in pairs]
        column = self._converted(key, kind, values).reshape(-1, *np.shape(kind.blank))
        if kind.dtype is np.float64:
            infinite = ~np.isfinite(column).all(axis=tuple(range(1, column.ndim)))
            wanted = kind.wanted.replace("number", "finite number")
            self.note(f"{key} finite", infinite, f", not {wanted}", malformed=False)
        return column

    def boxes(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """(E, 4) the boxes at `bbox`, and (E,) whether one is that of the entry's mask, for want of it."""
        values = [entry.get("bbox") for entry in self._entries]
        drawn = [False] * len(values)
        if not (_all_of(values, list) and all(values)):
            drawn = [not isinstance(value, np.ndarray) and not value for value in values]
            pairs = zip(values, drawn, self._entries, strict=True)
            values = [box_of_mask(e.get("segmentation")) or v if empty else v for v, empty, e in pairs]
            drawn = [a and bool(value) for a, value in zip(drawn, values, strict=True)]
        if not _plain_boxes(values):
            rotated = [isinstance(value, list) and len(value) == 5 for value in values]
            what = ", a rotated box [x, y, width, height, angle]; give the upright box around it"
            self.note("bbox", np.array(rotated, dtype=bool), what)
        column = self._converted("bbox", BOX, values).reshape(-1, 4)
        infinite = ~np.isfinite(column).all(axis=1)
        self.note("bbox finite", infinite, ", not four finite numbers", malformed=False)
        return column, np.array(drawn, dtype=bool)

    def names(self, folder: Path | None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(E,) the strings at `file_name`, and (E,) whether one is the end of `coco_url`, as in LVIS."""
        values = [entry.get("file_name") for entry in self._entries]
        ends = np.zeros(len(values), dtype=bool)
        for place in [place for place, value in enumerate(values) if value is None]:
            if url := _string(self._entries[place].get("coco_url")):
                values[place], ends[place] = _end_of(url, folder), True
        return self._converted("file_name", STRING, values), ends

    def sizes(self, folder: Path | None, names: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(E, 2) heights and widths, and (E,) whether they are of the image's file, as none are stated."""
        stated = [[entry.get(side) for entry in self._entries] for side in ("height", "width")]
        absent = [all(side is None for side in sides) for sides in zip(*stated, strict=True)]
        if folder is not None and any(absent):
            for place in [p for p in np.flatnonzero(absent) if not _NOT_INSIDE.match(names[p])]:
                if size := shown_size(folder / names[place]):
                    stated[0][place], stated[1][place] = size
        sides = [
            self._converted(side, SIDE, one) for side, one in zip(("height", "width"), stated, strict=True)
        ]
        column = np.stack(sides, axis=1)
        return column, np.array(absent, dtype=bool) & (column > 0).all(axis=1)

    def absent(self, key: str) -> int:
        """How many entries hold nothing at `key`."""
        return sum(entry.get(key) is None for entry in self._entries)

    def own_ids(self) -> Ids:
        """The ids of entries to which nothing refers: missing and repeated ones are no fault."""
        before = len(self.faults)
        ids = self.unique()
        del self.faults[before:]
        return ids

    def keys(self, key: str) -> NDArray[Any]:
        """(E,) the ids at `key`: int64, or objects where one is no integer of 64 bits."""
        values = [entry.get(key) for entry in self._entries]
        if not _all_of(values, int):
            values = self._converted(key, ID, values).tolist()
        if not _all_of(values, int):
            return np.array(values, dtype=np.object_)
        try:
            return np.array(values, dtype=np.int64)
        except OverflowError:
            return np.array(values, dtype=np.object_)

    def unique(self) -> Ids:
        """The ids; that an earlier entry has the same is a fault."""
        keys, has = self.keys("id"), self.has("id")
        numbers = keys
        if keys.dtype != np.int64:
            ordered = sorted({*keys[has].tolist()}, key=lambda key: (isinstance(key, str), key))
            ranks = {key: rank for rank, key in enumerate(ordered, start=1)}
            numbers = np.array([ranks.get(key, 0) for key in keys.tolist()], dtype=np.int64)
        self.note("id", repeated(numbers, has), ", which an earlier one has", malformed=False)
        values = [entry.get("id") for entry in self._entries]
        plain = numbers is keys and _all_of(values, int, float)
        return Ids(keys, numbers, numbers if plain else np.array([*values, None], dtype=np.object_)[:-1])

    def places(self, key: str, others: "Entries", known: Ids) -> NDArray[np.int64]:
        """(E,) the place of the entry of another list whose id is the one at `key`.

        -1 where there is none, which is a fault.
        """
        listed = np.flatnonzero(others.has("id"))
        keys = self.keys(key)
        has = self.has(key)
        places = np.append(listed, -1)[places_in(known.keys[listed], keys)]
        unlisted = ", which is not listed; list it, or drop the entry"
        self.note(key, has & (places < 0), unlisted, malformed=False)
        return np.where(has, places, -1)

    def _converted(self, key: str, kind: Kind, values: list[Any]) -> NDArray[Any]:
        if kind.plain(values):
            with suppress(OverflowError):
                return np.array(values, dtype=kind.dtype)
        taken = [kind.take(value) for value in values]
        if kind not in (ID, STRING):
            spelt = (any(isinstance(one, str) for one in (v if isinstance(v, list) else [v])) for v in values)
            self.spelt += sum(spelt)
        self.note(key, np.array([value is None for value in taken], dtype=bool), f", not {kind.wanted}")
        return np.array([kind.blank if value is None else value for value in taken], dtype=kind.dtype)

    def _tell(self, fault: Fault, place: int) -> str:
        field = fault.key.partition(" ")[0]
        if not field:
            return f"entry {place} is {kind_of(self._values[place])}{fault.complaint}"
        value = self._entries[place].get(field)
        shown = "missing" if value is None else reprlib.repr(value)
        return f"{field!r} of entry {place} is {shown}{fault.complaint}"


class CocoFile:
    """Images, annotations and categories in arrays, in the order of the file.

    Args:
        source: what messages call the file.
        content: what it holds: JSON's objects, lists, strings and numbers.
        image_folder: where the images' file names start, to read the sizes of those that state none.
        crowds: what `iscrowd` 1 says of an annotation.
    """

    def __init__(
        self, source: str | Path, content: Any, image_folder: Path | None = None, crowds: Crowds = "regions"
    ) -> None:
        lists = content if isinstance(content, Mapping) else {}
        images, annotations, categories = (
            Entries(source, name, lists.get(name)) for name in ("images", "annotations", "categories")
        )
        if lists is not content:
            images.flaw = f"it is {kind_of(content)}, not an object"
        self.source, self.images, self.annotations, self.categories = source, images, annotations, categories
        self.listed_categories, self.listed_images = categories.unique(), images.unique()
        self.category_ids, self.image_ids = self.listed_categories.numbers, self.listed_images.numbers
        self.category_names = categories.column("name", STRING)
        self.file_names, self.from_url = images.names(image_folder)
        """(I,) strings; whether they are the ends of addresses."""
        self.sizes, self.measured = images.sizes(image_folder, self.file_names)
        """(I, 2) heights and widths in pixels; (I,) whether they are read from the image's file."""
        outside = [len(name) > MAX_NAME or _NOT_INSIDE.match(name) is not None for name in self.file_names]
        self.leaves = np.array(outside, dtype=bool)
        """(I,) whether one is no path inside the folder it starts from, on this system or another."""
        leaves, inside = images.has("file_name") & self.leaves, ", not a path inside the image folder"
        images.note("file_name inside", leaves, inside, malformed=False)
        self.listed_annotations = annotations.own_ids()
        self.ids = self.listed_annotations.written
        """(B,) as written."""
        self.image = annotations.places("image_id", images, self.listed_images)
        """(B,) the place of an annotation's image, -1 for none."""
        self.category = annotations.places("category_id", categories, self.listed_categories)
        """(B,) the place of its category, -1 for none."""
        zero = (self.category_ids == 0) & (self.listed_categories.keys == 0)
        used = np.bincount(self.category[self.category >= 0], minlength=len(zero)) > 0
        self.placeholder: NDArray[np.bool_] = np.logical_and(zero, ~used) if len(zero) > 1 else zero & False
        """(K,) whether a category is no class: it has id 0 and no object, as Roboflow writes it."""
        self.bbox: NDArray[Any]
        self.bbox, self.from_mask = annotations.boxes()
        """(B, 4) x, y, width, height as written; (B,) whether it is that of the mask, for want of a box."""
        self.crowd = annotations.column("iscrowd", FLAG)
        """(B,) whether it is a region of many objects."""
        if crowds == "objects":
            self.crowd = np.zeros_like(self.crowd)
        with np.errstate(over="ignore", invalid="ignore"):
            # Should one overflow, the greatest float is beyond all of COCO's ranges too.
            own = np.nan_to_num(self.bbox[:, 2] * self.bbox[:, 3])
        area = annotations.column("area", NUMBER, default=own)
        self.areas_replaced = (area <= 0) & (own > 0) & annotations.has("area")
        """(B,) whether the file's area is none, as it is negative or zero."""
        self.area = np.where(self.areas_replaced, own, area)
        """(B,) square pixels of the mask, which COCO requires, or else of the box."""

    @cached_property
    def clipped(self) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Boxes within their images, and which can be learned from.

        (B, 4) corners, clipped; (B,) whether a box is finite, of an image, and not degenerate.
        """
        finite = np.isfinite(self.bbox).all(axis=1)
        limits = np.append(self.sizes[:, ::-1], [[1, 1]], axis=0)[self.image]
        boxes = np.where(finite[:, None], corners(self.bbox), 0)
        boxes = np.clip(boxes, 0, np.tile(limits, 2)).astype(np.float32)
        fits = (boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= MIN_SIDE
        return boxes, finite & (self.image >= 0) & fits


def corners(bbox: NDArray[np.float64]) -> NDArray[np.float64]:
    """(B, 4) x1, y1, x2, y2 of x, y, width, height."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)


def repeated(values: NDArray[Any], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(E,) whether, among the entries that `among` (E,) names, an earlier one has the same value."""
    again = among.copy()
    again[np.flatnonzero(among)[np.unique(values[among], return_index=True)[1]]] = False
    return again


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


def kind_of(value: object) -> str:
    """What a value is in JSON's terms, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "missing"}
    return names.get(type(value), "a number" if isinstance(value, Real) else type(value).__name__)


def box_of_mask(segmentation: Any) -> list[float] | None:
    """The box [x, y, width, height] around a mask in COCO's format: polygons, or runs, in pixels.

    None where it is no mask.
    """
    with suppress(Exception):  # whatever a file holds there
        if isinstance(segmentation, dict):
            from pycocotools import mask

            height, width = segmentation["size"]
            runs = segmentation["counts"]
            if isinstance(runs, list):
                segmentation = mask.frPyObjects(segmentation, height, width)
            box: list[float] = mask.toBbox(segmentation).tolist()
            return box
        points = np.concatenate([np.array(part, dtype=np.float64).reshape(-1, 2) for part in segmentation])
        corner = points.min(axis=0)
        return [*corner.tolist(), *(points.max(axis=0) - corner).tolist()]
    return None


def _end_of(url: str, folder: Path | None) -> str:
    """The file that an address names in a folder: its last part, or the last two where this is there."""
    *_, split, name = ["", *url.split("/")]
    return f"{split}/{name}" if folder is not None and split and (folder / split / name).is_file() else name


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    # Nine tenths of COCO's files are masks: dropped as they are parsed, they never fill the memory.
    if entry.get("bbox"):
        entry.pop("segmentation", None)
    return entry
