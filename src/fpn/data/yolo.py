"""YOLO's data sets, read as Ultralytics documents them: a YAML file, images, a text file of boxes for each.

Label Studio and CVAT (YOLO 1.1) write no YAML file, but one with a name in each line.

Converter libraries were tried, and do less: globox 2.9 keeps boxes exactly, but takes one folder of labels
and no YAML file; supervision 0.31 rounds to float32 and brings OpenCV; datumaro asks for Pillow below 13.

A row is `class x y w h`: the centre and size of a box in shares of the image's width and height; or, of a
segment, `class x1 y1 x2 y2 x3 y3 …`, of which the box around is taken, as Ultralytics does.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fpn.console import tracked
from fpn.data.converted import Converted
from fpn.data.decoding import image_endings
from fpn.errors import InputError
from fpn.words import read_text, read_yaml

_SPLITS = {"train": ("train",), "val": ("val", "valid", "validation"), "test": ("test",)}
_NAMES_ALONE = {
    "classes.txt": {"train": "images/train", "val": "images/val", "test": "images/test"},
    "obj.names": {"train": "train.txt", "val": "valid.txt", "test": "test.txt"},
}
"""Files of names, and where the images of each split may lie beside them."""
_MOST = 100_000
"""Classes that a file may number, so that one line of a file does not fill the memory."""
_LARGEST = 2.0
"""Of a box that is written in shares, no number is greater, even where it leaves its image."""


def description_file(root: Path) -> Path | None:
    """The file that describes a data set: the root, or the first in it that has names and training images."""
    files = [root] if root.is_file() else sorted(root.glob("*.y*ml"), key=lambda file: file.stem != "data")
    kept = [file for file in files if file.suffix in (".yaml", ".yml")]
    kept += [root / name for name in _NAMES_ALONE if (root / name).is_file()]
    return next((file for file in kept if {"names", "train"} <= _described(file).keys()), None)


def images_of(file: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """The image files of each split that such a file has, and what there is to say of them.

    Test images that are not there, as in many exports, or that all lack boxes, as COCO's, are left out.

    Raises:
        InputError: a folder or list of other images is not there, or has none.
    """
    described, found, notes = _described(file), dict[str, list[Path]](), list[str]()
    for split, keys in _SPLITS.items():
        if entry := next((described[key] for key in keys if described.get(key)), None):
            entries = entry if isinstance(entry, list) else [entry]
            places = [_place(file, one, needed=split != "test") for one in entries]
            paths = [*dict.fromkeys(one for place in places if place for one in _listed(file, place))]
            if split != "test" and not paths:
                raise InputError(f"{file}: {split!r} is {entry!r}, where no image lies")
            absent = None in places
            if split == "test" and (absent or not any(label_file(path).is_file() for path in paths)):
                notes.append(f"test is left out: {entry!r} {'is not there' if absent else 'has no boxes'}")
            else:
                found[split] = paths
    return found, notes


def label_file(image: Path) -> Path:
    """The boxes of an image: below `labels` in place of the last folder `images`, else beside it."""
    beside = image.with_suffix(".txt")
    *folders, name = beside.parts
    if "images" in folders:
        folders[len(folders) - 1 - folders[::-1].index("images")] = "labels"
    usual = Path(*folders, name)
    return beside if beside.is_file() and not usual.is_file() else usual


def read_yolo(file: Path, images: list[Path], folder: Path) -> tuple[dict[str, Any], list[str]]:
    """Images in COCO's format, and what there is to say of them. Class 0 is category 1, and so on.

    Args:
        file: that describes the set.
        images: their files.
        folder: what file names shall be relative to.

    Raises:
        InputError: a row is none of YOLO's, or of no class; no image has a file of boxes; many images are
            unreadable.
    """
    described = _described(file)
    names = _names(file, described["names"])
    if not any(label_file(image).is_file() for image in images):
        raise InputError(
            f"{file}: no image has a file of boxes: {label_file(images[0])} and others are not there"
        )
    made = Converted(file, names)
    for image in tracked(images, "YOLO"):
        if made.add_image(image, folder):
            width, height = made.size
            for kind, (x1, y1, x2, y2) in _rows(label_file(image), len(names), "kpt_shape" in described):
                made.add_object(kind, (x1 * width, y1 * height, x2 * width, y2 * height))
    return made.content()


def _described(file: Path) -> dict[str, Any]:
    if beside := _NAMES_ALONE.get(file.name):
        there = {split: place for split, place in beside.items() if (file.parent / place).exists()}
        if file.name == "classes.txt":
            if not all((file.parent / folder).is_dir() for folder in ("images", "labels")):
                return {}  # which other formats have too
            there = {"train": "images", **there}
        return {"names": [*filter(None, map(str.strip, read_text(file).splitlines()))], **there}
    content = read_yaml(file)
    return content if isinstance(content, dict) else {}


def _names(file: Path, names: Any) -> list[str]:
    """The names in the order of the classes, of a list or of an object by number."""
    if isinstance(names, list):
        names = dict(enumerate(names))
    try:
        named = {int(key): str(name) for key, name in names.items()}
    except (AttributeError, ValueError):
        named = {}
    if not named or min(named) < 0:
        raise InputError(f"{file}: 'names' is neither a list of names nor an object of them by number")
    if max(named) >= _MOST:
        raise InputError(f"{file}: 'names' has a class {max(named)}: numbers go up to {_MOST - 1}")
    # A class that has no name has its number.
    return [named.get(number, str(number)) for number in range(max(named) + 1)]


def _bases(file: Path) -> list[Path]:
    return [file.parent / str(_described(file).get("path") or ""), file.parent]


def _place(file: Path, entry: Any, needed: bool) -> Path | None:
    """A folder, or a text file that lists images."""
    bases = _bases(file)
    path = _there(str(entry), bases)
    if path is None and needed:
        where = " and ".join(dict.fromkeys(map(str, bases)))
        raise InputError(f"{file}: {entry!r}: no such folder, or list of images, in {where}; mend the path")
    return path


def _listed(file: Path, path: Path) -> Iterator[Path]:
    """The images of a folder and all below, or of a text file that lists them."""
    if path.is_dir():
        yield from sorted(one for one in path.rglob("*") if one.suffix.lower() in image_endings())
        return
    bases = [path.parent, *_bases(file)]
    for line in filter(None, map(str.strip, read_text(path).splitlines())):
        image = _there(line, bases)
        if image is None:
            raise InputError(f"{path}: {line}: no such image; mend the list")
        yield image


def _there(path: str, bases: list[Path]) -> Path | None:
    """Where a path leads from the first base where it leads to something.

    Exports of Roboflow have `../train/images` where `train/images` is meant, and CVAT's `data/` in front.
    """
    inner = re.sub(r"^((\.\./)+|data/)", "", path.replace("\\", "/"))
    places = [Path(os.path.normpath(base / one)) for one in (path, inner) for base in bases]
    return next((place for place in places if place.exists()), None)


def _rows(
    label: Path, classes: int, keypoints: bool
) -> Iterator[tuple[int, tuple[float, float, float, float]]]:
    """The class of each row, and its left, top, right and bottom as shares; of no file, none."""
    if not label.is_file():
        return
    for number, line in enumerate(read_text(label).splitlines(), 1):
        if not line.strip():
            continue
        try:
            kind, *shares = map(float, line.split())
        except ValueError:
            raise InputError(f"{label}: line {number}: {line.strip()!r} is not numbers alone") from None
        shares = shares[:4] if keypoints else shares
        segment = len(shares) >= 6 and len(shares) % 2 == 0
        if len(shares) != 4 and not segment:
            wanted = "give class, x, y, width and height, or class and a segment's corners"
            raise InputError(f"{label}: line {number} has {len(shares) + 1} numbers; {wanted}")
        if kind not in range(classes):
            raise InputError(f"{label}: line {number}: class {kind:g} has no name; there are {classes} names")
        if not all(abs(share) <= _LARGEST for share in shares):
            wanted = "give shares of the image's width and height, not pixels"
            raise InputError(f"{label}: line {number}: {line.strip()!r}: {wanted}")
        if segment:
            yield int(kind), (min(shares[::2]), min(shares[1::2]), max(shares[::2]), max(shares[1::2]))
        else:
            x, y, width, height = shares
            yield int(kind), (x - width / 2, y - height / 2, x + width / 2, y + height / 2)
