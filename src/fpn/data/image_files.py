"""The image files of a data set, by their headers alone or decoded as training does."""

import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageFile
from rich.console import Console
from rich.progress import track
from torch.utils.data import DataLoader, Dataset

from fpn.data.coco import Annotations, read_image, refuse_unreadable, tolerated
from fpn.data.findings import Finding, Findings
from fpn.devices import cpu_cores
from fpn.errors import InputError

_FORMATS = ("GIF", "JPEG", "PNG", "WEBP")
"""What `read_image` decodes."""
_AT_ONCE = 32


class Inspected(NamedTuple):
    """An image as it is stored."""

    height: int = 0
    width: int = 0
    fault: Literal["", "missing", "unreadable", "unsupported"] = ""
    """Why training cannot read it; unsupported are images of more than 8 bits, or several at once."""
    reason: str = ""
    """The same in words."""
    turned: bool = False
    """Whether viewers show it turned or mirrored, by its EXIF orientation."""
    grey: bool = False
    cmyk: bool = False


class ImageFiles:
    """The files of images.

    Args:
        folder: where their names start.
        names: of the I images, by their place in the annotation file.
        sizes: (I, 2) heights and widths that the annotation file states.
        decode: read the files wholly.
        num_workers: of `inspect_all`.
    """

    def __init__(
        self,
        folder: Path,
        names: dict[int, str],
        sizes: NDArray[np.int64],
        decode: bool,
        num_workers: int | None,
    ) -> None:
        self.folder, self.names, self.sizes = folder, names, sizes
        found = inspect_all([f"{folder}/{name}" for name in names.values()], decode, num_workers)
        self.found = dict(zip(names, found, strict=True))
        self.faults = {place: line for place, one in self.found.items() if (line := self._fault(place, one))}
        """By place, what of an image training cannot take."""

    def findings(self) -> Findings:
        """What was found among the files."""
        found = {
            key: Finding(what, [v for place, v in self.faults.items() if self.found[place].fault == fault])
            for fault, key, what in (
                ("missing", "missing", "missing"),
                ("unreadable", "unreadable", "unreadable"),
                ("unsupported", "unsupported", "of more than 8 bits a colour, or several in a file"),
                ("", "other_size", "of another size than stated"),
            )
        }
        for key, what in (
            ("turned", "with an EXIF orientation, which is not applied"),
            ("grey", "greyscale"),
            ("cmyk", "CMYK"),
        ):
            names = [self.names[place] for place, one in self.found.items() if getattr(one, key)]
            found[key] = Finding(what, names, wrong=False)
        return found

    def refusal(self, annotations: Annotations, max_unreadable: float) -> str:
        """Why training, which reads the images with objects, would stop; empty if it would not."""
        with_objects = annotations.has_objects()
        lines = [f"{self.folder}/{line}" for place, line in self.faults.items() if with_objects[place]]
        images = int(with_objects.sum())
        try:
            # What a run says that has met all of them.
            refuse_unreadable(
                list(dict.fromkeys(lines)), tolerated(max_unreadable, images), images, annotations.path
            )
        except InputError as error:
            return str(error)
        return ""

    def _fault(self, place: int, one: Inspected) -> str:
        height, width = self.sizes[place].tolist()
        if one.fault:
            return f"{self.names[place]}: {one.reason}"
        if (one.height, one.width) != (height, width):
            return f"{self.names[place]}: {one.width} × {one.height} pixels as stored, not {width} × {height}"
        return ""


def inspect(path: str, decode: bool) -> Inspected:
    """Read an image file's header, and the rest of it if that is asked for or the header is odd."""
    if not os.path.isfile(path):  # noqa: PTH113 - a Path for each of COCO's files would take seconds
        return Inspected(fault="missing", reason="no such image file")
    odd: Literal["", "unreadable", "unsupported"] = ""
    try:
        with Image.open(path, formats=_FORMATS) as image:
            found = _header(image)
            if _is_unsupported(image):
                odd = "unsupported"
    except Exception:  # PIL's plugins raise anything at all on broken files
        found, odd = Inspected(), "unreadable"
    if not (decode or odd):
        return found
    try:
        _, height, width = read_image(Path(path)).shape
    except InputError as error:
        return found._replace(fault=odd or "unreadable", reason=str(error).removeprefix(f"{path}: "))
    return found._replace(height=height, width=width)


def inspect_all(
    paths: Sequence[str], decode: bool = False, num_workers: int | None = None
) -> list[Inspected]:
    """`inspect` all of them, in their order.

    Args:
        paths: the files.
        decode: read them wholly.
        num_workers: processes that read; 0 reads in this one. By default one for each core.
    """
    if num_workers is None:
        num_workers = cpu_cores()
    loader = DataLoader(_Inspection(paths, decode), _AT_ONCE, num_workers=num_workers, collate_fn=list)
    batches = track(loader, "images", console=Console(stderr=True), disable=not sys.stderr.isatty())
    return [one for batch in batches for one in batch]


class _Inspection(Dataset[Inspected]):
    def __init__(self, paths: Sequence[str], decode: bool) -> None:
        self.paths, self.decode = paths, decode

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Inspected:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PIL's, of huge images and broken EXIF data
            return inspect(self.paths[index], self.decode)


def _header(image: Image.Image) -> Inspected:
    exif = Image.Exif()
    if data := image.info.get("exif"):  # image.getexif() would decode a PNG file
        exif.load(data)
    return Inspected(
        height=image.height,
        width=image.width,
        turned=exif.get(ExifTags.Base.Orientation, 1) in range(2, 9),
        grey=image.mode in ("1", "L", "LA", "I", "I;16"),
        cmyk=image.mode == "CMYK",
    )


def _is_unsupported(image: ImageFile.ImageFile) -> bool:
    if image.format == "PNG":
        return any("16" in str(tile[3]) for tile in image.tile)
    return image.format in ("GIF", "WEBP") and getattr(image, "n_frames", 1) > 1
