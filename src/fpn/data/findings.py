"""What is wrong or odd with the images, annotations and categories of a file in COCO's format.

An entry with a field of another type is malformed, and counts as nothing else.

Symbols: I images, B annotations, K categories.
"""

from collections.abc import Hashable, Iterable
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpn.data.coco_file import MIN_SIDE, CocoFile, leaves_folder, repeated


class Finding(NamedTuple):
    """Entries that have something in common."""

    what: str
    items: list[Any]
    """Their ids or names of files, or a line on each."""
    wrong: bool = True
    """Whether it should not be; false for what is merely good to know."""


Findings = dict[str, Finding]
"""By key; also of what there is none of."""


class CategoryCount(NamedTuple):
    """What there is of a category."""

    id: int
    name: str
    objects: int
    images: int
    """With an object."""
    crowds: int


class Usable:
    """Which entries of a file could be read, and which training would use."""

    def __init__(self, file: CocoFile) -> None:
        self.file = file
        self.image = _fine_places(file.image, file.images.fine)
        """(B,) the place of an annotation's image; -1 for none, or a malformed one."""
        self.category = _fine_places(file.category, file.categories.fine)
        """(B,) the place of its category, likewise."""
        self.placed = file.annotations.fine & (self.image >= 0)
        """(B,) whether an annotation is well-formed, and of such an image."""
        self.boxes, fits = file.clipped
        self.dropped = self.placed & ~fits
        """(B,) whether nothing is left of a box within its image."""
        self.taken = self.placed & fits & (self.category >= 0)
        self.objects = self.taken & ~file.crowd
        """(B,) whether training learns from an annotation."""

    def image_files(self) -> dict[int, str]:
        """File names by place, but for those of malformed entries and such as leave the folder."""
        names, places = self.file.file_names, np.flatnonzero(self.file.images.fine).tolist()
        return {place: names[place] for place in places if not leaves_folder(names[place])}

    def of_images(self) -> Findings:
        """What there is about images."""
        file, fine = self.file, self.file.images.fine
        names, ids = [file.file_names[place] for place in np.flatnonzero(fine)], file.image_ids[fine]
        annotated, taken, objects = (
            np.bincount(self.image[kept], minlength=len(fine)) > 0
            for kept in (self.placed, self.taken, self.objects)
        )
        return {
            "malformed": Finding("malformed entries", file.images.malformed()),
            "outside_folder": Finding("file names that leave the folder", [*filter(leaves_folder, names)]),
            "duplicate_ids": Finding("ids listed before", ids[repeated(ids)].tolist()),
            "duplicate_file_names": Finding("files listed before", _again(names)),
            "only_unusable": self._images("of unusable annotations alone", annotated & ~taken, wrong=True),
            "unannotated": self._images("without annotations", ~annotated),
            "only_crowds": self._images("of crowd regions alone", taken & ~objects),
        }

    def of_annotations(self) -> Findings:
        """What there is about annotations."""
        file, fine = self.file, self.file.annotations.fine
        finite: NDArray[np.bool_] = np.isfinite(file.bbox).min(axis=1)
        shorter = np.where(finite[:, None], file.bbox[:, 2:], np.inf).min(axis=1)
        ids = file.ids[fine]

        def those(what: str, kept: NDArray[Any], wrong: bool = True) -> Finding:
            return Finding(what, file.ids[kept].tolist(), wrong)

        return {
            "malformed": Finding("malformed entries", file.annotations.malformed()),
            "not_finite": those("boxes of NaN or infinity", self.dropped & ~finite),
            "negative": those("boxes of negative width or height", self.dropped & (shorter < 0)),
            "empty": those("empty boxes", self.dropped & (shorter >= 0) & (shorter < MIN_SIDE)),
            "outside": those("boxes outside their image", self.dropped & finite & (shorter >= MIN_SIDE)),
            "area_not_finite": those("areas of NaN or infinity", fine & ~np.isfinite(file.area)),
            "unknown_image": those("of an image that is not listed, or malformed", fine & (self.image < 0)),
            "unknown_category": those(
                "of a category that is not listed, or malformed", fine & (self.category < 0)
            ),
            "duplicate_ids": Finding("ids listed before", ids[repeated(ids)].tolist()),
            "duplicates": those("of the image, category and box of one before", self._duplicates(finite)),
            "partly_outside": those("boxes partly outside, which are clipped", self._partly_outside(), False),
            "crowds": those("crowd regions", fine & file.crowd, False),
        }

    def of_categories(self) -> Findings:
        """What there is about categories."""
        file, fine = self.file, self.file.categories.fine
        names, ids = [file.category_names[place] for place in np.flatnonzero(fine)], file.category_ids[fine]
        without = [one.id for one in self.by_category if not one.objects]
        return {
            "malformed": Finding("malformed entries", file.categories.malformed()),
            "duplicate_ids": Finding("ids listed before", ids[repeated(ids)].tolist()),
            "duplicate_names": Finding("names listed before", _again(names)),
            "without_objects": Finding("without objects", without, wrong=False),
        }

    @cached_property
    def by_category(self) -> list[CategoryCount]:
        """What there is of each well-formed category, in the order of the file."""
        file, images = self.file, max(1, len(self.file.images))
        of_image = np.unique((self.category * images + self.image)[self.objects])
        crowds = self.category[self.taken & file.crowd]
        counts = [
            np.bincount(categories, minlength=len(file.categories)).tolist()
            for categories in (self.category[self.objects], of_image // images, crowds)
        ]
        rows = zip(file.category_ids.tolist(), file.category_names, *counts, strict=True)
        return [CategoryCount(*row) for row, fine in zip(rows, file.categories.fine, strict=True) if fine]

    def _images(self, what: str, kept: NDArray[np.bool_], wrong: bool = False) -> Finding:
        return Finding(what, self.file.image_ids[self.file.images.fine & kept].tolist(), wrong)

    def _partly_outside(self) -> NDArray[np.bool_]:
        bbox = self.file.bbox
        with np.errstate(over="ignore", invalid="ignore"):
            corners = np.concatenate((bbox[:, :2], bbox[:, :2] + bbox[:, 2:]), axis=1)
            moved = np.abs(corners - self.boxes).max(axis=1)
        # Of a file that rounds to two decimals, x + width may be a hundredth of a pixel beyond the border.
        return self.taken & (moved > 1.5 * MIN_SIDE)

    def _duplicates(self, finite: NDArray[np.bool_]) -> NDArray[np.intp]:
        places = np.flatnonzero(self.placed & (self.category >= 0) & finite)
        columns = np.column_stack((self.file.bbox[places], self.category[places], self.image[places]))
        order = np.lexsort(columns.T)
        same: NDArray[np.bool_] = (columns[order[1:]] == columns[order[:-1]]).min(axis=1)
        return np.sort(places[order[1:][same]])


def _fine_places(places: NDArray[np.int64], fine: NDArray[np.bool_]) -> NDArray[np.int64]:
    return np.where(np.append(fine, False)[places], places, -1)


def _again(values: Iterable[Hashable]) -> list[Any]:
    """The values that have occurred before, each as often as it does again."""
    seen: set[Hashable] = set()
    return [value for value in values if value in seen or seen.add(value)]  # type: ignore[func-returns-value]
