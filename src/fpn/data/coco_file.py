"""A file in COCO's format, read once into flat arrays.

Training, scoring and the audit look at the same columns. What stands for a field that is absent is the
default of its column; `fields` says what belongs in one, and `entries` what becomes of what does not.

Symbols: I images, B annotations, K categories.
"""

import gc
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fpn.data.entries import Entries, leaves_folder
from fpn.data.fields import FLAG, NUMBER, STRING, kind_of
from fpn.errors import InputError

Crowds = Literal["regions", "objects"]
"""What annotations of `iscrowd` 1 are: regions of many objects, as in COCO, or objects like others."""
CLASS = "fpn_class"
"""In a category that is a class although it has no object here, as in a half of a data set."""
MIN_SIDE = 0.01
"""Boxes with a side below this many pixels are degenerate: resized in float32 they may lose all area."""


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
        self.leaves = np.array([*map(leaves_folder, self.file_names)], dtype=bool)
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
        used |= categories.column(CLASS, FLAG)
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
def read_json(path: Path, name: str, masks: bool = False) -> Any:
    """What a JSON file holds, but for masks unless they are asked for.

    Raises:
        InputError: if the file, which messages call by `name`, cannot be read or is not JSON.
    """
    try:
        return json.loads(path.read_bytes(), object_hook=None if masks else _without_mask)
    except FileNotFoundError:
        raise InputError(f"{path}: no such {name} file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable {name} file") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not a JSON file ({reason}); give a COCO {name} file") from None


def _without_mask(entry: dict[str, Any]) -> dict[str, Any]:
    # Nine tenths of COCO's files are masks: dropped as they are parsed, they never fill the memory.
    if entry.get("bbox"):
        entry.pop("segmentation", None)
    return entry
