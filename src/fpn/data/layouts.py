"""How data sets lie in a folder: COCO's layout, and others that are as plain.

A layout is a function of a root: what it finds there, or None. To know another is to write one and list it
in `LAYOUTS`.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, NamedTuple

from fpn.data import voc as voc_format
from fpn.data.cached import made_of
from fpn.data.coco_file import CLASS, CocoFile, read_json
from fpn.data.fields import identity
from fpn.data.file_names import few
from fpn.data.options import Split
from fpn.data.yolo import description_file, images_of, label_file, read_yolo
from fpn.errors import InputError

_PEEK = 4_000_000
"""Bytes of an annotation file in which a first file name is looked for."""
_ANNOTATED = re.compile(rb'"annotations"\s*:\s*\[\s*\{')
"""In a file of COCO's format that has at least one annotation."""


class Layout(NamedTuple):
    """What was found in a root."""

    name: str
    splits: dict[str, Split]
    """Of train, val and test those that are there, with their files."""
    notes: tuple[str, ...] = ()
    """What there is to say of how they were read."""


def coco(root: Path, below: str = "annotations") -> Layout | None:
    """`annotations/instances_train2017.json` beside `train2017/` or `images/train2017/`; 2014, or no year.

    The files may lie elsewhere below the root. A test's does not count if it lists images alone, as COCO's.
    """
    for stem in ("instances_{}2017", "instances_{}2014", "instances_{}", "{}"):
        names = {split: f"{stem.format(split)}.json" for split in ("train", "val", "test")}
        files = {split: root / below / name for split, name in names.items()}
        there = {split for split, file in files.items() if file.is_file()}
        if there & {"train", "val"}:
            if "test" in there and not _ANNOTATED.search(files["test"].read_bytes()):
                there.remove("test")
            year = stem[-4:] if stem[-4:].isdigit() else ""
            splits = {
                split: Split(str(_folder_of(files[split], root, f"{split}{year}")), str(files[split]))
                for split in sorted({"train", *there})
            }
            return Layout(f"COCO {year}".strip(), splits)
    return None


def roboflow(root: Path) -> Layout | None:
    """`train/_annotations.coco.json` among the images, also in `valid/` and `test/`."""
    folders = {"train": root / "train", "val": root / "valid", "test": root / "test"}
    splits = {
        split: Split(str(folder), str(folder / "_annotations.coco.json"))
        for split, folder in folders.items()
        if (folder / "_annotations.coco.json").is_file()
    }
    return Layout("Roboflow's COCO export", splits) if splits else None


def yolo(root: Path) -> Layout | None:
    """`data.yaml`, or another YAML file that has names and training images; or a file of names alone."""
    if (file := description_file(root)) is None:
        return None
    every, notes = images_of(file)
    splits, notes = {}, [*notes, *_in_both(every)]
    for split, images in every.items():
        if len({image.is_absolute() for image in images}) > 1:
            images = [Path.cwd() / image for image in images]
        folder = Path(os.path.commonpath([image.parent for image in images]))
        sources = [file, *images, *map(label_file, images)]
        make = partial(read_yolo, file, images, folder)
        made = made_of(sources, file.parent, f"yolo-{file.stem}-{split}.json", make)
        splits[split] = Split(str(folder), str(made.path))
        notes += [f"{split}: {note}" for note in made.notes]
    return Layout("YOLO", splits, tuple(notes))


def voc(root: Path) -> Layout | None:
    """Pascal VOC's `Annotations/*.xml`, `JPEGImages/` and, where they are, `ImageSets/Main/*.txt`."""
    if (where := voc_format.folders(root)) is None:
        return None
    files, notes = voc_format.splits(where)
    found, notes = {}, [*notes, *_in_both(files)]
    sources = [file for some in files.values() for file in some]
    # Whose names it has, and perhaps sizes; folders have no suffix, and that of what is made changes.
    sources += sorted(path for path in where.images.iterdir() if path.suffix)
    for split in files:
        make = partial(voc_format.read_voc, files, split, where)
        made = made_of([Path(split), *sources], where.annotations.parent, f"voc-{split}.json", make)
        found[split] = Split(str(where.images), str(made.path))
        notes += [f"{split}: {note}" for note in made.notes]
    return Layout("Pascal VOC", found, tuple(notes))


def single_file(root: Path) -> Layout | None:
    """One file in COCO's format, itself the root, in it or in its `annotations/`; images somewhere below."""
    files, folder = [root], root.parent
    if root.is_dir():
        folder = root
        files = [*root.glob("*.json"), *root.glob("annotations/*.json")]
    files = [file for file in files if file.suffix == ".json" and _is_coco(file)]
    if len(files) != 1:
        return None
    return Layout("one COCO file", {"train": Split(str(_folder_of(files[0], folder)), str(files[0]))})


LAYOUTS: dict[str, Callable[[Path], Layout | None]] = {
    "COCO 2017 or 2014 (annotations/instances_train2017.json; train2017/ or images/train2017/)": coco,
    "Roboflow's COCO export (train/_annotations.coco.json, valid/, test/)": roboflow,
    "YOLO (data.yaml, which names images/, and labels/; classes.txt, images/ and labels/)": yolo,
    "Pascal VOC (Annotations/*.xml, JPEGImages/)": voc,
    "one COCO file and its images (*.json, with data.val_share)": single_file,
    "COCO's files in the root (train.json, val.json; train/ or images/)": partial(coco, below=""),
}
"""All layouts that are known, in the order in which they are looked for, by what lies in such a root."""


def recognised(root: Path) -> Layout:
    """The layout of a root.

    Raises:
        InputError: there is no such folder, or none that is known; or what is there is wrong.
    """
    others = "data.train.annotations, data.train.images, data.val.annotations and data.val.images name files"
    if not root.exists():
        raise InputError(f"{root}: no such folder; data.root names that of a data set, or {others}")
    for layout in LAYOUTS.values():
        if found := layout(root):
            return found
    known = "; ".join(LAYOUTS)
    raise InputError(
        f"{root}: no layout that is known: {known}. Found there: {_contents(root)}. Else {others}"
    )


@dataclass(eq=False)
class Splits:
    """Where training, validation and test images lie: as given, or else by the layout of a root.

    Args:
        root: folder of the data set, or its one annotation file.
        given: what is given of train, val and test; it wins over the layout.
        val_share: share of the training images that is set aside for validation.
    """

    root: Path
    given: Mapping[str, Split]
    val_share: float | None = None

    @cached_property
    def layout(self) -> Layout:
        """The layout of the root, as `recognised` finds it."""
        return recognised(self.root)

    def told(self, counts: Iterable[str]) -> str:
        """What was recognised so far, and how it was read, in one line; empty where all was given.

        Args:
            counts: a few words on each split.
        """
        known = vars(self)  # what was not looked for is not looked for now
        layout, halves = known.get("layout"), known.get("_halves")
        words = [f"{self.root}: {layout.name}: {', '.join(counts)}", *layout.notes] if layout else []
        return "; ".join([*words, *(halves[1] if halves else ())])

    def __getitem__(self, name: str) -> Split:
        """A split: train, val or test.

        Raises:
            InputError: the layout has none, or is none that is known.
        """
        own = {key: value for key, value in vars(self._given(name)).items() if value}
        if name == "test":
            try:
                val = self["val"]
            except InputError:
                if not self._is_given("test"):
                    raise
                val = Split()
            divides = self.val_share is not None and self._is_given("train")
            alone = self._is_given("val") or self._is_given("test") or divides
            base = val if alone else self.layout.splits.get("test", val)
            # Proposals are of one annotation file.
            same = own.get("annotations", base.annotations) == base.annotations
            return replace(base if same else replace(base, proposals=None), **own)
        if self.val_share is not None:
            return replace(self._halves[0][name], proposals=own.get("proposals"))
        return self._whole(name)

    def _given(self, name: str) -> Split:
        return self.given.get(name, Split())

    def _is_given(self, name: str) -> bool:
        given = self._given(name)
        return bool(given.annotations and given.images)

    def _whole(self, name: str) -> Split:
        given = self._given(name)
        if self._is_given(name):
            return given
        found = self.layout.splits.get(name)
        if found is None and given.annotations:
            raise InputError(f"data.{name}.images is not given: it names the folder of {given.annotations}")
        if found is None:
            share = ", or data.val_share 0.2 sets a fifth of the training images aside" * (name == "val")
            raise InputError(
                f"{self.root}: {self.layout.name}, without {name}; data.{name}.annotations and"
                f" data.{name}.images name them{share}"
            )
        return replace(found, **{key: value for key, value in vars(given).items() if value})

    @cached_property
    def _halves(self) -> tuple[dict[str, Split], tuple[str, ...]]:
        given, whole = self._given("val"), self._whole("train")
        there = given.annotations or given.images
        if not there and not self._given("train").annotations and "val" in self.layout.splits:
            there = self.layout.splits["val"].annotations
        if there:
            raise InputError(
                f"data.val_share divides the training images, but there are others to validate on, {there}:"
                " give only one"
            )
        assert self.val_share is not None
        return divided(whole, self.val_share)


def divided(whole: Split, share: float) -> tuple[dict[str, Split], tuple[str, ...]]:
    """A split in two, train and val, and what there is to say of it.

    Which images are val's depends on their file names alone: not on the order of the file, nor on a seed, so
    that runs of several seeds are scored on the same images. What is listed twice, or is a photo of several
    files by Roboflow's names (NAME.rf.HASH.jpg), stays together.

    Args:
        whole: with its files.
        share: of the images for val, rounded.

    Raises:
        InputError: a half would have no image, or the file is not in COCO's format.
    """
    file = Path(str(whole.annotations))
    halves, notes = {}, tuple[str, ...]()
    for name in ("train", "val"):
        half = partial(_half, file, share, name)
        made = made_of([file], file.parent, f"{file.stem}-{share:g}-{name}.json", half)
        halves[name], notes = replace(whole, annotations=str(made.path)), made.notes
    return halves, notes


def _half(file: Path, share: float, name: str) -> tuple[dict[str, Any], list[str]]:
    content = read_json(file, "annotation", masks=True)
    read = CocoFile(file, content)
    read.images.refuse("id", "file_name")
    read.annotations.refuse("image_id")
    images, groups = content["images"], dict[str, list[int]]()
    for place, image in enumerate(images):
        groups.setdefault(str(image.get("file_name") or image["id"]).partition(".rf.")[0], []).append(place)
    wanted, chosen = round(share * len(images)), set[int]()
    for group in sorted(groups, key=lambda group: hashlib.sha256(f"0 {group}".encode()).digest()):
        if len(chosen) >= wanted:
            break
        chosen.update(groups[group])
    if not 0 < len(chosen) < len(images):
        raise InputError(
            f"{file}: data.val_share {share:g} sets {len(chosen)} of {len(images)} images aside, which leaves"
            f" none to {'train' if chosen else 'validate'} on; give another share"
        )
    aside, val = {identity(images[place].get("id")) for place in chosen}, name == "val"
    kept = [image for place, image in enumerate(images) if (place in chosen) == val]
    annotations = [one for one in content["annotations"] if (identity(one.get("image_id")) in aside) == val]
    # A class 0 that has objects stays one in a half where it has none.
    used = any(identity(one.get("category_id")) == 0 for one in content["annotations"])
    for one in content.get("categories", ()) if used else ():
        if isinstance(one, dict) and identity(one.get("id")) == 0:
            one[CLASS] = True
    note = f"val is {len(chosen):,} of the {len(images):,} images of {file}"
    told = f"{note} (data.val_share {share:g})"
    return {**content, "images": kept, "annotations": annotations}, [told]


def _in_both(files: Mapping[str, list[Path]]) -> list[str]:
    """What there is to say of images that are both in train and in val."""
    train, val = {*files.get("train", ())}, files.get("val", [])
    both = [file for file in val if file in train]
    told = f"{len(both):,} of the {len(val):,} validation images are training images too: "
    return [told + few(file.stem for file in both)] if both else []


def _is_coco(file: Path) -> bool:
    with suppress(OSError):
        content = file.read_bytes()
        return b'"images"' in content and b'"annotations"' in content
    return False


def _folder_of(file: Path, root: Path, name: str = "") -> Path:
    """The folder below root, of a name if there is one, where the first image of an annotation file lies."""
    folders = [root / name, root / "images" / name] if name else [root / "images", root]
    others = [root / "images", root, file.parent] if name else sorted((*root.glob("*/"), *root.glob("*/*/")))
    first = _first_name(file)
    with suppress(OSError, ValueError):  # of a name that no file can have
        for folder in (*folders, *others):
            if first and (folder / first).is_file():
                return folder
    return next((folder for folder in folders if folder.is_dir()), folders[0])


def _first_name(file: Path) -> str:
    with suppress(OSError, ValueError), file.open("rb") as opened:
        if found := re.search(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', opened.read(_PEEK)):
            return str(json.loads(found[1]))
    return ""


def _contents(root: Path) -> str:
    """What lies in a folder, in a few words."""
    if root.is_file():
        return "a file"
    entries = sorted(root.iterdir())
    folders = [f"{entry.name}/" for entry in entries if entry.is_dir()]
    kinds = Counter(entry.suffix or entry.name for entry in entries if not entry.is_dir())
    every = (few(folders, 8), few((f"{count:,} *{kind}" for kind, count in kinds.items()), 8))
    return ", ".join(filter(None, every)) or "nothing"
