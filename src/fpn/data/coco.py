"""COCO-format data: annotations as flat arrays, images decoded on demand.

Symbols: I images, B boxes of all images, K categories. The boxes of image i are `offsets[i]:offsets[i + 1]`.
No Python object per image or box outlives the reading: those are copied page by page into every loader
process as their reference counts change.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.io import ImageReadMode, decode_image, read_file

from fpn.data.coco_file import CocoFile, read_json
from fpn.data.proposals import Proposals
from fpn.data.samplers import Pick
from fpn.data.transforms import Sample, Transform
from fpn.errors import InputError
from fpn.types import Categories, Targets

MAX_DEGENERATE = 0.001
"""Share of degenerate boxes above which the file, not a box, is at fault …"""

FEW_DEGENERATE = 3
"""… provided there are this many."""

IN_A_ROW = 100
"""Unreadable images, beyond those that may be, after which none is looked for to take their place."""

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

    @property
    def counted(self) -> str:
        """The numbers of images and objects, in words."""
        return f"{len(self):,} images, {int((~self.crowd).sum()):,} objects"

    def targets(self, index: int) -> Targets:
        """The ground truth of image `index`, in pixels of the image as stored."""
        own = slice(self.offsets[index], self.offsets[index + 1])
        boxes, crowd = torch.from_numpy(self.boxes[own]), torch.from_numpy(self.crowd[own])
        return Targets(boxes[~crowd], torch.from_numpy(self.labels[own])[~crowd], boxes[crowd])

    def has_objects(self) -> NDArray[np.bool_]:
        """(I,) whether an image has a box to learn from: neither degenerate nor crowd."""
        image_of_box = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        return np.bincount(image_of_box[~self.crowd], minlength=len(self)) > 0

    def with_objects(self) -> "Annotations":
        """Only the images with a box to learn from.

        Raises:
            InputError: there is none.
        """
        kept = self.select(self.has_objects())
        if not len(kept):
            raise InputError(f"{self.path}: no image has an object to learn from, that is no crowd region")
        return kept

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
        max_unreadable: this many files may be unreadable: missing, broken, or of another size than the
            annotations say. The next image that can be read takes the place of theirs; samples name
            them, and `note_unreadable` sees whether there are more. None replaces no image.
    """

    def __init__(
        self,
        annotations: Annotations,
        image_folder: Path,
        transform: Transform,
        proposals: Proposals | None = None,
        max_unreadable: int | None = None,
    ) -> None:
        self.annotations = annotations
        self.image_folder = Path(image_folder)
        self.transform = transform
        self.proposals = proposals
        self.max_unreadable = max_unreadable
        self._unreadable: dict[str, None] = {}

    def __len__(self) -> int:
        return len(self.annotations)

    def __getitem__(self, pick: Pick) -> Sample:
        """Load the image of a pick, or the next one that can be read, transformed as the pick would be.

        Raises:
            InputError: if a file is unreadable and none may be replaced, or too many in a row are; if an
                image's proposals are not numbers.
        """
        index, unreadable = pick.image, list[str]()
        while True:
            try:
                image = self._read(index)
                break
            except InputError as error:
                if self.max_unreadable is None:
                    raise
                unreadable.append(str(error))
            if len(unreadable) == min(len(self), self.max_unreadable + IN_A_ROW):
                refuse_unreadable(unreadable, self.max_unreadable, self.annotations)
            index = (index + 1) % len(self)
        size = (image.shape[-2], image.shape[-1])
        image_id = int(self.annotations.image_ids[index])
        proposals = None if self.proposals is None else self.proposals.for_image(image_id)
        target = self.annotations.targets(index)
        sample = Sample(image, size, size, image_id, target, proposals, tuple(unreadable))
        return self.transform(sample, torch.Generator().manual_seed(pick.seed))

    def note_unreadable(self, lines: Iterable[str], fate: str, tell: Callable[[str], object]) -> None:
        """Name the files that could not be read, each once, and count them.

        Args:
            lines: `Batch.unreadable`, of all processes and in each of them.
            fate: what becomes of such an image.
            tell: prints a line.

        Raises:
            InputError: so far there are more than may be.
        """
        allowed = self.max_unreadable or 0
        for line in lines:
            if line not in self._unreadable:
                self._unreadable[line] = None
                if allowed:
                    tell(f"{line}; {fate} ({len(self._unreadable)} of at most {allowed})")
        refuse_unreadable(list(self._unreadable), allowed, self.annotations)

    def _read(self, index: int) -> Tensor:
        path = self.image_folder / str(self.annotations.file_names[index])
        image = read_image(path)
        (height, width), stated = image.shape[-2:], self.annotations.sizes[index].tolist()
        if [height, width] != stated:
            raise InputError(
                f"{path}: {width} × {height} pixels as stored (EXIF orientation is not applied), but"
                f" {self.annotations.path} says {stated[1]} × {stated[0]}"
            )
        return image


def tolerated(share: float, images: int) -> int:
    """How many of a number of images a share of them is, rounded down, and never all."""
    # As 0.29 * 100 falls short of 29.
    return min(math.floor(share * images + 1e-6), images - 1)


def refuse_unreadable(lines: Sequence[str], allowed: int, annotations: Annotations) -> None:
    """Raise InputError if more image files are unreadable than may be.

    Args:
        lines: what is wrong with each; they begin with its path.
        allowed: how many may be.
        annotations: of all images there are.
    """
    if len(lines) <= allowed:
        return
    if allowed == 0:
        raise InputError(lines[0])
    raise InputError(
        f"{len(lines)} of the {len(annotations):,} images of {annotations.path} cannot be read, where"
        f" data.max_unreadable allows for {allowed}: {'; '.join([*lines[:3], *['…'] * (len(lines) > 3)])}"
    )


def read_image(path: Path) -> Tensor:
    """Decode a JPEG, PNG, WebP or GIF file, grey and CMYK ones too, to (3, H, W) uint8 RGB as stored.

    Raises:
        InputError: if the file is missing, broken or not an image of 8 bits per colour.
    """
    try:
        if not path.is_file():
            raise InputError(f"{path}: no such image file")
        image = decode_image(read_file(str(path)), mode=ImageReadMode.RGB)
    except OSError as error:  # such a long name that no file can have it
        raise InputError(f"{path}: {error.strerror}") from None
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
    content = read_json(Path(path), "annotation")
    if not need_objects and isinstance(content, dict) and content.get("annotations") is None:
        content["annotations"] = []
    return annotations_of(CocoFile(path, content))


def annotations_of(file: CocoFile) -> Annotations:
    """What `read_annotations` makes of a file, with its errors."""
    file.images.refuse("id", "height", "width", "file_name", "file_name inside")
    file.annotations.refuse()
    file.categories.refuse("id", "name")
    for entries in (file.images, file.categories):
        if not len(entries):
            raise InputError(f"{file.source}: the list {entries.name!r} is empty")
    # Only scoring needs the areas: to refuse them then, after hours of training, would be late.
    file.annotations.refuse("id", "image_id", "category_id", "bbox", "iscrowd", "area")
    boxes, usable = file.clipped
    degenerate = file.ids[~usable]
    if len(degenerate) >= FEW_DEGENERATE and len(degenerate) > MAX_DEGENERATE * len(usable):
        raise InputError(
            f"{file.source}: {len(degenerate)} of {len(usable)} boxes are empty or lie outside their image"
            f" (annotations {', '.join(map(str, degenerate[:5]))}, …); "
            "a bbox is [x, y, width, height] in pixels"
        )
    order = np.argsort(file.image, kind="stable")
    order = order[usable[order]]
    counts = np.bincount(file.image[order], minlength=len(file.image_ids))
    by_id = np.argsort(file.category_ids)
    return Annotations(
        path=Path(file.source),
        categories=Categories(*(tuple(c[by_id].tolist()) for c in (file.category_ids, file.category_names))),
        image_ids=file.image_ids,
        file_names=file.file_names.astype(np.str_),
        sizes=file.sizes.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes[order],
        labels=np.argsort(by_id)[file.category[order]] + 1,
        crowd=file.crowd[order],
        degenerate=len(degenerate),
    )
