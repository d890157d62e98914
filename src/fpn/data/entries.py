"""The entries of a list of a file in COCO's format, field by field, in flat arrays.

A field that does not hold what belongs there is remembered together with its entry, and has a blank in its
column. Each reader refuses only the faults of the fields that it uses (`Entries.refuse`), in one line that
names the entry; the audit lists all.

Where all ids of a list are integers of 64 bits they are their own numbers; otherwise they are numbered from
1, in the order of integers and then of strings. Everything inside goes by these numbers, and what is written
by the ids.

Symbols: E entries of a list.
"""

import math
import re
import reprlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpn.data.decoding import shown_size
from fpn.data.fields import BOX, ID, SIDE, STRING, Kind, all_of, kind_of, plain_boxes, text
from fpn.data.file_names import locate
from fpn.errors import InputError

MAX_NAME = 1000
"""The most characters of a file name: an array of names is as wide as the longest."""
_NOT_INSIDE = re.compile(r"\.?[\\/.]*$|(.*[\\/])?\.\.([\\/]|$)|.*[\0-\x1f]", re.DOTALL)
"""Paths of the folder itself, with a step up, or that no line could show; `file_names` judges the others."""


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
        self.rotated = 0
        """Boxes that an attribute turns, for which the upright ones around them stand."""
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
        values: list[Any] = [entry.get("bbox") for entry in self._entries]
        drawn = [False] * len(values)
        if not (all_of(values, list) and all(values)):
            drawn = [not isinstance(value, np.ndarray) and not value for value in values]
            pairs = zip(values, drawn, self._entries, strict=True)
            values = [box_of_mask(e.get("segmentation")) or v if empty else v for v, empty, e in pairs]
            drawn = [a and bool(value) for a, value in zip(drawn, values, strict=True)]
        for place, angle in self._turned():
            values[place] = _upright(values[place], angle)
        if not plain_boxes(values):
            rotated = [isinstance(value, list) and len(value) == 5 for value in values]
            what = ", a rotated box [x, y, width, height, angle]; give the upright box around it"
            self.note("bbox", np.array(rotated, dtype=bool), what)
        column = self._converted("bbox", BOX, values).reshape(-1, 4)
        infinite = ~np.isfinite(column).all(axis=1)
        self.note("bbox finite", infinite, ", not four finite numbers", malformed=False)
        return column, np.array(drawn, dtype=bool)

    def _turned(self) -> Iterator[tuple[int, float]]:
        """The boxes that CVAT's attribute `rotation` turns about their centre, and by how many degrees."""
        for place, entry in enumerate(self._entries):
            attributes = entry.get("attributes")
            angle = attributes.get("rotation") if isinstance(attributes, dict) else None
            box = entry.get("bbox")
            if isinstance(angle, int | float) and angle % 180 and isinstance(box, list) and len(box) == 4:
                self.rotated += 1
                yield place, angle

    def names(self, folder: Path | None) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """(E,) the strings at `file_name`, and (E,) whether one is the end of `coco_url`, as in LVIS."""
        values = [entry.get("file_name") for entry in self._entries]
        ends = np.zeros(len(values), dtype=bool)
        for place in [place for place, value in enumerate(values) if value is None]:
            if url := text(self._entries[place].get("coco_url")):
                values[place], ends[place] = _end_of(url, folder), True
        return self._converted("file_name", STRING, values), ends

    def sizes(self, folder: Path | None, names: NDArray[Any]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """(E, 2) heights and widths, and (E,) whether they are of the image's file, as none are stated."""
        stated = [[entry.get(side) for entry in self._entries] for side in ("height", "width")]
        absent = [all(side is None for side in sides) for sides in zip(*stated, strict=True)]
        if folder is not None and any(absent):
            places = [place for place in np.flatnonzero(absent) if not leaves_folder(names[place])]
            located = locate(folder, [names[place] for place in places]).names
            for place, name in zip(places, located, strict=True):
                if size := shown_size(folder / name):
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
        if not all_of(values, int):
            values = self._converted(key, ID, values).tolist()
        if all_of(values, int):
            with suppress(OverflowError):
                return np.array(values, dtype=np.int64)
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
        plain = numbers is keys and all_of(values, int, float)
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


def repeated(values: NDArray[Any], among: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(E,) whether, among the entries that `among` (E,) names, an earlier one has the same value."""
    again = among.copy()
    again[np.flatnonzero(among)[np.unique(values[among], return_index=True)[1]]] = False
    return again


def leaves_folder(name: str) -> bool:
    """Whether a name is no path inside the folder it starts from, on this system or another."""
    return len(name) > MAX_NAME or _NOT_INSIDE.match(name) is not None


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


def _upright(box: list[Any], angle: float) -> list[Any]:
    """The upright [x, y, width, height] around one that is turned about its centre by degrees."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):  # which is told of as a box that is none
        return box
    cos, sin = abs(math.cos(math.radians(angle))), abs(math.sin(math.radians(angle)))
    across, down = width * cos + height * sin, width * sin + height * cos
    return [x + (width - across) / 2, y + (height - down) / 2, across, down]


def _end_of(url: str, folder: Path | None) -> str:
    """The file that an address names in a folder: its last part, or the last two where this is there."""
    *_, split, name = ["", *url.split("/")]
    return f"{split}/{name}" if folder is not None and split and (folder / split / name).is_file() else name
