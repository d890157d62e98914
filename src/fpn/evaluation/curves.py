"""Recall of class-agnostic proposals by their number, by the size of objects and by IoU.

Symbols: T IoU thresholds .50:.05:.95, L limits on the proposals per image. Average recall is the
mean over the thresholds (paper, Sec. 5.1).
"""

import math
from typing import Any

import numpy as np

from fpn.evaluation.engines import AREA_RANGES
from fpn.evaluation.inputs import GroundTruth, Results
from fpn.evaluation.matching import IOUS, object_pairs, ranks_found, recall_at

LIMITS = (1, 3, 10, 30, 100, 300, 1000)
DRAWN = (100, 1000)
"""The limits of the curves over size and IoU, those of Table 1."""
EDGES = tuple(2.0**k for k in range(3, 10))
"""Square roots of areas, in pixels, between one octave and the next: 8, 16, …, 512."""


def recall_curves(truth: GroundTruth, results: Results) -> dict[str, Any]:
    """Three curves of class-agnostic recall over the images of `truth`, for JSON.

    Matching is that of `evaluate_proposals`: every object counts, also in images without proposals;
    crowds are ignored. Size is the square root of the annotation's area in pixels; an octave is
    [from, to).

    Returns:
        `by_limit` has `limits` (L) and their average recall `AR`; `by_size` has the octaves, `from`
        and `to` (the last open, None), how many `objects` each has, and their `AR@100` and `AR@1000`;
        `by_iou` has `thresholds` (T) and the recall there, `recall@100` and `recall@1000`. Recalls
        are in [0, 1], None where there is no object.
    """
    truth, _, rank, pairs = object_pairs(truth, results, LIMITS[-1])
    sizes = [~truth.crowd & (low <= truth.areas) & (truth.areas <= high) for low, high in _octaves()]
    found = (ranks_found(pairs, rank, of, LIMITS[-1]) for of in (~truth.crowd, *sizes))
    recall = np.stack([recall_at(ranks, LIMITS) for ranks in found], axis=1)
    average = recall.mean(axis=0)
    drawn = {limit: LIMITS.index(limit) for limit in DRAWN}
    return {
        "by_limit": {"limits": list(LIMITS), "AR": known(average[0])},
        "by_size": {
            "from": [0.0, *EDGES],
            "to": [*EDGES, None],
            "objects": [int(of.sum()) for of in sizes],
            **{f"AR@{limit}": known(average[1:, index]) for limit, index in drawn.items()},
        },
        "by_iou": {
            "thresholds": IOUS.round(2).tolist(),
            **{f"recall@{limit}": known(recall[:, 0, index]) for limit, index in drawn.items()},
        },
    }


def _octaves() -> list[tuple[float, float]]:
    """Areas of each octave, in square pixels."""
    inner = [edge**2 for edge in EDGES]
    # Both ends of a COCO range belong to it: an object on an edge would count in two octaves.
    upper = [float(np.nextafter(area, 0)) for area in inner] + [AREA_RANGES[0][1]]
    return list(zip([AREA_RANGES[0][0], *inner], upper, strict=True))


def known(values: np.ndarray) -> list[float | None]:
    """Numbers for JSON, None for NaN."""
    return [None if math.isnan(value) else value for value in values.tolist()]
