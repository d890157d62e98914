"""The image files of a data set, by their headers alone or decoded as training does."""

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from fpn.console import tracked
from fpn.data.coco import Annotations, refuse_unreadable, tolerated
from fpn.data.decoding import (
    DEEP,
    SIDEWAYS,
    Exif,
    header_of,
    is_turned,
    opened,
    orientation_of,
    read_image,
    refusal_of,
)
from fpn.data.file_names import locate
from fpn.data.findings import Finding
from fpn.devices import cpu_cores
from fpn.errors import InputError

T = TypeVar("T")
_KINDS = {
    "missing": "missing",
    "unreadable": "unreadable",
    "unsupported": "several in a file, or of colours without a stated range",
    "other_size": "of another size than stated",
}
"""Why training cannot take a file, in the audit's words."""
HUGE = 50 * 10**6
"""Pixels above which the audit tells of a photo."""
_GOOD_TO_KNOW = {
    "turned": "turned or mirrored as their EXIF orientation says",
    "left_turned": "with an EXIF orientation, and taken as stored",
    "large": f"above {HUGE // 10**6} megapixels, which take a loading process 3 bytes a pixel and more",
    "grey": "greyscale",
    "cmyk": "CMYK",
}
LOOKED_AT = 1000
"""The most files whose headers are read as training begins."""
_RESPELLED = "spelled otherwise than the file that is taken for it"


class Inspected(NamedTuple):
    """An image as it is stored."""

    height: int = 0
    width: int = 0
    fault: str = ""
    """Why training cannot take it, a key of `_KINDS`."""
    reason: str = ""
    """The same in words."""
    orientation: int = 1
    """EXIF's."""
    turned: bool = False
    """Whether it is turned or mirrored by that; the size is then that of the image so shown."""
    left_turned: bool = False
    """Whether it is taken as stored although viewers show it otherwise."""
    grey: bool = False
    cmyk: bool = False

    @property
    def large(self) -> bool:
        """Whether it needs much memory."""
        return self.height * self.width > HUGE

    def against(self, height: int, width: int, exif: Exif) -> "Inspected":
        """The same as training takes it, with its fault if it is of another size than this."""
        stored, stated = (self.height, self.width), (height, width)
        turned = exif == "apply" and is_turned(self.orientation, stored, stated)
        shown = stored[::-1] if turned and self.orientation in SIDEWAYS else stored
        one = self._replace(
            height=shown[0], width=shown[1], turned=turned, left_turned=self.orientation > 1 and not turned
        )
        if self.fault or shown == stated:
            return one
        reason = f"{shown[1]} × {shown[0]} pixels, not {width} × {height}"
        return one._replace(fault="other_size", reason=reason)


def turned_line(annotations: Annotations, folder: Path, exif: Exif) -> str:
    """What becomes of photos with an EXIF orientation, by the headers of some files; empty without any."""
    places = np.unique(np.linspace(0, len(annotations) - 1, LOOKED_AT).round().astype(int)).tolist()
    counts = {True: 0, False: 0}
    for place in places:
        stored, orientation = header_of(folder / str(annotations.file_names[place])) or ((0, 0), 1)
        if orientation > 1:
            height, width = annotations.sizes[place].tolist()
            counts[exif == "apply" and is_turned(orientation, stored, (height, width))] += 1
    fates = (
        f"{counts[True]:,} are turned or mirrored as their EXIF orientation says, as viewers show them"
        " (data.images.exif ignore takes them as stored)",
        f"{counts[False]:,} are taken as stored, whatever their EXIF orientation",
    )
    told = " and ".join(fate for fate, any_ in zip(fates, counts.values(), strict=True) if any_)
    of = f"the {len(annotations):,}" if len(places) == len(annotations) else f"{len(places):,} looked at"
    return told and f"of {of} images {told}"


def refuse_validation(annotations: Annotations, folder: Path, faults: dict[int, str]) -> None:
    """Raise the InputError of a run that scores all images."""
    annotations.found_in(folder, None)
    if faults:
        raise InputError(next(iter(faults.values())))


def look_at_files(
    folder: Path,
    names: dict[int, str],
    sizes: NDArray[np.int64],
    decode: bool,
    num_workers: int | None,
    exif: Exif,
) -> tuple[dict[str, Finding], dict[int, str]]:
    """Look at the files of images.

    Args:
        folder: where their names start.
        names: by the images' places in the annotation file.
        sizes: (I, 2) heights and widths that the annotation file states.
        decode: read the files wholly.
        num_workers: processes that read, 0 for none; by default one for each core.
        exif: as of `read_image`.

    Returns:
        What was found, by key, and what training cannot take, a line for each by its place.
    """
    listed = [*names.values()]
    located = locate(folder, listed)
    paths = [f"{folder}/{name}" for name in located.names]
    found = of_each(paths, partial(inspect, decode=decode), num_workers, "images")
    files = {
        place: one.against(int(sizes[place, 0]), int(sizes[place, 1]), exif)
        for place, one in zip(names, found, strict=True)
    }
    lines = {place: f"{names[place]}: {one.reason}" for place, one in files.items() if one.fault}
    findings = {
        key: Finding(what, [line for place, line in lines.items() if files[place].fault == key])
        for key, what in _KINDS.items()
    }
    findings["respelled"] = Finding(_RESPELLED, [listed[i] for i in located.respelled], wrong=False)
    for key, what in _GOOD_TO_KNOW.items():
        found_so = [names[place] for place, one in files.items() if getattr(one, key)]
        findings[key] = Finding(what, found_so, wrong=False)
    return findings, {place: f"{folder}/{line}" for place, line in lines.items()}


def refuse_training(
    annotations: Annotations, folder: Path, faults: dict[int, str], max_unreadable: float
) -> None:
    """Raise the InputError of a run that has met all unreadable images with an object."""
    has_objects, read = annotations.has_objects(), annotations.with_objects()
    read.found_in(folder, tolerated(max_unreadable, len(read)))
    lines = dict.fromkeys(line for place, line in faults.items() if has_objects[place])
    refuse_unreadable([*lines], tolerated(max_unreadable, len(read)), read)


def inspect(path: str, decode: bool) -> Inspected:
    """Read an image file's header, and the rest of it if that is asked for or the header is odd."""
    if not os.path.isfile(path):  # noqa: PTH113 - a Path for each of COCO's files would take seconds
        return Inspected(fault="missing", reason="no such image file")
    odd = ""
    try:
        with opened(path) as image:
            found = Inspected(image.height, image.width, orientation=orientation_of(image))
            grey = image.mode in ("1", "L", "LA", "I", *DEEP)
            found = found._replace(grey=grey, cmyk=image.mode == "CMYK")
            if refusal_of(image):
                odd = "unsupported"
    except Exception:  # PIL's plugins raise anything at all on broken files
        found, odd = Inspected(), "unreadable"
    if not (decode or odd):
        return found
    try:
        _, height, width = read_image(Path(path), exif="ignore").shape
    except InputError as error:
        return found._replace(fault=odd or "unreadable", reason=str(error).removeprefix(f"{path}: "))
    return found._replace(height=height, width=width)


def of_each(paths: Sequence[str], read: Callable[[str], T], num_workers: int | None, words: str) -> list[T]:
    """What a function makes of each file, read by processes: by default one for each core.

    Args:
        paths: of the files.
        read: what it is told by.
        num_workers: processes, 0 for none.
        words: of the progress bar.
    """
    loader: Iterable[list[T]] = DataLoader(
        paths,  # type: ignore[arg-type]
        batch_size=32,
        num_workers=cpu_cores() if num_workers is None else num_workers,
        collate_fn=partial(_read_some, read=read),
    )
    return [one for some in tracked(loader, words) for one in some]


def _read_some(paths: list[str], read: Callable[[str], T]) -> list[T]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PIL's, of huge images and broken EXIF data
        return [read(path) for path in paths]
