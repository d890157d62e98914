"""What an annotation file holds, however bad it is.

Fields are read by the rules of `coco_json`, but leniently: an entry with a field of another type is
malformed, and counts as nothing else.

Symbols: I images, B annotations, K categories.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpn.data.coco import MIN_SIDE, clipped, image_sizes, leaves_folder, possible_sizes
from fpn.data.coco_json import Entries, repeated


class Finding(NamedTuple):
    """Entries that have something in common."""

    what: str
    items: list[Any]
    """Their ids or names of files, or a line on each."""


@dataclass
class Section:
    """What was found among the images, the annotations or the categories."""

    listed: int
    findings: dict[str, Finding] = field(default_factory=dict)

    def add(self, key: str, what: str, items: Sequence[Any] | NDArray[Any]) -> None:
        """Note a finding, be it of nothing."""
        self.findings[key] = Finding(what, items.tolist() if isinstance(items, np.ndarray) else list(items))

    def as_json(self) -> dict[str, Any]:
        """Counts and items by key."""
        found = {
            key: {"what": what, "count": len(items), "items": items}
            for key, (what, items) in self.findings.items()
        }
        return {"listed": self.listed, **found}


class CategoryCount(NamedTuple):
    """What there is of a category."""

    id: int
    name: str
    objects: int
    images: int
    """With an object."""
    crowds: int


class DataSet:
    """The fields of an annotation file that could be read, from lenient readers of its lists."""

    def __init__(self, images: Entries, annotations: Entries, categories: Entries) -> None:
        self.images, self.annotations, self.categories = images, annotations, categories
        self.category_ids, self.category_names = categories.integers("id"), categories.strings("name")
        self.image_ids, self.sizes = images.integers("id"), image_sizes(images)
        self.file_names = images.strings("file_name")
        self.possible = images.fine & possible_sizes(self.sizes)
        """(I,) whether an image is well-formed, and its size is one that an image can have."""

        self.ids = annotations.integers("id")
        self.image = _places(annotations, "image_id", self.image_ids, self.possible)
        self.category = _places(annotations, "category_id", self.category_ids, categories.fine)
        self.bbox, self.crowd = annotations.boxes(), annotations.crowd()
        self.areas = annotations.areas(self.bbox)
        self.placed = annotations.fine & (self.image >= 0)
        """(B,) whether an annotation is well-formed, and of such an image."""
        sizes = np.append(self.sizes, [[1, 1]], axis=0)[np.where(self.placed, self.image, -1)]
        self.boxes, fits = clipped(self.bbox, sizes)
        self.dropped = self.placed & ~fits
        """(B,) whether nothing is left of a box within its image."""
        self.usable = self.placed & fits & (self.category >= 0)
        self.objects = self.usable & ~self.crowd
        """(B,) whether training learns from an annotation."""

    def image_files(self) -> dict[int, str]:
        """File names by place, but for those of malformed entries and such as leave the folder."""
        names = ((place, self.file_names[place]) for place in np.flatnonzero(self.possible).tolist())
        return {place: name for place, name in names if not leaves_folder(name)}

    def add_images(self, section: Section) -> None:
        """Note what there is about images."""
        fine = np.flatnonzero(self.images.fine).tolist()
        names, ids = [self.file_names[place] for place in fine], self.image_ids[fine]
        section.add("outside_folder", "file names that leave the folder", [*filter(leaves_folder, names)])
        section.add("duplicate_file_names", "files listed before", _again(names))
        section.add("duplicate_ids", "ids listed before", ids[repeated(ids)])
        annotated, usable, objects = (
            np.bincount(self.image[kept], minlength=len(self.images)) > 0
            for kept in (self.placed, self.usable, self.objects)
        )
        for key, what, kept in (
            ("unannotated", "without annotations", ~annotated),
            ("only_crowds", "of crowd regions alone", usable & ~objects),
            ("only_unusable", "of unusable annotations alone", annotated & ~usable),
        ):
            section.add(key, what, self.image_ids[self.possible & kept])
        malformed = _faults(self.images)
        for place in np.flatnonzero(self.images.fine & ~self.possible).tolist():
            height, width = self.sizes[place]
            malformed.append(f"entry {place} is of {width} × {height} pixels")
        section.add("malformed", "malformed entries", malformed)

    def add_annotations(self, section: Section) -> None:
        """Note what there is about annotations."""
        fine, ids = self.annotations.fine, self.ids
        finite: NDArray[np.bool_] = np.isfinite(self.bbox).min(axis=1)
        lengths = np.where(finite[:, None], self.bbox[:, 2:], np.inf).min(axis=1)
        for key, what, kept in (
            ("crowds", "crowd regions", fine & self.crowd),
            ("not_finite", "boxes of NaN or infinity", self.dropped & ~finite),
            ("negative", "boxes of negative width or height", self.dropped & (lengths < 0)),
            ("empty", "empty boxes", self.dropped & (lengths >= 0) & (lengths < MIN_SIDE)),
            ("outside", "boxes outside their image", self.dropped & finite & (lengths >= MIN_SIDE)),
            ("partly_outside", "boxes partly outside, which are clipped", self._partly_outside()),
            ("area_not_finite", "areas of NaN or infinity", fine & ~np.isfinite(self.areas)),
            ("unknown_image", "of an image that is not listed, or malformed", fine & (self.image < 0)),
            (
                "unknown_category",
                "of a category that is not listed, or malformed",
                fine & (self.category < 0),
            ),
            ("duplicates", "of the image, category and box of one before", self._duplicates(finite)),
        ):
            section.add(key, what, ids[kept])
        section.add("duplicate_ids", "ids listed before", ids[fine][repeated(ids[fine])])
        section.add("malformed", "malformed entries", _faults(self.annotations))

    def add_categories(self, section: Section) -> None:
        """Note what there is about categories."""
        fine = np.flatnonzero(self.categories.fine).tolist()
        ids = self.category_ids[fine]
        without = [one.id for one in self.by_category if not one.objects]
        section.add("without_objects", "without objects", without)
        section.add("duplicate_ids", "ids listed before", ids[repeated(ids)])
        section.add("duplicate_names", "names listed before", _again(self.category_names[k] for k in fine))
        section.add("malformed", "malformed entries", _faults(self.categories))

    @cached_property
    def by_category(self) -> list[CategoryCount]:
        """What there is of each well-formed category, in the order of the file."""
        count, images = len(self.categories), max(1, len(self.images))
        of_image = np.sort((self.category * images + self.image)[self.objects])
        of_image = of_image[np.diff(of_image, prepend=-1) > 0]
        counts = [
            np.bincount(categories, minlength=count).tolist()
            for categories in (
                self.category[self.objects],
                of_image // images,
                self.category[self.usable & self.crowd],
            )
        ]
        rows = zip(self.category_ids.tolist(), self.category_names, *counts, strict=True)
        return [CategoryCount(*row) for row, fine in zip(rows, self.categories.fine, strict=True) if fine]

    def _partly_outside(self) -> NDArray[np.bool_]:
        with np.errstate(over="ignore", invalid="ignore"):
            ends = self.bbox[:, :2] + self.bbox[:, 2:]
            moved = np.abs(np.concatenate((self.bbox[:, :2], ends), axis=1) - self.boxes).max(axis=1)
        # Of a file that rounds to two decimals, x + width may be a hundredth of a pixel beyond the border.
        return self.usable & (moved > 1.5 * MIN_SIDE)

    def _duplicates(self, finite: NDArray[np.bool_]) -> NDArray[np.intp]:
        places = np.flatnonzero(self.placed & (self.category >= 0) & finite)
        columns = np.column_stack((self.bbox[places], self.category[places], self.image[places]))
        order = np.lexsort(columns.T)
        same: NDArray[np.bool_] = (columns[order[1:]] == columns[order[:-1]]).min(axis=1)
        return np.sort(places[order[1:][same]])


def _places(
    entries: Entries, key: str, known: NDArray[np.int64], fine: NDArray[np.bool_]
) -> NDArray[np.int64]:
    """(B,) the place of the fine entry whose id is at `key`; -1 for none."""
    return np.append(np.flatnonzero(fine), -1)[entries.places(key, known[fine])]


def _faults(entries: Entries) -> list[str]:
    return [entries.fault(place) for place in np.flatnonzero(~entries.fine).tolist()]


def _again(values: Iterable[Hashable]) -> list[Any]:
    """The values that have occurred before, each as often as it does again."""
    seen: set[Hashable] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
