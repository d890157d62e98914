"""COCO-format data: annotations as flat arrays, images decoded on demand.

Symbols: I images, B boxes of all images, K categories. The boxes of image i are `offsets[i]:offsets[i + 1]`.
No Python object per image or box outlives the reading: those are copied page by page into every loader
process as their reference counts change.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image, read_file

from fpn.data import coco_json
from fpn.data.coco_json import Entries, integers, read_lists, strings, unique
from fpn.data.proposals import Proposals
from fpn.data.samplers import Pick
from fpn.data.transforms import Sample, Transform
from fpn.errors import InputError
from fpn.types import Categories, Targets

MIN_SIDE = 0.01
"""Boxes with a side below this many pixels are degenerate: resized in float32 they may lose all area."""

MAX_DEGENERATE = 0.001
"""Share of degenerate boxes above which the file, not a box, is at fault …"""

FEW_DEGENERATE = 3
"""… provided there are this many."""


MAX_LABEL = 1000
"""The greatest category id that may be a label as it is."""


@dataclass(frozen=True)
class Annotations:
    """An annotation file in arrays, in the file's order of images."""

    path: Path
    categories: Categories
    image_ids: NDArray[np.int64]
    """(I,)."""
    file_names: NDArray[np.str_]
    """(I,) relative to the image folder."""
    sizes: NDArray[np.int32]
    """(I, 2) heights and widths in pixels."""
    offsets: NDArray[np.int64]
    """(I + 1,)."""
    boxes: NDArray[np.float32]
    """(B, 4) x1, y1, x2, y2, inside the image and not degenerate."""
    labels: NDArray[np.int64]
    """(B,) in 1…K, the place in `categories`."""
    crowd: NDArray[np.bool_]
    """(B,) whether the box is a region of many objects."""
    degenerate: int
    """Boxes of the file that are not among `boxes`."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def targets(self, index: int) -> Targets:
        """The ground truth of image `index`, in pixels of the image as stored."""
        own = slice(self.offsets[index], self.offsets[index + 1])
        boxes, crowd = torch.from_numpy(self.boxes[own]), torch.from_numpy(self.crowd[own])
        return Targets(boxes[~crowd], torch.from_numpy(self.labels[own])[~crowd], boxes[crowd])

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) whether an image has a box to learn from: neither degenerate nor crowd."""
        image_of_box = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return np.bincount(image_of_box[~self.crowd], minlength=len(self)) > 0

    def labelled_by_id(self) -> "Annotations":
        """The same with category ids as labels, gaps and all, as torchvision's references number classes.

        Raises:
            InputError: if ids are not positive, or too large to count up to.
        """
        ids = np.array(self.categories.ids)
        if ids.min() < 1 or ids.max() > MAX_LABEL:
            raise InputError(
                f"{self.path}: category ids {ids.min()}…{ids.max()} cannot be labels, "
                f"which are 1…{MAX_LABEL}; set data.label_gaps to false"
            )
        return replace(self, categories=self.categories.with_gaps(), labels=ids[self.labels - 1])

    def select(self, keep: NDArray[np.bool_]) -> "Annotations":
        """Only the images where `keep` (I,) is true."""
        counts = np.diff(self.offsets)
        kept_boxes = np.repeat(keep, counts)
        return replace(
            self,
            image_ids=self.image_ids[keep],
            file_names=self.file_names[keep],
            sizes=self.sizes[keep],
            offsets=np.concatenate([[0], np.cumsum(counts[keep])]),
            boxes=self.boxes[kept_boxes],
            labels=self.labels[kept_boxes],
            crowd=self.crowd[kept_boxes],
        )


class CocoDataset(Dataset[Sample]):
    """Images with their ground truth, by pick.

    Annotations are given for the pixels as stored: an EXIF orientation is not applied.

    Args:
        annotations: the images, all of which the data set has.
        image_folder: where their file names start.
        transform: makes the network's input; whatever it draws, it draws from the pick's seed.
        proposals: a file that lists all of these images, for samples to have theirs.
    """

    def __init__(
        self,
        annotations: Annotations,
        image_folder: Path,
        transform: Transform,
        proposals: Proposals | None = None,
    ) -> None:
        self.annotations = annotations
        self.image_folder = Path(image_folder)
        self.transform = transform
        self.proposals = proposals

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, pick: Pick) -> Sample:
        """Load the image of a pick.

        Raises:
            InputError: if the image is missing, broken, or of another size than the annotations
                say; if its proposals are not numbers.
        """
        annotations, index = self.annotations, pick.image
        path = self.image_folder / str(annotations.file_names[index])
        stated = (int(annotations.sizes[index, 0]), int(annotations.sizes[index, 1]))
        image = read_image(path)
        original_size = (image.shape[-2], image.shape[-1])
        if original_size != stated:
            raise InputError(
                f"{path}: {original_size[1]} × {original_size[0]} pixels as stored (EXIF orientation is not"
                f" applied), but {annotations.path} says {stated[1]} × {stated[0]}"
            )
        image_id = int(annotations.image_ids[index])
        proposals = None if self.proposals is None else self.proposals.for_image(image_id)
        target = annotations.targets(index)
        sample = Sample(image, original_size, original_size, image_id, target, proposals)
        return self.transform(sample, torch.Generator().manual_seed(pick.seed))


def read_image(path: Path) -> Tensor:
    """Decode a JPEG, PNG, WebP or GIF file, grey and CMYK ones too, to (3, H, W) uint8 RGB as stored.

    Raises:
        InputError: if the file is missing, broken or not an image of 8 bits per colour.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such image file")
    try:
        image = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except RuntimeError as error:
        reason = re.sub(r"^\w+, \S+:\d+, ", "", str(error).splitlines()[0])
        raise InputError(f"{path}: cannot be decoded: {reason}") from None
    if image.dtype != torch.uint8 or image.dim() != 3:
        raise InputError(f"{path}: not one image of 8 bits per colour ({image.dtype}, {tuple(image.shape)})")
    return image


def read_annotations(path: Path, need_objects: bool = True) -> Annotations:
    """Read an instances file in COCO's format.

    Boxes are clipped to their image; degenerate ones are dropped and counted. An annotation without `iscrowd`
    is taken for a single object. Masks are not read.

    Args:
        path: the JSON file.
        need_objects: False also takes a file without annotations, as COCO's image_info files of
            unlabelled images are.

    Raises:
        InputError: if the file is missing, is not in the format, contradicts itself, or has so many
            degenerate boxes that they are probably written in another convention.
    """
    path = Path(path)
    images, annotations, entries = read_lists(path, need_objects)
    categories = _read_categories(path, entries)
    image_ids = unique(path, "image", integers(path, "images", images, "id"))
    sizes = np.stack([integers(path, "images", images, side) for side in ("height", "width")], axis=1)
    if sizes.min() < 1:
        raise InputError(f"{path}: image {image_ids[sizes.min(axis=1).argmin()]} has no pixels")

    ids = unique(path, "annotation", integers(path, "annotations", annotations, "id"))
    of_image = integers(path, "annotations", annotations, "image_id")
    of_category = integers(path, "annotations", annotations, "category_id")
    image = _positions(path, "image", of_image, image_ids, ids)
    label = _positions(path, "category", of_category, np.array(categories.ids), ids) + 1
    crowd = np.array([bool(entry.get("iscrowd", 0)) for entry in annotations], dtype=bool)

    bbox = coco_json.boxes(path, "annotations", annotations)
    finite: NDArray[np.bool_] = np.isfinite(np.abs(bbox).max(axis=1))
    boxes = _corners(np.where(finite[:, None], bbox, 0), sizes[image])
    usable: NDArray[np.bool_] = finite & ((boxes[:, 2:] - boxes[:, :2]).min(axis=1) >= MIN_SIDE)
    degenerate = ids[~usable]
    if len(degenerate) >= FEW_DEGENERATE and len(degenerate) > MAX_DEGENERATE * len(ids):
        raise InputError(
            f"{path}: {len(degenerate)} of {len(ids)} boxes are empty or lie outside their image (annotations"
            f" {', '.join(map(str, degenerate[:5]))}, …); a bbox is [x, y, width, height] in pixels"
        )

    order = np.argsort(image, kind="stable")
    order = order[usable[order]]
    counts = np.bincount(image[order], minlength=len(image_ids))
    return Annotations(
        path=path,
        categories=categories,
        image_ids=image_ids,
        file_names=_file_names(path, images),
        sizes=sizes.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes[order],
        labels=label[order],
        crowd=crowd[order],
        degenerate=len(degenerate),
    )


def _read_categories(path: Path, entries: Entries) -> Categories:
    ids = unique(path, "category", integers(path, "categories", entries, "id"))
    names = strings(path, "categories", entries, "name")
    order = np.argsort(ids)
    return Categories(tuple(ids[order].tolist()), tuple(names[place] for place in order))


def _file_names(path: Path, images: Entries) -> NDArray[np.str_]:
    names = strings(path, "images", images, "file_name")
    for name in names:
        parts = PurePosixPath(name).parts + PureWindowsPath(name).parts
        absolute = PurePosixPath(name).is_absolute() or PureWindowsPath(name).anchor
        if not parts or absolute or ".." in parts:
            raise InputError(f"{path}: file_name {name!r} is not a path inside the image folder")
    return np.array(names, dtype=np.str_)


def _corners(bbox: NDArray[np.float64], sizes: NDArray[np.int64]) -> NDArray[np.float32]:
    """(B, 4) corners of x, y, width, height, clipped to images of sizes (B, 2)."""
    corners = np.concatenate([bbox[:, :2], bbox[:, :2] + bbox[:, 2:]], axis=1)
    limits = np.concatenate([sizes[:, ::-1], sizes[:, ::-1]], axis=1)
    return np.clip(corners, 0, limits).astype(np.float32)


def _positions(
    path: Path, name: str, wanted: NDArray[np.int64], known: NDArray[np.int64], owners: NDArray[np.int64]
) -> NDArray[np.int64]:
    """(B,) the place in `known` of each wanted id."""
    order = np.argsort(known)
    places = order[np.searchsorted(known, wanted, sorter=order).clip(max=len(known) - 1)]
    unknown = known[places] != wanted
    if unknown.any():
        first = int(unknown.argmax())
        raise InputError(
            f"{path}: annotation {owners[first]} is of {name} {wanted[first]}, which is not listed"
        )
    return places
