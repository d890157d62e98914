"""What is wrong or odd with the images, annotations and categories of a file in COCO's format.

An entry with a field of another kind is malformed, and counts as nothing else.

Symbols: I images, B annotations, K categories.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpn.data.coco_file import MIN_SIDE, CocoFile, corners
from fpn.data.entries import repeated


class Finding(NamedTuple):
    """Entries that have something in common."""

    what: str
    items: list[Any]
    """Their ids or names of files, or a line on each."""
    wrong: bool = True
    """Whether it should not be; false for what is merely good to know."""


class CategoryCount(NamedTuple):
    """What there is of a category."""

    id: int | str
    name: str
    objects: int
    images: int
    """With an object."""
    crowds: int


_Row = tuple[str, str, NDArray[np.bool_], NDArray[Any]]
"""Key, what it is, which entries, and what to show of them."""
_GOOD_TO_KNOW = {
    "unannotated",
    "only_crowds",
    "partly_outside",
    "area_not_positive",
    "crowds",
    "without_objects",
}


class Usable:
    """Which entries of a file could be read, and which training would use."""

    def __init__(self, file: CocoFile) -> None:
        self.file = file
        self.image = _among(file.image, file.images.has())
        """(B,) the place of an annotation's image; -1 for none, or a malformed one."""
        self.category = _among(file.category, file.categories.has())
        """(B,) the place of its category, likewise."""
        self.placed = file.annotations.has() & (self.image >= 0)
        """(B,) whether an annotation is well-formed, and of such an image."""
        self.boxes, fits = file.clipped
        self.dropped = self.placed & ~fits
        """(B,) whether nothing is left of a box within its image."""
        self.taken = self.placed & fits & (self.category >= 0)
        self.objects = self.taken & ~file.crowd
        """(B,) whether training learns from an annotation."""

    def by_category(self) -> list[CategoryCount]:
        """What there is of each well-formed category, in the order of the file."""
        file, images = self.file, max(1, len(self.file.images))
        pairs = np.unique((self.category * images + self.image)[self.objects])
        counts = [
            np.bincount(one, minlength=len(file.categories))
            for one in (self.category[self.objects], pairs // images, self.category[self.taken & file.crowd])
        ]
        columns = (file.listed_categories.written, file.category_names, *counts)
        fine = (column[file.categories.has()].tolist() for column in columns)
        return [CategoryCount(*row) for row in zip(*fine, strict=True)]

    def findings(self) -> dict[str, dict[str, Finding]]:
        """What there is about images, annotations and categories, by key; also what there is none of."""
        lists = {
            "images": self._images(),
            "annotations": self._annotations(),
            "categories": self._categories(),
        }
        found = {}
        for name, rows in lists.items():
            first = Finding("malformed entries", getattr(self.file, name).malformed())
            found[name] = {"malformed": first} | {
                key: Finding(what, values[kept].tolist(), key not in _GOOD_TO_KNOW)
                for key, what, kept, values in rows
            }
        return found

    def _images(self) -> list[_Row]:
        file, fine = self.file, self.file.images.has()
        ids, names = file.listed_images, file.file_names
        annotated, taken, objects = (
            fine & (np.bincount(self.image[kept], minlength=len(fine)) > 0)
            for kept in (self.placed, self.taken, self.objects)
        )
        return [
            ("outside_folder", "file names that leave the folder", fine & file.leaves, names),
            ("duplicate_ids", "ids listed before", repeated(ids.numbers, fine), ids.written),
            ("duplicate_file_names", "files listed before", repeated(names, fine), names),
            ("only_unusable", "of unusable annotations alone", annotated & ~taken, ids.written),
            ("unannotated", "without annotations", fine & ~annotated, ids.written),
            ("only_crowds", "of crowd regions alone", taken & ~objects, ids.written),
        ]

    def _annotations(self) -> list[_Row]:
        file, ids, fine, dropped = self.file, self.file.ids, self.file.annotations.has(), self.dropped
        finite = np.isfinite(file.bbox).all(axis=1)
        shorter = np.where(finite, file.bbox[:, 2:].min(axis=1), np.inf)
        with np.errstate(over="ignore", invalid="ignore"):
            # Of a file that rounds to two decimals, x + width may be 0.01 pixels beyond the border.
            beyond = np.abs(corners(file.bbox) - self.boxes).max(axis=1) > 1.5 * MIN_SIDE
        homeless, unknown = fine & (self.image < 0), fine & (self.category < 0)
        places = np.flatnonzero(self.placed & (self.category >= 0) & finite)
        columns = np.column_stack((file.bbox, self.category, self.image))[places]
        order, same = np.lexsort(columns.T), np.zeros_like(fine)
        same[places[order[1:]]] = (columns[order[1:]] == columns[order[:-1]]).all(axis=1)
        return [
            ("not_finite", "boxes of NaN or infinity", dropped & ~finite, ids),
            ("negative", "boxes of negative width or height", dropped & (shorter < 0), ids),
            ("empty", "empty boxes", dropped & (shorter >= 0) & (shorter < MIN_SIDE), ids),
            ("outside", "boxes outside their image", dropped & finite & (shorter >= MIN_SIDE), ids),
            ("area_not_finite", "areas of NaN or infinity", fine & ~np.isfinite(file.area), ids),
            ("area_not_positive", "areas of 0 or less, for which the box's stand", file.areas_replaced, ids),
            ("unknown_image", "of an image that is not listed, or malformed", homeless, ids),
            ("unknown_category", "of a category that is not listed, or malformed", unknown, ids),
            ("duplicate_ids", "ids listed before", repeated(file.listed_annotations.numbers, fine), ids),
            ("duplicates", "of the image, category and box of one before", same, ids),
            ("partly_outside", "boxes partly outside, which are clipped", self.taken & beyond, ids),
            ("crowds", "crowd regions", fine & file.crowd, ids),
        ]

    def _categories(self) -> list[_Row]:
        file, fine = self.file, self.file.categories.has()
        ids, names = file.listed_categories, file.category_names
        used = np.bincount(self.category[self.objects], minlength=len(fine)) > 0
        return [
            ("duplicate_ids", "ids listed before", repeated(ids.numbers, fine), ids.written),
            ("duplicate_names", "names listed before", repeated(names, fine), names),
            ("without_objects", "without objects", fine & ~used, ids.written),
        ]


def _among(places: NDArray[np.int64], fine: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(np.append(fine, False)[places], places, -1)
