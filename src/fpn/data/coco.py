"""COCO-format data: annotations as flat arrays, images decoded on demand.

Symbols: I images, B boxes of all images, K categories. The boxes of image i are `offsets[i]:offsets[i + 1]`.
No Python object per image or box outlives the reading: those are copied page by page into every loader
process as their reference counts change.
"""

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from fpn.data.coco_file import CocoFile, Crowds, read_json
from fpn.data.conventions import another_convention
from fpn.data.decoding import Exif, read_image
from fpn.data.fields import identity
from fpn.data.file_names import find_files
from fpn.data.proposals import Proposals
from fpn.data.samplers import Pick
from fpn.data.transforms import Sample, Transform
from fpn.errors import InputError
from fpn.types import Categories, Targets

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
    """(I,) as numbers, which ids of 64 bits are themselves (`fpn.data.coco_file`)."""
    written_ids: NDArray[np.str_]
    """(I,) the file's own ids in JSON; (0,) where they are `image_ids`."""
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
    told: tuple[str, ...] = ()
    """What was taken that is not in the plain format, or is odd: a line each, to be shown."""

    def __len__(self) -> int:
        return len(self.image_ids)

    def written_id(self, index: int) -> int | str:
        """The file's own id of image `index`."""
        if not len(self.written_ids):
            return int(self.image_ids[index])
        written: int | str = json.loads(self.written_ids[index])
        return written

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

    def repeat_factors(self, threshold: float) -> NDArray[np.float64]:
        """(I,) how often each image is to come in an epoch, for rare classes to be seen more often.

        LVIS (Gupta et al., 2019, Appendix B.2): of class c in a share f(c) of the images, r(c) is
        max(1, √(threshold / f(c))), and r of an image the greatest of its classes.
        """
        if not threshold:
            return np.ones(len(self))
        image_of_box = np.repeat(np.arange(len(self)), np.diff(self.offsets))
        classes = len(self.categories.ids) + 1
        # Of an image and a class, one however many objects.
        image, label = np.divmod(np.unique((image_of_box * classes + self.labels)[~self.crowd]), classes)
        frequency = np.bincount(label, minlength=classes) / len(self)
        factors = np.ones(len(self))
        np.maximum.at(factors, image, np.sqrt(threshold / frequency[label]))
        return factors

    def with_objects(self) -> "Annotations":
        """Only the images with a box to learn from.

        Raises:
            InputError: there is none.
        """
        kept = self.select(self.has_objects())
        if not len(kept) and len(self.boxes):
            raise InputError(
                f"{self.path}: no image has an object to learn from: all {len(self.boxes):,} have iscrowd 1,"
                " as brush tools write it; set data.crowds to objects if each is one object"
            )
        if not len(kept):
            raise InputError(f"{self.path}: no image has an object to learn from, that is no crowd region")
        return kept

    def classed_as(self, categories: Categories, source: Path) -> "Annotations":
        """The same with the classes of another file.

        Categories that only one of them lists are fine as long as they have no object here.

        Args:
            categories: those of the other file.
            source: its path, for messages.

        Raises:
            InputError: an id is of two names, or there are objects of a category that the other lacks.
        """
        if clash := self.categories.clash(categories):
            raise InputError(f"{self.path} and {source} list different categories: {clash}")
        places = {id_: place for place, id_ in enumerate(categories.ids, start=1)}
        labels = np.array([0, *(places.get(id_, 0) for id_ in self.categories.ids)])[self.labels]
        if (unlisted := labels == 0).any():
            label = int(self.labels[unlisted][0])
            id_, name = self.categories.ids[label - 1], self.categories.names[label - 1]
            raise InputError(
                f"{self.path}: {(self.labels == label).sum()} objects are of category {id_!r} {name!r}, which"
                f" {source} does not list; list it there, or leave them out"
            )
        return replace(self, categories=categories, labels=labels)

    def labelled_by_id(self) -> "Annotations":
        """The same with category ids as labels, gaps and all, as torchvision's references number classes.

        Raises:
            InputError: if ids are not positive, or too large to count up to.
        """
        categories = labels_as_ids(self.categories, self.path)
        numbers = np.array([*map(int, self.categories.ids)], dtype=np.int64)
        return replace(self, categories=categories, labels=numbers[self.labels - 1])

    def found_in(
        self, folder: Path, allowed: int | None, tell: Callable[[str], object] = lambda line: None
    ) -> "Annotations":
        """The same with the names that the images' files have in a folder; none is opened.

        Arguments and errors are those of `find_files`.
        """
        names = find_files(self.path, folder, self.file_names.tolist(), allowed, tell)
        return replace(self, file_names=np.array(names, dtype=np.str_))

    def select(self, keep: NDArray[np.bool_]) -> "Annotations":
        """Only the images where `keep` (I,) is true."""
        counts = np.diff(self.offsets)
        of_images, of_boxes = ["image_ids", "file_names", "sizes"], ("boxes", "labels", "crowd")
        of_images += ["written_ids"] if len(self.written_ids) else []
        kept = {name: getattr(self, name)[keep] for name in of_images}
        kept |= {name: getattr(self, name)[np.repeat(keep, counts)] for name in of_boxes}
        return replace(self, offsets=np.concatenate([[0], np.cumsum(counts[keep])]), **kept)


@dataclass(eq=False)
class CocoDataset(Dataset[Sample]):
    """Images with their ground truth, by pick.

    A photo is turned as its EXIF orientation says, if the annotations' size is that of the photo turned.

    Args:
        annotations: the images, all of which the data set has.
        image_folder: where their file names start.
        transform: makes the network's input; whatever it draws, it draws from the pick's seed.
        proposals: a file that lists all of these images, for samples to have theirs.
        max_unreadable: this many files may be unreadable: missing, broken, or of another size than the
            annotations say. The next image that can be read takes the place of theirs; samples name
            them, and `note_unreadable` sees whether there are more. None replaces no image.
        exif: ignore takes all photos as stored.
    """

    annotations: Annotations
    image_folder: Path
    transform: Transform
    proposals: Proposals | None = None
    max_unreadable: int | None = None
    exif: Exif = "apply"
    _unreadable: dict[str, None] = field(default_factory=dict, init=False)

    def __len__(self) -> int:
        return len(self.annotations)

    def file_of(self, pick: Pick) -> str:
        """The path of a pick's image."""
        return str(self.image_folder / str(self.annotations.file_names[pick.image]))

    def __getitem__(self, pick: Pick) -> Sample:
        """Load the image of a pick, or the next one that can be read, transformed as the pick would be.

        Raises:
            InputError: if a file is unreadable and none may be replaced, or too many in a row are; if an
                image's proposals are not numbers.
        """
        index, unreadable = pick.image, list[str]()
        while True:
            try:
                image = self.picture(index)
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

    def picture(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB of image `index`, in the frame that its boxes are given in.

        Raises:
            InputError: the file cannot be read, or is of another size than the annotations say.
        """
        path = self.image_folder / str(self.annotations.file_names[index])
        height, width = self.annotations.sizes[index].tolist()
        image = read_image(path, self.exif, (height, width))
        if image.shape[-2:] != (height, width):
            is_as = (
                "as stored (data.images.exif: ignore)" if self.exif == "ignore" else "as shown and as stored"
            )
            raise InputError(
                f"{path}: {image.shape[-1]} × {image.shape[-2]} pixels {is_as}, but"
                f" {self.annotations.path} says {width} × {height}"
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
        raise InputError(f"{lines[0]}; data.max_unreadable is the share of images that training does without")
    raise InputError(
        f"{len(lines)} of the {len(annotations):,} images of {annotations.path} cannot be read, where"
        f" data.max_unreadable allows for {allowed}: {'; '.join([*lines[:3], *['…'] * (len(lines) > 3)])}"
    )


def read_annotations(
    path: Path,
    need_objects: bool = True,
    trust_boxes: bool = False,
    image_folder: Path | None = None,
    crowds: Crowds = "regions",
) -> Annotations:
    """Read an instances file in COCO's format.

    Boxes are clipped to their image; degenerate ones are dropped and counted. An annotation without `iscrowd`
    is taken for a single object. Masks are read only where there is no bbox.

    Args:
        path: the JSON file.
        need_objects: False also takes a file without annotations, as COCO's image_info files of
            unlabelled images are.
        trust_boxes: take boxes as they are also where they look like another convention's.
        image_folder: where file names start, to read the sizes of images of which the file states none.
        crowds: what `iscrowd` 1 says of an annotation.

    Raises:
        InputError: if the file is missing, is not in the format, contradicts itself, or has so many
            odd boxes that they are probably written in another convention.
    """
    content = read_json(Path(path), "annotation")
    if not need_objects and isinstance(content, dict) and content.get("annotations") is None:
        content["annotations"] = []
    return annotations_of(CocoFile(path, content, image_folder, crowds), trust_boxes)


def labels_as_ids(categories: Categories, path: Path) -> Categories:
    """Classes whose labels are their ids; `path`, of their file, is for messages.

    Raises:
        InputError: ids are not positive integers, or too large to count up to.
    """
    ids = [*map(identity, categories.ids)]
    if wrong := [id_ for id_ in ids if not isinstance(id_, int) or not 1 <= id_ <= MAX_LABEL]:
        raise InputError(
            f"{path}: category ids as {wrong[0]!r} cannot be labels, "
            f"which are 1…{MAX_LABEL}; set data.label_gaps to false"
        )
    return categories.with_gaps()


def read_categories(path: Path) -> Categories | None:
    """The classes of an annotation file, without its images and annotations.

    None where these have to be read to know the classes: not all categories may be classes, or the list of
    them does not lie as it usually does.
    """
    content = path.read_bytes()
    after = content[content.rfind(b'"categories"') :][:1_000_000].decode(errors="replace")
    try:
        listed, _ = json.JSONDecoder().raw_decode(after.partition(":")[2].lstrip())
        file = CocoFile(path, {"images": [], "annotations": [], "categories": listed})
        file.categories.refuse("id", "name")
    except ValueError:
        return None
    if not len(file.categories) or file.placeholder.any():
        return None
    return _categories(file, np.argsort(file.category_ids))


def annotations_of(file: CocoFile, trust_boxes: bool = False) -> Annotations:
    """What `read_annotations` makes of a file, with its errors."""
    file.images.refuse("id", "height", "width", "file_name", "file_name inside")
    file.annotations.refuse()
    file.categories.refuse("id", "name")
    for entries in (file.images, file.categories):
        if not len(entries):
            raise InputError(f"{file.source}: the list {entries.name!r} is empty")
    # Only scoring needs the areas: to refuse them then, after hours of training, would be late.
    file.annotations.refuse("image_id", "category_id", "bbox", "iscrowd", "area")
    boxes, usable = file.clipped
    if not trust_boxes and (why := another_convention(file)):
        raise InputError(
            f"{file.source}: {why}, where a bbox is [x, y, width, height] in pixels: convert them, "
            "or set data.trust_boxes to true if they are meant"
        )
    order = np.argsort(file.image, kind="stable")
    order = order[usable[order]]
    counts = np.bincount(file.image[order], minlength=len(file.image_ids))
    by_id = np.argsort(file.category_ids)
    by_id = by_id[~file.placeholder[by_id]]
    written = [*map(json.dumps, file.listed_images.written)] if file.listed_images.as_written else []
    label = np.zeros(len(file.category_ids), dtype=np.int64)
    label[by_id] = np.arange(1, len(by_id) + 1)
    return Annotations(
        path=Path(file.source),
        categories=_categories(file, by_id),
        image_ids=file.image_ids,
        written_ids=np.array(written, dtype=np.str_),
        file_names=file.file_names.astype(np.str_),
        sizes=file.sizes.astype(np.int32),
        offsets=np.concatenate([[0], np.cumsum(counts)]),
        boxes=boxes[order],
        labels=label[file.category[order]],
        crowd=file.crowd[order],
        degenerate=int((~usable).sum()),
        told=tuple(_told(file)),
    )


def _categories(file: CocoFile, places: NDArray[np.int64]) -> Categories:
    columns = (file.listed_categories.written, file.category_names)
    return Categories(*(tuple(column[places].tolist()) for column in columns))


def _told(file: CocoFile) -> Iterator[str]:
    """What training takes that is not in the plain format."""
    for name in file.category_names[file.placeholder]:
        yield f"category 0, {name!r}, has no object, and is left out of the classes"
    counts = {
        "annotation ids are missing or repeated, which training never needs": file.listed_annotations.lost,
        "boxes are those of the masks, as there is no bbox": int(file.from_mask.sum()),
        "boxes are turned by an attribute: those around them stand for them": file.annotations.rotated,
        "annotations have no area, for which that of the box stands": file.annotations.absent("area"),
        "images state no size, which is read from the file": int(file.measured.sum()),
        "images have no file_name, but the end of their coco_url": int(file.from_url.sum()),
        "numbers, or boxes of some, are written as strings": file.images.spelt + file.annotations.spelt,
    }
    yield from (f"{number:,} {what}" for what, number in counts.items() if number)
    if number := int(file.areas_replaced.sum()):
        yield f"{number:,} areas of 0 or less, for which those of the boxes stand"
