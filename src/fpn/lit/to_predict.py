"""The images of a prediction: files and folders of them, or those that an annotation file lists."""

import mimetypes
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from fpn.checkpoints import Trained
from fpn.console import say
from fpn.data.coco import CocoDataset, read_annotations, refuse_unreadable, tolerated
from fpn.data.decoding import Exif, is_image, read_image
from fpn.data.proposals import file_hash
from fpn.data.results import RESULTS, Listed
from fpn.data.transforms import as_stored
from fpn.errors import InputError
from fpn.lit.unfinished import UNFINISHED
from fpn.types import Size


class Files:
    """Image files, with ids of their own: the numbers that name them, or counted from 1.

    Args:
        names: of files, and of folders, in which all images are taken but for those that predictions drew.

    Raises:
        InputError: there are none.
    """

    def __init__(self, names: Sequence[str]) -> None:
        paths = dict.fromkeys(path for path in map(os.path.abspath, _image_files(names)) if _is_text(path))
        if not paths:
            raise InputError("no images whose names are UTF-8: rename them")
        # Names start where all of them lie, so that other programs find them with one folder.
        starts = [Path(name) if Path(name).is_dir() else Path(name).parent for name in names]
        self.folder = Path(os.path.commonpath([start.absolute() for start in starts]))
        relative = [Path(os.path.relpath(path, self.folder)) for path in paths]
        if not any(start.is_absolute() for start in starts):
            self.folder = Path(os.path.relpath(self.folder))  # as messages name it
        self.names = np.array([path.as_posix() for path in relative], dtype=np.str_)
        """(I,) relative to the folder; an array, which processes that load images share."""
        self.about = [str(self.folder.resolve())]
        """What tells them from others, besides their names."""
        numbers = [int(path.stem) for path in relative if path.stem.isdecimal() and len(path.stem) < 19]
        counted = len(set(numbers)) < len(relative)
        self.ids = np.array(range(1, len(relative) + 1) if counted else numbers, dtype=np.int64)

    def picture(self, place: int) -> Tensor:
        """An image as viewers show it; InputError if it cannot be read."""
        return read_image(self.folder / str(self.names[place]))

    def note(self, unreadable: Sequence[str]) -> None:
        """Tell of images that are left out, a line for each."""
        for line in unreadable:
            say(f"left out: {line}")

    def check(self, absent: Sequence[int]) -> None:
        """Raise InputError if these are all."""
        if len(absent) == len(self.names):
            raise InputError(
                f"none of the {len(absent)} images can be read, as {self.folder / str(self.names[0])}"
            )

    def listed(self, place: int, size: Size | None) -> Listed | None:
        """An image that can be read."""
        return Listed(int(self.ids[place]), str(self.names[place]), *size) if size else None


def _is_text(path: str) -> bool:
    """Whether a name can be written into a file; else a line tells of it."""
    try:
        path.encode()
    except UnicodeEncodeError:
        say(f"left out: {path.encode(errors='replace').decode()}: its name is not UTF-8; rename it")
        return False
    return True


class OfAnnotations:
    """The images that an annotation file lists, under its ids.

    Args:
        trained: what is to look at them.
        path: the file.
        folder: where its file names start.
        share: of the images that may be unreadable; None for none of them.

    Raises:
        InputError: the file cannot be read, is of other categories, or lists images that are missing.
    """

    def __init__(self, trained: Trained, path: Path, folder: Path, share: float | None = None) -> None:
        exif: Exif = "apply" if trained.turns_photos else "ignore"
        annotations = read_annotations(path, need_objects=False, trust_boxes=True, image_folder=folder)
        clash = trained.categories.listed().clash(annotations.categories)
        if clash and trained.detector.finds_objects:
            raise InputError(f"{path} lists other categories than the checkpoint was trained for: {clash}")
        allowed = None if share is None else tolerated(share, len(annotations))
        annotations = annotations.found_in(folder, allowed, say)
        self.images = CocoDataset(annotations, folder, as_stored, max_unreadable=allowed, exif=exif)
        self.names = annotations.file_names
        self.about = [file_hash(path), str(folder.resolve()), exif]

    def picture(self, place: int) -> Tensor:
        """An image in the frame of its annotations; InputError if it cannot be read."""
        return self.images.picture(place)

    def note(self, unreadable: Sequence[str]) -> None:
        """Tell of images that cannot be read, a line for each; InputError if they are too many."""
        if unreadable and self.images.max_unreadable is None:
            raise InputError(unreadable[0])
        self.images.note_unreadable(unreadable, "listed without boxes", say)

    def check(self, absent: Sequence[int]) -> None:
        """Raise InputError if these are too many."""
        lines = [str(self.images.image_folder / str(self.names[place])) for place in absent]
        refuse_unreadable(lines, self.images.max_unreadable or 0, self.images.annotations)

    def listed(self, place: int, size: Size | None) -> Listed | None:
        """An image as its file lists it, also one that cannot be read."""
        annotations = self.images.annotations
        height, width = size or annotations.sizes[place].tolist()
        return Listed(annotations.written_id(place), str(self.names[place]), height, width)


Images = Files | OfAnnotations
"""I images by their places, 0 to I - 1."""


def picture_names(names: Sequence[str]) -> list[str]:
    """Names of JPEG files, each another, after those of images: a/b.jpg, or a/b.png.jpg of a/b.png."""
    own = {name for name in names if _is_jpeg(name)}  # which come first, and keep theirs
    taken, pictures = set(own), []
    for name in names:
        if name in own:
            own.remove(name)
        else:
            while name in taken or not _is_jpeg(name):
                name += ".jpg"
            taken.add(name)
        pictures.append(name)
    return pictures


def _is_jpeg(name: str) -> bool:
    return name.lower().endswith((".jpg", ".jpeg"))


def _image_files(names: Sequence[str]) -> list[Path]:
    """The files of these names, and the images in folders of these names."""
    files: list[Path] = []
    passed: Counter[str] = Counter()
    for name in names:
        path = Path(name)
        if path.is_dir():
            inside = sorted(_below(path))
            images = [file for file in inside if not file.name.startswith(".") and is_image(file)]
            for file in {*inside}.difference(images):
                hidden = file.name.startswith(".")
                passed["hidden" if hidden else file.suffix.lower() or "without an ending"] += 1
            files += images
        else:
            if reason := _refusal(name):
                raise InputError(f"{name} is {reason}")
            files.append(path)
    kinds = ", ".join(f"{number:,} {kind}" for kind, number in passed.most_common())
    if not files:
        raise InputError(f"{', '.join(names)}: no images" + (f"; there are {kinds}" if kinds else ""))
    if kinds:
        say(f"passed over, not being images: {kinds}")
    return files


def _refusal(name: str) -> str:
    """What is wrong with what is neither a folder nor an image, nor a broken one; empty for an image."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]+://", name):
        return "an address: fpn predict reads files, so download it and name the file"
    if not Path(name).is_file():
        return "neither an image nor a folder"
    if is_image(Path(name)):
        return ""
    if (mimetypes.guess_type(name)[0] or "").startswith("video/"):
        return f"a video: make images of it, as by `ffmpeg -i {name} frames/%06d.jpg`, and name their folder"
    return "no image: name image files, or a folder of them"


def _below(folder: Path) -> Iterator[Path]:
    seen = {folder.resolve()}
    for place, folders, names in os.walk(folder, followlinks=True):
        # A folder that is linked is looked at too, each once.
        inside = {name: Path(place, name).resolve() for name in sorted(folders)}
        folders[:] = [name for name, real in inside.items() if real not in seen]
        seen.update(inside.values())
        if UNFINISHED in folders or {*RESULTS} <= {*names}:
            drawn = {UNFINISHED, "pictures"}.intersection(folders)
            folders[:] = [name for name in folders if name not in drawn]
            if "pictures" in drawn:
                say(f"passed over: {Path(place, 'pictures')}, which a prediction has drawn")
        yield from (Path(place, name) for name in names)
