"""COCO results files: written as results come, and turned into proposal files and back.

A results file is a JSON list of {image_id, category_id, bbox, score}, a bbox being [x, y, width,
height] in pixels of the original image (cocodataset.org/#format-results): any proposer can write
one.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torchvision.ops import box_convert

from fpn.data.coco_file import CocoFile, corners, read_json
from fpn.data.entries import Entries, Ids, places_in
from fpn.data.fields import BOX, NUMBER
from fpn.data.proposals import Proposals, Stamp, file_hash, write_proposals
from fpn.files import replacing
from fpn.types import Categories, Detections

RESULTS = ("predictions.json", "detections.json", "predictions.csv")
"""What `write_predictions` writes."""


def write_results(path: Path, results: Iterable[dict[str, Any]]) -> int:
    """Write a results file, which appears under its name when it is whole.

    Args:
        path: the file; its folder is made if it is missing.
        results: the entries, written as they come: they need not fit into memory together.

    Returns:
        How many there were.
    """
    number = 0
    with replacing(path) as part, part.open("w") as file:
        file.write("[")
        for number, result in enumerate(results, start=1):
            file.write(f"{',' * (number > 1)}\n{json.dumps(result)}")
        file.write("\n]\n")
    return number


class Listed(NamedTuple):
    """An image as a COCO file lists it."""

    id: int | str
    file_name: str
    height: int
    width: int


def results_of(image_id: int | str, found: Detections, ids: Sequence[int | str]) -> Iterator[dict[str, Any]]:
    """The entries of a results file for what is found in an image.

    Args:
        image_id: the image's.
        found: its boxes in pixels of the original image.
        ids: of the categories, by label.
    """
    # As exact as COCO's own boxes; its server limits the size of a file.
    bbox = box_convert(found.boxes.double(), "xyxy", "xywh").tolist()
    for box, score, label in zip(bbox, found.scores.tolist(), found.labels.tolist(), strict=True):
        yield {
            "image_id": image_id,
            "category_id": ids[label - 1],
            "bbox": [round(side, 2) for side in box],
            "score": round(score, 5),
        }


def write_predictions(
    folder: Path, images: Iterable[Listed], found: Iterable[tuple[Listed, Detections]], categories: Categories
) -> None:
    """Write what is found in images, one at a time, in three forms.

    `predictions.json` is a COCO file: images, categories with names, and annotations with scores.
    `detections.json` is a results file. `predictions.csv` has a line for each box, with its corners.

    Args:
        folder: where they go.
        images: all of them.
        found: those in which there may be something.
        categories: what labels mean.
    """
    ids, names = categories.ids, dict(zip(categories.ids, categories.names, strict=True))
    known = categories.listed()
    listed = [{"id": i, "name": name} for i, name in zip(known.ids, known.names, strict=True)]
    with ExitStack() as files:
        coco, table = (
            files.enter_context(
                files.enter_context(replacing(folder / name)).open("w", newline="", encoding="utf-8")
            )
            for name in ("predictions.json", "predictions.csv")
        )
        rows = csv.writer(table)
        rows.writerow(["file_name", "image_id", "category_id", "name", "score", "x1", "y1", "x2", "y2"])
        coco.write('{"images": [')
        for place, image in enumerate(images):
            coco.write(f"{',' * (place > 0)}\n{json.dumps(image._asdict())}")
        coco.write(f'\n],\n"categories": {json.dumps(listed)},\n"annotations": [')

        def results() -> Iterator[dict[str, Any]]:
            every = ((image, result) for image, of in found for result in results_of(image.id, of, ids))
            for number, (image, result) in enumerate(every, start=1):
                x, y, width, height = result["bbox"]
                more = {"id": number, **result, "area": round(width * height, 2), "iscrowd": 0}
                coco.write(f"{',' * (number > 1)}\n{json.dumps(more)}")
                corners_ = x, y, round(x + width, 2), round(y + height, 2)
                id_, score = result["category_id"], result["score"]
                rows.writerow([image.file_name, image.id, id_, names[id_], score, *corners_])
                yield result

        write_results(folder / "detections.json", results())
        coco.write("\n]}\n")


def proposals_from_results(results: Path, annotations: Path, out: Path, top: int | None = None) -> int:
    """Make a proposal file of a results file. Categories are ignored, boxes are kept as given.

    Args:
        results: the results file.
        annotations: the annotation file that lists the images, all of which the proposal file will
            list.
        out: the proposal file to be written.
        top: best boxes of each image to be kept; None for all.

    Returns:
        The number of boxes written.

    Raises:
        InputError: a file cannot be read or is not in its format; a result is not finite, of a
            negative width or height, or of an image that is not listed.
    """
    ids = _image_ids(annotations)
    entries = Entries(results, "results", read_json(results, "results"))
    image, bbox = places_in(ids.keys, entries.keys("image_id")), entries.column("bbox", BOX)
    with np.errstate(over="ignore"):  # what overflows is refused below
        scores = entries.column("score", NUMBER).astype(np.float32)
        boxes = corners(bbox).astype(np.float32)
    entries.note("image_id", image < 0, f", which {annotations} does not list")
    entries.note("score", ~np.isfinite(scores), ", not a finite number")
    entries.note("bbox", ~np.isfinite(boxes).min(axis=1), ", not four finite numbers")
    entries.note("bbox", (bbox[:, 2:] < 0).max(axis=1), ", not of positive width and height")
    entries.refuse("image_id", "score", "bbox")

    # By image in the annotations' order, and best first within one.
    order = np.lexsort((-scores, image))
    counts = np.bincount(image, minlength=len(ids.numbers)).tolist()
    all_boxes = [one[:top] for one in torch.from_numpy(boxes[order]).split(counts)]
    all_scores = [one[:top] for one in torch.from_numpy(scores[order]).split(counts)]
    stamp = Stamp(file_hash(annotations), annotations.name, "", results.name)
    write_proposals(out, ids.numbers.tolist(), all_boxes, all_scores, stamp)
    return sum(map(len, all_scores))


def proposals_to_results(proposals: Path, annotations: Path, out: Path, top: int | None = None) -> int:
    """Make a results file of a proposal file: everything is of category 1.

    Args:
        proposals: the proposal file.
        annotations: the annotation file it was made for.
        out: the results file to be written.
        top: best boxes of each image to be kept; None for all.

    Returns:
        The number of boxes written.

    Raises:
        InputError: a file cannot be read or is not in its format, or the proposals were made for
            another annotation file.
    """
    file = Proposals(proposals)
    file.check(annotations, file.image_ids)
    return write_results(out, _results(file, top, _image_ids(annotations).as_written))


def _image_ids(annotations: Path) -> Ids:
    file = CocoFile(annotations, read_json(annotations, "annotation"))
    file.images.refuse("id")
    return file.listed_images


def _results(
    file: Proposals, top: int | None, as_written: Mapping[int, int | str]
) -> Iterator[dict[str, Any]]:
    for image_id in file.image_ids.tolist():
        # In float64 the corners come back exactly.
        bbox = box_convert(file.for_image(image_id)[:top].double(), "xyxy", "xywh")
        for box, score in zip(bbox.tolist(), file.scores_for_image(image_id)[:top].tolist(), strict=True):
            yield {
                "image_id": as_written.get(image_id, image_id),
                "category_id": 1,
                "bbox": box,
                "score": score,
            }
