"""Pascal VOC's data sets: an XML file for each image, and lists of the images of each split.

Pixels are counted from 1 and the last one is in the box, as the devkit documents: a box from 1 to 640 covers
an image of 640 pixels, so left and top are less by one here. Programs that count from 0 write the same tags:
where more than one box in 1000 begins at 0, or a corner is a fraction, no set is VOC's own, and corners are
taken as they are.

Objects marked `difficult`, which VOC neither scores nor holds against a detector, become crowd regions, which
are neither object nor background. Converter libraries were tried: globox 2.9 keeps corners as they are,
supervision 0.31 decodes every image, and neither reads `difficult` or the lists of images.
"""

import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any, NamedTuple

from fpn.console import tracked
from fpn.data.converted import Converted
from fpn.data.decoding import image_endings
from fpn.errors import InputError
from fpn.types import Size
from fpn.words import read_text

MAX_AT_ZERO = 0.001
"""Share of the boxes that may begin before pixel 1, by mistake, in a set that counts from 1."""


_SIDES = ("xmin", "ymin", "xmax", "ymax")


class Folders(NamedTuple):
    """Where a data set lies."""

    annotations: Path
    images: Path
    lists: Path


def folders(root: Path) -> Folders | None:
    """Those of a root, or of the one `VOC…` in it or in its `VOCdevkit`.

    Raises:
        InputError: there are several.
    """
    homes = [root, *sorted(root.glob("VOC[0-9]*")), *sorted(root.glob("VOCdevkit/VOC[0-9]*"))]
    found = [home / name for home in homes for name in ("Annotations", "annotations")]
    found = [folder for folder in found if next(folder.glob("*.xml"), None)]
    if len({folder.parent for folder in found}) > 1:
        names = ", ".join(str(folder.parent.relative_to(root)) for folder in found)
        raise InputError(f"{root}: several Pascal VOC sets, {names}; give one of them as data.root")
    if not found:
        return None
    home = found[0].parent
    images = (home / name for name in ("JPEGImages", "images", "Images"))
    return Folders(found[0], next((one for one in images if one.is_dir()), home), home / "ImageSets" / "Main")


def splits(where: Folders) -> tuple[dict[str, list[Path]], list[str]]:
    """The XML files of each split, and what there is to say of them.

    They are those of its list; or all, as training images, where there are no lists. Where `train.txt` is not
    there, what `trainval.txt` has and `val.txt` has not is for training.

    Raises:
        InputError: an image of a list has no XML file.
    """
    lists = {name: where.lists / f"{name}.txt" for name in ("train", "val", "test", "trainval")}
    lists = {name: file for name, file in lists.items() if file.is_file()}
    found = {name: _of_list(file, where) for name, file in lists.items() if name != "trainval"}
    notes = []
    if "trainval" in lists and "train" not in lists:
        aside = {*found.get("val", ())}
        every = _of_list(lists["trainval"], where)
        found = {"train": [file for file in every if file not in aside], **found}
        if aside:
            notes.append("train is trainval.txt without the images of val.txt, as there is no train.txt")
    found = {name: files for name, files in found.items() if files}
    return found or {"train": sorted(where.annotations.glob("*.xml"))}, notes


def read_voc(files: dict[str, list[Path]], split: str, where: Folders) -> tuple[dict[str, Any], list[str]]:
    """The images of a split in COCO's format, and what there is to say of them.

    Categories and the way in which pixels are counted are those of all files.

    Args:
        files: the XML files of each split.
        split: which.
        where: the folders.

    Raises:
        InputError: a file is none of VOC's; many images are unreadable.
    """
    every = dict.fromkeys(file for some in files.values() for file in some)
    read = {file: _read(file) for file in tracked([*every], "Pascal VOC")}
    boxes = [one for objects in read.values() for one in objects.objects]
    names = sorted({one.name for one in boxes})
    at_zero = sum(min(one.corners[:2]) < 1 for one in boxes)
    fractions = any(value % 1 for one in boxes for value in one.corners)  # which no pixel has
    shift = int(at_zero <= MAX_AT_ZERO * len(boxes) and not fractions)
    there, difficult = {path.name: path for path in where.images.iterdir()}, 0
    by_stem = {path.stem: path for path in there.values() if path.suffix.lower() in image_endings()}
    made = Converted(where.annotations, names)
    for file in files[split]:
        image = there.get(read[file].image) or by_stem.get(file.stem) or where.images / f"{file.stem}.jpg"
        if made.add_image(image, where.images, read[file].size):
            for name, (x1, y1, x2, y2), hard in read[file].objects:
                made.add_object(names.index(name), (x1 - shift, y1 - shift, x2, y2), crowd=hard)
                difficult += hard
    content, notes = made.content()
    if difficult:
        notes.append(f"{difficult:,} difficult objects are crowd regions, neither object nor background")
    if not shift:
        notes.append(
            "pixels are counted from 0, not from 1: "
            + ("corners are fractions" if fractions else f"{at_zero:,} of {len(boxes):,} boxes begin there")
        )
    return content, notes


class _Object(NamedTuple):
    name: str
    corners: tuple[float, float, float, float]
    difficult: bool


class _Read(NamedTuple):
    image: str
    size: Size | None
    objects: list[_Object]


def _read(file: Path) -> _Read:
    try:
        root = ElementTree.fromstring(file.read_bytes())
    except OSError as error:
        raise InputError(f"{file}: cannot be read ({error.strerror})") from None
    except (ElementTree.ParseError, ValueError) as error:
        raise InputError(f"{file}: not an XML file: {error}") from None
    try:
        width, height = (int(float(root.findtext(f"size/{side}") or 0)) for side in ("width", "height"))
    except ValueError:
        width = height = 0
    size = (height, width) if width > 0 and height > 0 else None
    objects = []
    for place, one in enumerate(root.findall("object"), 1):
        name = (one.findtext("name") or "").strip()
        if not name:
            raise InputError(f"{file}: object {place} has no name")
        try:
            x1, y1, x2, y2 = (float(one.findtext(f"bndbox/{side}") or "") for side in _SIDES)
        except ValueError:
            sides = ", ".join(_SIDES)
            raise InputError(
                f"{file}: object {place}, {name}, has no bndbox with the numbers {sides}"
            ) from None
        objects.append(_Object(name, (x1, y1, x2, y2), (one.findtext("difficult") or "").strip() == "1"))
    return _Read((root.findtext("filename") or "").strip(), size, objects)


def _of_list(file: Path, where: Folders) -> list[Path]:
    found = []
    for line in filter(None, map(str.strip, read_text(file).splitlines())):
        # In the lists of one class, 1, 0 or -1 follows the name, which may itself have spaces.
        paths = [where.annotations / f"{name}.xml" for name in (line, re.sub(r"\s+-?[01]$", "", line))]
        found.append(paths[0] if paths[0].is_file() else paths[1])
    missing = [path for path in found if not path.is_file()]
    if file.stem == "test" and len(missing) == len(found):
        return []  # as VOC keeps the annotations of some tests to itself
    if missing:
        raise InputError(
            f"{file}: {len(missing):,} of its {len(found):,} images have no annotations, as {missing[0]};"
            " mend the list, or remove it"
        )
    return found
