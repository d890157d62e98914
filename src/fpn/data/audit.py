"""What is in a COCO-format data set, and whether training would take it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpn.data.coco import Annotations, annotations_of
from fpn.data.coco_file import CocoFile, Crowds, read_json
from fpn.data.decoding import Exif
from fpn.data.findings import CategoryCount, Finding, Usable
from fpn.data.image_files import look_at_files, refuse_training, refuse_validation
from fpn.data.object_sizes import SLIVER, ObjectSizes, object_sizes, slivers
from fpn.errors import InputError
from fpn.settings import NonNegativeInt, PositiveInt, Share


@dataclass
class Audit:
    """The report on a data set."""

    annotation_file: Path
    image_folder: Path | None
    decoded: bool
    listed: dict[str, int]
    """How many images, annotations and categories the file lists."""
    findings: dict[str, dict[str, Finding]]
    """What was found among them."""
    by_category: list[CategoryCount]
    """In the order of the file."""
    sizes: ObjectSizes
    refusal: str
    """Why training would refuse the set; empty if it takes it."""
    validation_refusal: str
    """Why validation would, which reads all images and scores."""
    file_names: list[str]
    """Of all images whose name is one inside the folder, each once."""
    taken: Annotations | None
    """What training reads of the file; None of one that it refuses."""

    def as_json(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "annotation_file": str(self.annotation_file),
            "image_folder": None if self.image_folder is None else str(self.image_folder),
            "decoded": self.decoded,
            "refusal": self.refusal or None,
            "validation_refusal": self.validation_refusal or None,
            **{name: self._section(name) for name in self.findings},
            "by_category": [one._asdict() for one in self.by_category],
            "sizes": asdict(self.sizes),
        }

    def _section(self, name: str) -> dict[str, Any]:
        found = self.findings[name].items()
        return {"listed": self.listed[name]} | {
            key: {"what": one.what, "count": len(one.items), "items": one.items} for key, one in found
        }


def look_at(
    annotation_file: Path,
    image_folder: Path | None = None,
    *,
    anchor_sizes: Mapping[int, Sequence[float]],
    decode: bool = False,
    num_workers: NonNegativeInt | None = None,
    short_side: PositiveInt = 800,
    max_side: PositiveInt = 1333,
    max_unreadable: Share = 0.001,
    exif: Exif = "apply",
    trust_boxes: bool = False,
    crowds: Crowds = "regions",
) -> Audit:
    """Look at all of a data set.

    Args:
        annotation_file: in COCO's format, more or less.
        image_folder: where the file names start; None looks at no files.
        anchor_sizes: square roots of the anchors' areas in pixels, by level.
        decode: read images wholly, as training does, and not their headers alone.
        num_workers: processes that read images, 0 for none; by default one for each core.
        short_side: as data.images.short_side.
        max_side: as data.images.max_side.
        max_unreadable: as data.max_unreadable.
        exif: as data.images.exif.
        trust_boxes: as data.trust_boxes.
        crowds: what iscrowd 1 says, as data.crowds.

    Raises:
        InputError: if the annotation file cannot be read or is not JSON, or the folder is none.
    """
    if image_folder is not None and not image_folder.is_dir():
        raise InputError(f"{image_folder}: no such image folder")
    file = CocoFile(annotation_file, read_json(annotation_file, "annotation"), image_folder, crowds)
    try:
        taken: Annotations | None = (read := annotations_of(file, trust_boxes))
        refusal = _refusal(read.with_objects)
        not_scored = _refusal(file.annotations.refuse, "bbox finite", "area finite")
    except InputError as error:
        taken, refusal, not_scored = None, str(error), str(error)
    usable = Usable(file)
    report = Audit(
        annotation_file,
        image_folder,
        decode and image_folder is not None,
        {one.name: len(one) for one in (file.images, file.annotations, file.categories)},
        usable.findings(),
        usable.by_category(),
        object_sizes(usable, anchor_sizes, short_side, max_side),
        refusal,
        not_scored,
        [*dict.fromkeys(file.file_names[file.images.has() & ~file.leaves].tolist())],
        taken,
    )
    what = "slivers, under {:g} pixels thin at the input and {:g} times as long".format(*SLIVER)
    report.findings["annotations"]["slivers"] = Finding(
        what, slivers(usable, short_side, max_side), wrong=False
    )
    if image_folder is not None:
        inside = np.flatnonzero(file.images.has() & ~file.leaves)
        names, sizes = dict(zip(inside.tolist(), file.file_names[inside], strict=True)), file.sizes
        del file, usable  # of which the processes that read images would have copies
        found, faults = look_at_files(image_folder, names, sizes, decode, num_workers, exif)
        report.findings["images"] = found | report.findings["images"]
        if taken is not None:
            files = taken, image_folder, faults
            report.refusal = report.refusal or _refusal(refuse_training, *files, max_unreadable)
            report.validation_refusal = report.validation_refusal or _refusal(refuse_validation, *files)
    return report


def compare(train: Audit, val: Audit) -> None:
    """Have training refuse a file whose categories are not those of the file it is validated on."""
    if train.taken is not None and val.taken is not None and not train.refusal:
        train.refusal = _refusal(val.taken.classed_as, train.taken.categories, train.annotation_file)


def _refusal(check: Callable[..., object], *arguments: Any) -> str:
    try:
        check(*arguments)
    except InputError as error:
        return str(error)
    return ""
