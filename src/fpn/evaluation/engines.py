"""COCO's matching of results to ground truth, by either of two engines.

Symbols: T IoU thresholds .50:.05:.95, R recall thresholds 0:.01:1, K categories, A areas (by default all,
small, medium, large), L limits on the results per image.

Both engines get the same fresh Python dicts of float64 numbers, held in memory, and match alike: their recall
is equal to the last bit. Images and categories are numbered in the order of their ids, as engines tell ids
beyond 2^53 no longer apart. Their precision differs by up to 2.3e-16, because pycocotools adds
`np.spacing(1)` to each denominator and faster-coco-eval does not.
"""

import contextlib
import io
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, Literal, NamedTuple

import faster_coco_eval
import numpy as np
import pycocotools.coco
import pycocotools.cocoeval

from fpn.data.coco_file import uncollected
from fpn.data.entries import places_in
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
    engine: Engine = "faster",
) -> Accumulated:
    """Matches results to the ground truth of the images in `truth` by the COCO protocol.

    `limits` are the numbers of best results per image and category that count, ascending. Results of other
    images than those of `truth` are left out. Categories are in the order of `truth.categories`.
    """
    if engine == "faster":
        # Its default prints nothing but logs at level INFO, which many programs show.
        evaluator = partial(faster_coco_eval.COCOeval_faster, print_function=lambda *_: None)
        index = faster_coco_eval.COCO
    else:
        evaluator, index = pycocotools.cocoeval.COCOeval, pycocotools.coco.COCO
    objects = (truth.image, truth.category, truth.boxes, truth.areas, truth.crowd, np.zeros(len(truth.image)))
    image, category, boxes, scores = numbered(truth, results)
    # As `COCO.loadRes` makes them, less the polygons, which boxes do not need.
    found = (image, category, boxes, boxes[:, 2] * boxes[:, 3], np.zeros(len(image), dtype=bool), scores)
    # pycocotools prints its progress, with no switch to turn that off.
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation = evaluator(
            _indexed(index, truth, objects),
            _indexed(index, truth, found),
            "bbox",
        )
        evaluation.params.areaRng = [list(bounds) for bounds in AREA_RANGES]
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
    objects = truth.with_objects(np.argsort(truth.category, kind="stable"))
    return (
        objects._replace(categories={1: "object"}, category=np.zeros_like(objects.category)),
        Results(results.image_ids[order], np.ones_like(order), results.boxes[order], results.scores[order]),
    )


def by_images(truth: GroundTruth, results: Results, size: int) -> Iterator[tuple[GroundTruth, Results]]:
    """Parts of `size` images each, by ascending image id: their ground truth and results."""
    order = np.argsort(results.image_ids, kind="stable")
    sorted_ids = results.image_ids[order]
    for start in range(0, len(truth.image_ids), size):
        part = truth.at(np.arange(start, min(start + size, len(truth.image_ids))))
        first = np.searchsorted(sorted_ids, part.image_ids[0])
        last = np.searchsorted(sorted_ids, part.image_ids[-1], "right")
        yield part, Results(*(column[order[first:last]] for column in results))


def numbered(truth: GroundTruth, results: Results) -> Results:
    """Results of listed images and categories alone, with their places in `truth` as ids."""
    categories = np.array([*truth.categories], dtype=np.int64)
    image, category = (
        places_in(truth.image_ids, results.image_ids),
        places_in(categories, results.category_ids),
    )
    kept = (image >= 0) & (category >= 0)
    return Results(*(column[kept] for column in (image, category, results.boxes, results.scores)))


def _indexed(index: type[Any], truth: GroundTruth, columns: Sequence[np.ndarray]) -> Any:
    """A COCO object of the given library. It gets dicts of its own: the engines write into them."""
    coco = index()
    rows = zip(*(column.tolist() for column in columns), strict=True)
    coco.dataset = {
        "images": [{"id": image} for image in range(len(truth.image_ids))],
        "categories": [{"id": place, "name": name} for place, name in enumerate(truth.categories.values())],
        # Ids from 1: both engines take a match with id 0 for no match.
        "annotations": [
            {
                "id": number,
                "image_id": image,
                "category_id": category,
                "bbox": box,
                "area": area,
                "iscrowd": int(crowd),
                "score": score,
            }
            for number, (image, category, box, area, crowd, score) in enumerate(rows, start=1)
        ],
    }
    coco.createIndex()
    return coco
