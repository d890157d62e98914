"""Ground truth and results in flat arrays, checked before any number is computed.

Symbols: I images, B annotated objects, M results (detections or proposals of all images together). Boxes of
files are (x, y, width, height) in pixels of the original images, as in COCO's data format
(cocodataset.org/#format-data, #format-results).
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpn.data.coco_file import BOX, INTEGER, NUMBER, CocoFile, Entries, kind_of, read_json
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
    """What scoring needs of an annotation file; objects in the order of the file."""

    source: str
    """The file's name, for messages."""
    image_ids: np.ndarray
    """(I,) int64, ascending."""
    categories: dict[int, str]
    """Names by ascending id; a name that several categories share is followed by the id."""
    image: np.ndarray
    """(B,) int64, the place of an object's image in `image_ids`."""
    category: np.ndarray
    """(B,) int64, the place of its category in `categories`."""
    boxes: np.ndarray
    """(B, 4) float64 (x, y, width, height) in pixels."""
    areas: np.ndarray
    """(B,) float64, square pixels."""
    crowd: np.ndarray
    """(B,) bool."""

    def restricted_to(self, image_ids: Iterable[int]) -> "GroundTruth":
        """The same ground truth with only these images; InputError where one is not in the file."""
        wanted = np.unique(np.array(list(image_ids), dtype=np.int64))
        _refuse_unknown(wanted, self.image_ids, "image ids to score", self.source, "images")
        return self.at(np.searchsorted(self.image_ids, wanted))

    def at(self, places: np.ndarray) -> "GroundTruth":
        """The same ground truth with only the images of these places, ascending."""
        new = np.full(len(self.image_ids), -1)
        new[places] = np.arange(len(places))
        image = new[self.image]
        kept = image >= 0
        columns = (image, self.category, self.boxes, self.areas, self.crowd)
        return GroundTruth(
            self.source, self.image_ids[places], self.categories, *(one[kept] for one in columns)
        )


def read_truth(annotations: AnnotationSource) -> GroundTruth:
    """Reads and checks an annotation file, or a dict of the same form, which is left as it is.

    Boxes and areas have to be finite; annotation ids and the names and sizes of images are not used, so
    they may be absent.

    Raises InputError for a missing file, one that is not COCO, and entries that cannot be scored.
    """
    file = CocoFile(*_load(annotations, "annotations"))
    file.images.refuse("id")
    file.annotations.refuse()
    file.categories.refuse("id", "name")
    file.annotations.refuse(
        *("image_id", "category_id", "bbox", "bbox finite", "iscrowd", "area", "area finite")
    )
    by_id, categories_by_id = np.argsort(file.image_ids), np.argsort(file.category_ids)
    ids, names = (c[categories_by_id].tolist() for c in (file.category_ids, file.category_names))
    times = Counter(names)
    return GroundTruth(
        str(file.source),
        file.image_ids[by_id],
        {id_: f"{name} ({id_})" if times[name] > 1 else name for id_, name in zip(ids, names, strict=True)},
        np.argsort(by_id)[file.image],
        np.argsort(categories_by_id)[file.category],
        file.bbox,
        file.area,
        file.crowd,
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
    image_ids, category_ids = entries.column("image_id", INTEGER), entries.column("category_id", INTEGER)
    found = Results(image_ids, category_ids, entries.column("bbox", BOX), entries.column("score", NUMBER))
    entries.refuse(
        "image_id", *["category_id"] * with_categories, "bbox", "bbox finite", "score", "score finite"
    )
    _refuse_unknown(image_ids, truth.image_ids, f"{source}: image ids", truth.source, "results")
    if with_categories:
        _refuse_unknown(
            category_ids, list(truth.categories), f"{source}: category ids", truth.source, "results"
        )
    return found


def _load(given: object, name: str) -> tuple[str, Any]:
    """(name for messages, parsed JSON) of a path; (name, the object itself) of anything else."""
    if not isinstance(given, str | Path):
        return name, given
    return str(given), read_json(Path(given), name)


def _refuse_unknown(ids: np.ndarray, known: Collection[int], what: str, truth: str, whose: str) -> None:
    """Raise InputError that says '3 (5, 8, 9)', or '12 (1, 2, 3, …)': how many, and the first of them."""
    if len(unknown := np.setdiff1d(ids, np.array(known, dtype=np.int64))):
        some = f"{len(unknown)} ({', '.join(map(str, unknown[:3]))}{', …' if len(unknown) > 3 else ''})"
        raise InputError(f"{what}: {some} not in {truth}; give the annotation file of these {whose}")
