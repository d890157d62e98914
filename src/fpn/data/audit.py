"""What is in a COCO-format data set, and whether training would take it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fpn.data.coco import parse_annotations
from fpn.data.coco_json import lists_of, read_json
from fpn.data.findings import CategoryCount, DataSet, Section
from fpn.data.image_files import ImageFiles
from fpn.data.object_sizes import ObjectSizes, object_sizes
from fpn.errors import InputError


@dataclass
class Audit:
    """The report on a data set."""

    annotation_file: Path
    image_folder: Path | None
    decoded: bool
    images: Section
    annotations: Section
    categories: Section
    by_category: list[CategoryCount]
    """In the order of the file."""
    sizes: ObjectSizes
    refusal: str
    """Why training would refuse the set; empty if it takes it."""
    validation_refusal: str
    """Why validation would, which reads all images and scores."""

    def as_json(self) -> dict[str, Any]:
        """All of it in JSON's types."""
        return {
            "annotation_file": str(self.annotation_file),
            "image_folder": None if self.image_folder is None else str(self.image_folder),
            "decoded": self.decoded,
            "refusal": self.refusal or None,
            "validation_refusal": self.validation_refusal or None,
            "images": self.images.as_json(),
            "annotations": self.annotations.as_json(),
            "categories": self.categories.as_json(),
            "by_category": [one._asdict() for one in self.by_category],
            "sizes": asdict(self.sizes),
        }


def audit(
    annotation_file: Path,
    image_folder: Path | None = None,
    *,
    anchor_sizes: Mapping[int, Sequence[float]],
    short_side: int = 800,
    max_side: int = 1333,
    decode: bool = False,
    num_workers: int | None = None,
    max_unreadable: float = 0.001,
) -> Audit:
    """Look at all of a data set.

    Args:
        annotation_file: in COCO's format, more or less.
        image_folder: where the file names start; None looks at no files.
        anchor_sizes: square roots of the anchors' areas in pixels, by level.
        short_side: pixels of an image's short side at the network's input.
        max_side: most pixels of its long side.
        decode: read the images wholly, and not their headers alone.
        num_workers: processes that read images, 0 for none; by default one for each core.
        max_unreadable: share of the training images that training does without.

    Raises:
        InputError: if the annotation file cannot be read or is not JSON, or the folder is none.
    """
    if image_folder is not None and not image_folder.is_dir():
        raise InputError(f"{image_folder}: no such image folder")
    content = read_json(annotation_file, "annotation")
    taken, refusal = None, ""
    try:
        taken = parse_annotations(annotation_file, content)
        taken.with_objects()
    except InputError as error:
        refusal = str(error)
    lists = lists_of(annotation_file, content, lenient=True)
    data = DataSet(*lists)
    report = Audit(
        annotation_file,
        image_folder,
        decode and image_folder is not None,
        Section(len(lists[0])),
        Section(len(lists[1])),
        Section(len(lists[2])),
        data.by_category,
        object_sizes(data, anchor_sizes, short_side, max_side),
        refusal,
        refusal if taken is None else _not_scorable(annotation_file, content, data),
    )
    data.add_images(report.images)
    data.add_annotations(report.annotations)
    data.add_categories(report.categories)
    if image_folder is not None:
        names, sizes = data.image_files(), data.sizes
        del content, lists, data  # of which the processes that read images would have copies
        files = ImageFiles(image_folder, names, sizes, decode, num_workers)
        files.add_to(report.images)
        if taken is not None and files.faults:
            report.refusal = report.refusal or files.refusal(taken, max_unreadable)
            first = f"{image_folder}/{next(iter(files.faults.values()))}"
            report.validation_refusal = report.validation_refusal or first
    return report


def _not_scorable(path: Path, content: Any, data: DataSet) -> str:
    """Why scoring would refuse what training takes; empty if it would not."""
    if np.isfinite(data.bbox).all() and np.isfinite(data.areas).all():
        return ""
    annotations = lists_of(path, content)[1]
    try:
        annotations.areas(annotations.boxes(finite=True), finite=True)
    except InputError as error:
        return str(error)
    return ""
