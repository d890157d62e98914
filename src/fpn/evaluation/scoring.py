"""COCO's numbers from saved results: box AP and AR, and the recall of proposals.

Every number is in [0, 1], or NaN where no ground truth of its kind exists. Areas are those of the annotation
file (of the masks, in COCO): small is below 32², large above 96² pixels; results count by width × height.
"""

import math
from typing import NamedTuple

import numpy as np

from fpn.data.coco_file import uncollected
from fpn.evaluation.engines import AREA_RANGES, Engine, accumulate, by_images, class_agnostic
from fpn.evaluation.inputs import (
    AnnotationSource,
    GroundTruth,
    Results,
    ResultSource,
    read_results,
    read_truth,
)

AREAS = ("", "_small", "_medium", "_large")
BOX_LIMITS = (1, 10, 100)
PROPOSAL_LIMITS = (100, 1000)
_AP_NAMES = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
BOX_NAMES = (*_AP_NAMES, "AR@1", "AR@10", "AR@100", "AR_small", "AR_medium", "AR_large")
PROPOSAL_NAMES = tuple(f"AR@{limit}{area}" for limit in PROPOSAL_LIMITS for area in AREAS)
IOU_50, IOU_75 = 0, 5
IMAGES_AT_ONCE = 250


class BoxScores(NamedTuple):
    """The numbers of one run, overall and by category."""

    overall: dict[str, float]
    """`BOX_NAMES`."""
    categories: dict[str, dict[str, float]]
    """By name, in the order of the category ids: AP AP50 AP75 AP_small AP_medium AP_large."""
    precision: np.ndarray
    """(10, 101, K) interpolated precision at IoU .50:.05:.95, recall 0:.01:1, by category in that order.

    At up to 100 detections and of objects of all sizes; -1 where there is none.
    """


def score_boxes(
    annotations: AnnotationSource,
    results: ResultSource,
    *,
    engine: Engine = "faster",
) -> BoxScores:
    """COCO's twelve numbers and their table by category, from one evaluation.

    `annotations` and `results` are COCO files or what such files hold. An empty list of results scores 0.

    Raises InputError for files, entries or ids that cannot be scored. Source: the COCO detection protocol
    (cocodataset.org/#detection-eval); paper, Tables 2–4.
    """
    return box_scores(*_read(annotations, results, with_categories=True), engine=engine)


def evaluate_proposals(
    annotations: AnnotationSource,
    results: ResultSource,
    *,
    engine: Engine = "faster",
) -> dict[str, float]:
    """Class-agnostic average recall over IoU .50:.95 of raw proposals, at 100 and at 1000 per image.

    Keys: `PROPOSAL_NAMES`. Every ground truth counts, also in images without proposals; crowds are ignored.
    Arguments and errors as in `score_boxes`, but results need no `category_id`. Source: paper, Sec. 5.1 and
    Table 1; pycocotools' `COCOeval` with `useCats = 0`.
    """
    return proposal_scores(*_read(annotations, results, with_categories=False), engine=engine)


def box_scores(truth: GroundTruth, results: Results, *, engine: Engine = "faster") -> BoxScores:
    """`score_boxes` of what has been read and checked already."""
    table = accumulate(truth, results, BOX_LIMITS, engine=engine)
    overall = _average_precisions(table.precision)
    overall |= {f"AR@{limit}": _mean(table.recall[:, :, 0, i]) for i, limit in enumerate(BOX_LIMITS)}
    overall |= {f"AR{area}": _mean(table.recall[:, :, i, -1]) for i, area in enumerate(AREAS) if area}
    names = truth.categories.values()
    by_name = {name: _average_precisions(table.precision[:, :, [k]]) for k, name in enumerate(names)}
    return BoxScores(overall, by_name, table.precision[..., 0, -1])


def proposal_scores(truth: GroundTruth, results: Results, *, engine: Engine = "faster") -> dict[str, float]:
    """`evaluate_proposals` of what has been read and checked already."""
    lower, upper = np.array(AREA_RANGES).T
    objects = np.zeros(len(AREA_RANGES), dtype=np.int64)
    found = np.zeros((10, len(AREA_RANGES), len(PROPOSAL_LIMITS)))
    # The engines take 1.5 kB per proposal, 7 GB for 1000 on each of 5000 images. Recall is found / objects,
    # both of them counts, so parts of the images give exactly what all at once would.
    for part, some in by_images(*class_agnostic(truth, results), IMAGES_AT_ONCE):
        sizes = part.areas[~part.crowd][:, None]
        among = ((lower <= sizes) & (sizes <= upper)).sum(axis=0)
        recall = accumulate(part, some, PROPOSAL_LIMITS, engine=engine).recall[:, 0]
        found += np.rint(recall * among[:, None])
        objects += among
    recall = np.where(objects[:, None] > 0, found / np.maximum(objects, 1)[:, None], -1)
    # Averaged here, because pycocotools' `summarize` gives -1 for limits other than 100.
    return {
        f"AR@{limit}{area}": _mean(recall[:, a, i])
        for i, limit in enumerate(PROPOSAL_LIMITS)
        for a, area in enumerate(AREAS)
    }


@uncollected()
def _read(
    annotations: AnnotationSource, results: ResultSource, with_categories: bool
) -> tuple[GroundTruth, Results]:
    truth = read_truth(annotations)
    return truth, read_results(results, truth, with_categories=with_categories)


def _average_precisions(precision: np.ndarray) -> dict[str, float]:
    """The six AP numbers of (T, R, K, A, L) precisions, at the highest limit."""
    best = precision[..., -1]
    return {
        "AP": _mean(best[..., 0]),
        "AP50": _mean(best[IOU_50, ..., 0]),
        "AP75": _mean(best[IOU_75, ..., 0]),
        **{f"AP{area}": _mean(best[..., i]) for i, area in enumerate(AREAS) if area},
    }


def _mean(values: np.ndarray) -> float:
    """The mean over the settings that have ground truth, as the COCO protocol takes it."""
    valid = values[values > -1]
    return float(valid.mean()) if valid.size else math.nan
