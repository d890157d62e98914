"""COCO annotations and results, read and checked before any number is computed.

Symbols: M results (detections or proposals of all images together). Boxes of files are (x, y, width, height)
in pixels of the original images, as in COCO's data format (cocodataset.org/#format-data, #format-results).
"""

import json
import reprlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from fpn.errors import InputError
from fpn.evaluation.fields import box_of, field_of, id_of, is_id, kind_of, number_of

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

    `iscrowd` is 0 where it is absent. COCO requires `area`, the area of the mask; where a file without masks
    leaves it out, it is width × height of the box. Annotation ids are not used, so they may be absent.

    Raises InputError for a missing file, one that is not COCO, and entries that cannot be scored.
    """
    source, data = _load(annotations, "annotations")
    if not isinstance(data, Mapping):
        raise InputError(f"{source}: a JSON object is expected, not {kind_of(data)}; give COCO annotations")
    for key in ("images", "annotations", "categories"):
        if not isinstance(data.get(key), list):
            found = kind_of(data[key]) if key in data else "nothing"
            raise InputError(f"{source}: {key!r} must be a list, found {found}; give a COCO annotation file")
    image_ids = _unique_ids(data["images"], f"{source}: images")
    category_ids = _unique_ids(data["categories"], f"{source}: categories")
    names = [
        str(field_of(entry, "name", f"{source}: categories[{index}]"))
        for index, entry in enumerate(data["categories"])
    ]
    shared = {name for name, times in Counter(names).items() if times > 1}
    categories = {
        id_: f"{name} ({id_})" if name in shared else name
        for id_, name in sorted(zip(category_ids, names, strict=True))
    }
    known_images, known_categories = frozenset(image_ids), frozenset(category_ids)
    objects = [
        _ground_truth(entry, f"{source}: annotations[{index}]", known_images, known_categories)
        for index, entry in enumerate(data["annotations"])
    ]
    return GroundTruth(source, known_images, categories, objects)


def read_results(results: ResultSource, truth: GroundTruth, *, with_categories: bool) -> Results:
    """Reads and checks a results file, or a list of the same form, which is left as it is.

    `truth` is the whole annotation file. Without categories (proposals), `category_id` may be absent.

    Raises InputError for a missing file, one that is not a list of results, entries that cannot be scored,
    and images or categories that the annotation file does not have.
    """
    source, data = _load(results, "results")
    if not isinstance(data, list):
        raise InputError(f"{source}: a JSON list of results is expected, not {kind_of(data)}")
    image_ids, category_ids, boxes, scores = [], [], [], []
    for index, entry in enumerate(data):
        where = f"{source}: results[{index}]"
        image_ids.append(id_of(entry, "image_id", where))
        if with_categories:
            category_ids.append(id_of(entry, "category_id", where))
        else:
            category = entry.get("category_id")
            category_ids.append(int(category) if is_id(category) else 0)
        boxes.append(box_of(entry, where))
        scores.append(number_of(entry, "score", where))
    _refuse_unknown(image_ids, truth.image_ids, f"{source}: image ids", truth.source)
    if with_categories:
        _refuse_unknown(category_ids, truth.categories, f"{source}: category ids", truth.source)
    return Results(
        np.array(image_ids, dtype=np.int64),
        np.array(category_ids, dtype=np.int64),
        np.array(boxes, dtype=np.float64).reshape(-1, 4),
        np.array(scores, dtype=np.float64),
    )


def _load(given: object, name: str) -> tuple[str, Any]:
    """(name for messages, parsed JSON) of a path; (name, the object itself) of anything else."""
    if not isinstance(given, str | Path):
        return name, given
    path = Path(given)
    try:
        return str(path), json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: no such {name} file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give a readable {name} file") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not JSON ({reason}); give a COCO {name} file") from None


def _unique_ids(entries: list[Any], where: str) -> list[int]:
    ids = [id_of(entry, "id", f"{where}[{index}]") for index, entry in enumerate(entries)]
    if repeated := [id_ for id_, times in Counter(ids).items() if times > 1]:
        raise InputError(f"{where}: {_some(repeated)} given more than once; ids must be unique")
    return ids


def _ground_truth(
    entry: Any, where: str, images: Collection[int], categories: Collection[int]
) -> dict[str, Any]:
    image_id, category_id = id_of(entry, "image_id", where), id_of(entry, "category_id", where)
    if image_id not in images:
        raise InputError(f"{where}: image_id {image_id} is not among 'images'; add it or drop this entry")
    if category_id not in categories:
        raise InputError(
            f"{where}: category_id {category_id} is not among 'categories'; add it or drop the entry"
        )
    box = box_of(entry, where)
    area = number_of(entry, "area", where) if "area" in entry else box[2] * box[3]
    crowd = entry.get("iscrowd", 0)
    if crowd not in (0, 1):
        raise InputError(f"{where}: iscrowd is {reprlib.repr(crowd)}; it must be 0 or 1")
    return {
        "image_id": image_id,
        "category_id": category_id,
        "bbox": box,
        "area": area,
        "iscrowd": int(crowd),
    }


def _refuse_unknown(ids: Collection[int], known: Collection[int], what: str, truth_source: str) -> None:
    if unknown := set(ids).difference(known):
        raise InputError(
            f"{what}: {_some(unknown)} not in {truth_source}; give the annotation file of these results"
        )


def _some(ids: Collection[int]) -> str:
    """'3 (5, 8, 9)', or '12 (1, 2, 3, …)': how many, and the first of them."""
    first = ", ".join(str(id_) for id_ in sorted(ids)[:3])
    return f"{len(ids)} ({first}{', …' if len(ids) > 3 else ''})"
