"""COCO's matching of results to ground truth, by either of two engines.

Symbols: T IoU thresholds .50:.05:.95, R recall thresholds 0:.01:1, K categories, A areas (by default all,
small, medium, large), L limits on the results per image.

Both engines get the same fresh Python dicts of float64 numbers, held in memory, and match alike: their
recall is equal to the last bit. Their precision differs by up to 2.3e-16, because pycocotools adds
`np.spacing(1)` to each denominator and faster-coco-eval does not.
"""

import contextlib
import io
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple, get_args

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from fpn.data.coco_json import uncollected
from fpn.errors import InputError
from fpn.evaluation.inputs import GroundTruth, Results

Engine = Literal["faster", "pycocotools"]
"""faster-coco-eval (C++), or the reference it must equal."""

AREA_RANGES = ((0.0, 1e10), (0.0, 32.0**2), (32.0**2, 96.0**2), (96.0**2, 1e10))
"""All, small, medium and large, in square pixels; both ends belong to each."""


class Accumulated(NamedTuple):
    """Precision and recall, -1 where there is no ground truth of the kind."""

    precision: np.ndarray
    """(T, R, K, A, L) interpolated precision."""
    recall: np.ndarray
    """(T, K, A, L) highest recall."""


@uncollected()
def accumulate(
    truth: GroundTruth,
    results: Results,
    limits: Sequence[int],
    *,
    areas: Sequence[tuple[float, float]] = AREA_RANGES,
    engine: Engine = "faster",
) -> Accumulated:
    """Matches results to the ground truth of the images in `truth` by the COCO protocol.

    `limits` are the numbers of best results per image and category that count, ascending; `areas` are ranges
    of the annotations' areas in square pixels, to both of which ends an object may belong. Results of other
    images than those of `truth` are left out. Categories are in the order of `truth.categories`.

    Raises InputError for an unknown engine.
    """
    if engine not in get_args(Engine):
        raise InputError(f"engine: {engine!r} is unknown; use one of {', '.join(get_args(Engine))}")
    if engine == "faster":
        # Its default prints nothing but logs at level INFO, which many programs show.
        evaluator = partial(faster_coco_eval.COCOeval_faster, print_function=lambda *_: None)
        index = faster_coco_eval.COCO
    else:
        evaluator, index = pycocotools.cocoeval.COCOeval, pycocotools.coco.COCO
    # pycocotools prints its progress, with no switch to turn that off.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(
            _indexed(index, truth, truth.annotations),
            _indexed(index, truth, _detections(truth, results)),
            "bbox",
        )
        evaluation.params.areaRng = [list(bounds) for bounds in areas]
        evaluation.params.maxDets = list(limits)
        evaluation.evaluate()
        evaluation.accumulate()
    return Accumulated(
        np.asarray(evaluation.eval["precision"]).reshape(evaluation.eval["counts"]),
        np.asarray(evaluation.eval["recall"]).reshape(np.delete(evaluation.eval["counts"], 1)),
    )


def class_agnostic(truth: GroundTruth, results: Results) -> tuple[GroundTruth, Results]:
    """The same with a single category, 'object', of id 1: what pycocotools calls `useCats = 0`.

    With one category in place of `useCats`, the engines' default path serves, and no proposal is lost whose
    category id the annotation file lacks (pycocotools skips those without a word).
    """
    # pycocotools lists the objects of an image category by category, and that order settles equal scores and
    # equal IoUs.
    order = np.argsort(results.category_ids, kind="stable")
    objects = sorted(truth.annotations, key=lambda one: one["category_id"])
    return (
        truth._replace(categories={1: "object"}, annotations=[{**one, "category_id": 1} for one in objects]),
        Results(results.image_ids[order], np.ones_like(order), results.boxes[order], results.scores[order]),
    )


def by_images(truth: GroundTruth, results: Results, size: int) -> Iterator[tuple[GroundTruth, Results]]:
    """Parts of `size` images each, by ascending image id: their ground truth and results."""
    images = np.array(sorted(truth.image_ids), dtype=np.int64)
    objects: dict[int, list[dict[str, Any]]] = {id_: [] for id_ in images.tolist()}
    for one in truth.annotations:
        objects[one["image_id"]].append(one)
    order = np.argsort(results.image_ids, kind="stable")
    sorted_ids = results.image_ids[order]
    for start in range(0, len(images), size):
        part = images[start : start + size]
        first, last = np.searchsorted(sorted_ids, part[0]), np.searchsorted(sorted_ids, part[-1], "right")
        chosen = order[first:last]
        yield (
            truth._replace(
                image_ids=frozenset(part.tolist()),
                annotations=[one for id_ in part.tolist() for one in objects[id_]],
            ),
            Results(*(column[chosen] for column in results)),
        )


def _detections(truth: GroundTruth, results: Results) -> Iterator[dict[str, Any]]:
    """Entries as `COCO.loadRes` makes them, less the polygons, which boxes do not need."""
    kept = np.isin(results.image_ids, np.array(sorted(truth.image_ids), dtype=np.int64))
    boxes = results.boxes[kept]
    columns = (
        results.image_ids[kept],
        results.category_ids[kept],
        boxes,
        boxes[:, 2] * boxes[:, 3],
        results.scores[kept],
    )
    for image, category, box, area, score in zip(*(one.tolist() for one in columns), strict=True):
        yield {
            "image_id": image,
            "category_id": category,
            "bbox": box,
            "area": area,
            "score": score,
            "iscrowd": 0,
        }


def _indexed(index: type[Any], truth: GroundTruth, entries: Iterable[dict[str, Any]]) -> Any:
    """A COCO object of the given library. It gets dicts of its own: the engines write into them."""
    coco = index()
    coco.dataset = {
        "images": [{"id": id_} for id_ in sorted(truth.image_ids)],
        "categories": [{"id": id_, "name": name} for id_, name in truth.categories.items()],
        # Ids from 1, whatever the file says: both engines take a match with id 0 for no match.
        "annotations": [{**entry, "id": number} for number, entry in enumerate(entries, start=1)],
    }
    coco.createIndex()
    return coco
