"""COCO annotations and results, read and checked before any number is computed.

Symbols: M results (detections or proposals of all images together). Boxes of files are (x, y, width, height)
in pixels of the original images, as in COCO's data format (cocodataset.org/#format-data, #format-results).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpn.data.coco_json import Entries, kind_of, lists_of, read_json
from fpn.errors import InputError

AnnotationSource = str | Path | Mapping[str, Any]
ResultSource = str | Path | list[dict[str, Any]]


class Results(NamedTuple):
    """Detections or proposals of many images, in the order of their file."""

    image_ids: np.ndarray
    """(M,) int64."""
    category_ids: np.ndarray
    """(M,) int64, ids of the annotation file; 0 for proposals that name none."""
    boxes: np.ndarray
    """(M, 4) float64 (x, y, width, height) in pixels."""
    scores: np.ndarray
    """(M,) float64."""


class GroundTruth(NamedTuple):
    """What scoring needs of an annotation file."""

    source: str
    """The file's name, for messages."""
    image_ids: frozenset[int]
    categories: dict[int, str]
    """Names by ascending id; a name that several categories share is followed by the id."""
    annotations: list[dict[str, Any]]
    """image_id, category_id, bbox, area and iscrowd of each object, in the order of the file."""

    def restricted_to(self, image_ids: Iterable[int]) -> "GroundTruth":
        """The same ground truth with only these images; InputError where one is not in the file."""
        kept = frozenset(image_ids)
        if unknown := kept - self.image_ids:
            raise InputError(
                f"image ids to score: {_some(unknown)} not in {self.source}; "
                "give the annotation file of these images"
            )
        return self._replace(
            image_ids=kept, annotations=[one for one in self.annotations if one["image_id"] in kept]
        )


def read_annotations(annotations: AnnotationSource) -> GroundTruth:
    """Reads and checks an annotation file, or a dict of the same form, which is left as it is.

    The rules are those of `coco_json`, as training's are; boxes and areas have to be finite besides.
    Annotation ids and the names and sizes of images are not used, so they may be absent.

    Raises InputError for a missing file, one that is not COCO, and entries that cannot be scored.
    """
    source, data = _load(annotations, "annotations")
    images, entries, categories = lists_of(source, data)
    image_ids, category_ids, names = images.unique(), categories.unique(), categories.strings("name")
    boxes = entries.boxes(finite=True)
    columns = (
        image_ids[entries.places("image_id", image_ids)],
        category_ids[entries.places("category_id", category_ids)],
        boxes,
        entries.areas(boxes, finite=True),
        entries.crowd().astype(int),
    )
    shared = {name for name, times in Counter(names).items() if times > 1}
    return GroundTruth(
        source,
        frozenset(image_ids.tolist()),
        {
            id_: f"{name} ({id_})" if name in shared else name
            for id_, name in sorted(zip(category_ids.tolist(), names, strict=True))
        },
        [
            {"image_id": image, "category_id": category, "bbox": box, "area": area, "iscrowd": crowd}
            for image, category, box, area, crowd in zip(*(one.tolist() for one in columns), strict=True)
        ],
    )


def read_results(results: ResultSource, truth: GroundTruth, *, with_categories: bool) -> Results:
    """Reads and checks a results file, or a list of the same form, which is left as it is.

    `truth` is the whole annotation file. Without categories (proposals), `category_id` may be absent.

    Raises InputError for a missing file, one that is not a list of results, entries that cannot be scored,
    and images or categories that the annotation file does not have.
    """
    source, data = _load(results, "results")
    if not isinstance(data, list):
        raise InputError(f"{source}: a JSON list of results is expected, not {kind_of(data)}")
    entries = Entries(source, "results", data)
    image_ids = entries.integers("image_id")
    category_ids = (entries.integers if with_categories else entries.integers_or_zero)("category_id")
    boxes, scores = entries.boxes(finite=True), entries.numbers("score", finite=True)
    _refuse_unknown(image_ids, truth.image_ids, f"{source}: image ids", truth.source)
    if with_categories:
        _refuse_unknown(category_ids, truth.categories, f"{source}: category ids", truth.source)
    return Results(image_ids, category_ids, boxes, scores)


def _load(given: object, name: str) -> tuple[str, Any]:
    """(name for messages, parsed JSON) of a path; (name, the object itself) of anything else."""
    if not isinstance(given, str | Path):
        return name, given
    return str(given), read_json(Path(given), name)


def _refuse_unknown(ids: np.ndarray, known: Collection[int], what: str, truth_source: str) -> None:
    if unknown := set(ids.tolist()).difference(known):
        raise InputError(
            f"{what}: {_some(unknown)} not in {truth_source}; give the annotation file of these results"
        )


def _some(ids: Collection[int]) -> str:
    """'3 (5, 8, 9)', or '12 (1, 2, 3, …)': how many, and the first of them."""
    first = ", ".join(str(id_) for id_ in sorted(ids)[:3])
    return f"{len(ids)} ({first}{', …' if len(ids) > 3 else ''})"
