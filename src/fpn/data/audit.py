"""What is in a COCO-format data set, and whether training would take it."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fpn.data.coco import annotations_of
from fpn.data.coco_file import CocoFile
from fpn.data.findings import CategoryCount, Findings, Usable
from fpn.data.image_files import ImageFiles
from fpn.data.object_sizes import ObjectSizes, object_sizes
from fpn.errors import InputError


@dataclass
class Audit:
    """The report on a data set."""

    annotation_file: Path
    image_folder: Path | None
    decoded: bool
    listed: dict[str, int]
    """How many images, annotations and categories the file lists."""
    findings: dict[str, Findings]
    """What was found among them."""
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
            **{
                name: {"listed": self.listed[name]}
                | {
                    key: {"what": one.what, "count": len(one.items), "items": one.items}
                    for key, one in findings.items()
                }
                for name, findings in self.findings.items()
            },
            "by_category": [one._asdict() for one in self.by_category],
            "sizes": asdict(self.sizes),
        }


def look_at(
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
    file = CocoFile.read(annotation_file)
    taken, refusal, not_scored = None, "", ""
    try:
        taken = annotations_of(file)
        taken.with_objects()
    except InputError as error:
        refusal = str(error)
    try:
        file.annotations.refuse("bbox finite", "area finite")
    except InputError as error:
        not_scored = str(error)
    usable = Usable(file)
    report = Audit(
        annotation_file,
        image_folder,
        decode and image_folder is not None,
        {one.name: len(one) for one in (file.images, file.annotations, file.categories)},
        {
            "images": usable.of_images(),
            "annotations": usable.of_annotations(),
            "categories": usable.of_categories(),
        },
        usable.by_category,
        object_sizes(usable, anchor_sizes, short_side, max_side),
        refusal,
        refusal if taken is None else not_scored,
    )
    if image_folder is not None:
        names, sizes = usable.image_files(), file.sizes
        del file, usable  # of which the processes that read images would have copies
        files = ImageFiles(image_folder, names, sizes, decode, num_workers)
        report.findings["images"] = files.findings() | report.findings["images"]
        if taken is not None and files.faults:
            report.refusal = report.refusal or files.refusal(taken, max_unreadable)
            first = f"{image_folder}/{next(iter(files.faults.values()))}"
            report.validation_refusal = report.validation_refusal or first
    return report
