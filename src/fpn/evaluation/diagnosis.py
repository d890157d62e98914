"""What lies behind the scores of a test: what errors cost, what is taken for what, sizes and levels.

Symbols: I images, B objects, M results, K categories, T the IoU thresholds .50:.05:.95. Numbers are in
[0, 1]; None where there is no object. Crowds are COCO's: they are no objects, and what lies in one is no
error.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from fpn.evaluation.curves import LIMITS, known
from fpn.evaluation.engines import AREA_RANGES
from fpn.evaluation.inputs import GroundTruth, Results
from fpn.evaluation.matching import (
    IOUS,
    Pairs,
    Verdicts,
    match,
    object_pairs,
    overlapping,
    precision_recall,
    ranked,
    ranks_found,
    recall_at,
    verdicts,
)
from fpn.ops.levels import assign_levels

IOU, LITTLE = 0.5, 0.1
"""TIDE's t_f, above which a box is right, and t_b, below which it is on background."""
TOLD = (10, 100, 1000)
"""Those that tables have."""
KINDS = ("classification", "localisation", "both", "duplicate", "background", "missed")
SIZES = ("small", "medium", "large")


class Pyramid(NamedTuple):
    """The levels of Eq. 1; the arguments of `fpn.ops.levels.assign_levels`."""

    lowest: int = 2
    highest: int = 5
    canonical_size: float = 224.0
    canonical_level: int = 4


@dataclass(frozen=True)
class OfObjects:
    """The scores of the objects of one size or level."""

    by: str
    """What tells them apart: "image" (COCO's sizes in the original image), "input" (at the network's) or
    "level" (Eq. 1)."""
    name: str
    objects: int
    scores: dict[str, float | None]
    """AP, AP50 and AR@100 of detections; AR@10, AR@100 and AR@1000 of proposals."""


@dataclass(frozen=True)
class Errors:
    """TIDE's errors at an IoU of .5 (Bolya et al., ECCV 2020, Sec. 2)."""

    AP50: float | None
    points: dict[str, float]
    """What AP50 would gain were all errors of a kind mended and no other: classification, localisation, both,
    duplicate, background, missed; besides, all false positives, and all false negatives."""
    counts: dict[str, int]
    """How many there are of the six."""


@dataclass(frozen=True)
class Confusion:
    """What was found as what, at an IoU of .5, of detections from a score on."""

    score: float
    counts: list[list[int]]
    """(K + 1, K + 1) a row a true category, a column a found one; the last of both is the background."""


@dataclass(frozen=True)
class DetectionDiagnosis:
    """Of detections."""

    errors: Errors
    confusion: Confusion
    groups: list[OfObjects]
    by_image: list[float | None]
    """(I) the panoptic quality of each image's boxes from the confusion's score on."""


@dataclass(frozen=True)
class ProposalDiagnosis:
    """Of class-agnostic proposals."""

    limits: list[int]
    average: list[float | None]
    """Average recall at each limit (paper, Sec. 5.1)."""
    by_iou: dict[int, list[float | None]]
    """Recall at each of the T IoUs, by limit."""
    groups: list[OfObjects]
    by_image: list[float | None]
    """(I) average recall of 100 proposals of each image."""


def diagnose(
    truth: GroundTruth,
    results: Results,
    scales: np.ndarray | None = None,
    pyramid: Pyramid = Pyramid(),
    score: float = 0.5,
) -> DetectionDiagnosis:
    """What lies behind the AP of detections.

    Args:
        truth: the objects of all images.
        results: up to 100 of an image and category count.
        scales: (I, 2) factors along x and y from an image to the network's input, by ascending image id.
            None: sizes at the input and levels are left out.
        pyramid: the levels there are.
        score: the least of what counts in the confusion matrix and for an image's quality.
    """
    found, _ = ranked(truth, results, 100)
    pairs = overlapping(truth, found, LITTLE)
    same = truth.category[pairs.object] == found.category_ids[pairs.result]
    alike = pairs.where(same & (pairs.iou >= IOU))
    at_50 = verdicts(truth, found, alike, ~truth.crowd, np.ones(len(found.scores), dtype=bool))
    groups = []
    for by, name, of, like in _groups(truth, found, scales, pyramid):
        objects = np.bincount(truth.category[of], minlength=len(truth.categories))
        curves = []
        for iou in IOUS:
            told = verdicts(truth, found, alike.where(alike.iou >= iou), of, like)
            curves.append(precision_recall(found.category_ids, told.right, ~told.ignored, objects))
        precision, recall = (np.stack(columns)[..., objects > 0] for columns in zip(*curves, strict=True))
        means = {"AP": precision, "AP50": precision[0], "AR@100": recall}
        scores = {key: float(values.mean()) if values.size else None for key, values in means.items()}
        groups.append(OfObjects(by, name, int(objects.sum()), scores))
    confusion, quality = _confused(truth, found, pairs, at_50.ignored, score)
    return DetectionDiagnosis(_errors(truth, found, pairs, at_50), confusion, groups, quality)


def diagnose_proposals(
    truth: GroundTruth,
    results: Results,
    scales: np.ndarray | None = None,
    pyramid: Pyramid = Pyramid(),
) -> ProposalDiagnosis:
    """What lies behind the recall of proposals; the arguments of `diagnose`, categories not used."""
    truth, found, rank, pairs = object_pairs(truth, results, LIMITS[-1])
    single, hits = ~truth.crowd, np.zeros(len(truth.crowd))
    ranks = ranks_found(pairs, rank, single, LIMITS[-1])
    hits[single] = (ranks < 100).mean(axis=0)
    groups = []
    for by, name, of, _ in _groups(truth, found, scales, pyramid):
        recalls = known(recall_at(ranks_found(pairs, rank, of, LIMITS[-1]), TOLD).mean(axis=0))
        scores = {f"AR@{limit}": recall for limit, recall in zip(TOLD, recalls, strict=True)}
        groups.append(OfObjects(by, name, int(of.sum()), scores))
    return ProposalDiagnosis(
        list(LIMITS),
        known(recall_at(ranks, LIMITS).mean(axis=0)),
        {limit: known(recall_at(ranks, [limit])[:, 0]) for limit in TOLD},
        groups,
        _shares(_by_image(truth, single, hits), _by_image(truth, single)),
    )


class Group(NamedTuple):
    """Objects of one size or level, and the results of it."""

    by: str
    name: str
    objects: np.ndarray
    """(B,) bool, crowds left out."""
    results: np.ndarray
    """(M,) bool."""


def _groups(truth: GroundTruth, found: Results, scales: np.ndarray | None, pyramid: Pyramid) -> list[Group]:
    factors = [(np.ones(len(truth.crowd)), np.ones(len(found.scores)))]
    if scales is not None:
        larger = scales.prod(axis=1)
        factors.append((larger[truth.image], larger[found.image_ids]))
    single = ~truth.crowd
    groups = []
    for by, (objects, results) in zip(("image", "input"), factors, strict=False):
        areas, boxes = truth.areas * objects, found.boxes[:, 2] * found.boxes[:, 3] * results
        for name, (low, high) in zip(SIZES, AREA_RANGES[1:], strict=True):
            within = [(low <= values) & (values <= high) for values in (areas, boxes)]
            groups.append(Group(by, name, within[0] & single, within[1]))
    if scales is not None:
        objects, results = (
            _levels(boxes, scales[image], pyramid)
            for boxes, image in ((truth.boxes, truth.image), (found.boxes, found.image_ids))
        )
        for level in range(pyramid.lowest, pyramid.highest + 1):
            groups.append(Group("level", f"P{level}", (objects == level) & single, results == level))
    return groups


def _levels(boxes: np.ndarray, scales: np.ndarray, pyramid: Pyramid) -> np.ndarray:
    sides = torch.from_numpy(boxes[:, 2:] * scales)
    return assign_levels(torch.cat([torch.zeros_like(sides), sides], dim=1), *pyramid).numpy()


def _errors(truth: GroundTruth, found: Results, pairs: Pairs, told: Verdicts) -> Errors:
    """In the order, and with the ties, of its authors' tidecv 1.0.1."""
    objects = np.bincount(truth.category[~truth.crowd], minlength=len(truth.categories))
    pairs = pairs.where(~truth.crowd[pairs.object])
    same = truth.category[pairs.object] == found.category_ids[pairs.result]
    own, owned = _best(pairs.where(same), len(told.right))
    other, others = _best(pairs.where(~same), len(told.right))
    kinds = np.select(
        [
            told.right | told.ignored,
            (own >= LITTLE) & (own <= IOU),
            other >= IOU,
            own > IOU,
            np.maximum(own, other) <= LITTLE,
        ],
        ["", "localisation", "classification", "duplicate", "background"],
        "both",
    )
    mendable = np.isin(kinds, ("localisation", "classification"))
    meant = np.where(kinds == "localisation", owned, others)
    free = np.ones(len(truth.crowd), dtype=bool)
    free[told.object[told.right]] = False
    # An object can be found once: of all that is mended to it, by the best.
    claims = np.flatnonzero(mendable)
    claims = claims[free[meant[claims]]]
    claims = claims[np.argsort(-found.scores[claims], kind="stable")]
    claimed, first = np.unique(meant[claims], return_index=True)
    mended = np.zeros(len(kinds), dtype=bool)
    mended[claims[first]] = True
    missed = free & ~truth.crowd
    missed[claimed] = False

    def average(
        right: np.ndarray,
        counted: np.ndarray,
        of: np.ndarray = found.category_ids,
        less: np.ndarray | int = 0,
    ) -> float:
        kept = np.flatnonzero(counted)
        if of is not found.category_ids:
            kept = kept[np.lexsort((-found.scores[kept], of[kept]))]
        left = objects - less
        table, _ = precision_recall(of[kept], right[kept], counted[kept], left)
        # A category of which neither objects nor results are left is out of the mean; of none, all is mended.
        some = np.bincount(of[kept], minlength=len(objects)) > 0
        values = table[:, (objects > 0) & ((left > 0) | some)]
        return float(values.mean()) if values.size else 1.0

    counts = {kind: int((kinds == kind).sum()) for kind in KINDS} | {"missed": int(missed.sum())}
    if not objects.any():
        return Errors(None, {}, counts)
    base = average(told.right, ~told.ignored)
    points = {}
    for kind in KINDS[:-1]:
        right = told.right | (mended & (kinds == kind))
        category = found.category_ids
        if kind == "classification":
            category = np.where(right & ~told.right, truth.category[meant], category)
        points[kind] = average(right, ~told.ignored & (right | (kinds != kind)), category)
    lost = np.bincount(truth.category[missed], minlength=len(objects))
    points["missed"] = average(told.right, ~told.ignored, less=lost)
    points = {kind: max(value - base, 0.0) for kind, value in points.items()}
    unfound = np.bincount(truth.category[free & ~truth.crowd], minlength=len(objects))
    points["false positives"] = average(told.right, told.right) - base
    points["false negatives"] = average(told.right, ~told.ignored, less=unfound) - base
    return Errors(base, points, counts)


def _best(pairs: Pairs, results: int) -> tuple[np.ndarray, np.ndarray]:
    """The greatest IoU of each result, 0 without one, and with which object."""
    order = np.lexsort((pairs.object, -pairs.iou, pairs.result))
    first = order[np.diff(pairs.result[order], prepend=-1) > 0]
    iou, place = np.zeros(results), np.full(results, -1)
    iou[pairs.result[first]], place[pairs.result[first]] = pairs.iou[first], pairs.object[first]
    return iou, place


def _confused(
    truth: GroundTruth, found: Results, pairs: Pairs, ignored: np.ndarray, score: float
) -> tuple[Confusion, list[float | None]]:
    """Pairs of one category are matched first, then by IoU; every object and result once."""
    background = len(truth.categories)
    kept, single = found.scores >= score, ~truth.crowd
    pairs = pairs.where(kept[pairs.result] & single[pairs.object] & (pairs.iou >= IOU))
    wish = pairs.iou + (truth.category[pairs.object] == found.category_ids[pairs.result])
    rank = np.empty(len(wish), dtype=np.int64)
    rank[np.argsort(-wish, kind="stable")] = np.arange(len(wish))
    order = np.lexsort((rank, pairs.result))
    chosen = pairs.where(order[match(pairs.result[order], pairs.object[order], rank[order])])
    meant = np.full(len(kept), background)
    meant[chosen.result] = truth.category[chosen.object]
    counted = kept & ((meant < background) | ~ignored)
    unfound = single.copy()
    unfound[chosen.object] = False
    counts = np.zeros((background + 1, background + 1), dtype=np.int64)
    np.add.at(counts, (meant[counted], found.category_ids[counted]), 1)
    counts[:-1, -1] = np.bincount(truth.category[unfound], minlength=background)
    # Kirillov et al., Panoptic Segmentation, CVPR 2019, Eq. 1: IoUs of what is right over right + wrong / 2.
    right = chosen.where(truth.category[chosen.object] == found.category_ids[chosen.result])
    total = np.bincount(truth.image[right.object], right.iou, minlength=len(truth.image_ids))
    boxes = np.bincount(found.image_ids[counted], minlength=len(truth.image_ids))
    return Confusion(score, counts.tolist()), _shares(2 * total, boxes + _by_image(truth, single))


def _by_image(truth: GroundTruth, of: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    some = None if weights is None else weights[of]
    return np.bincount(truth.image[of], some, minlength=len(truth.image_ids))


def _shares(parts: np.ndarray, wholes: np.ndarray) -> list[float | None]:
    with np.errstate(divide="ignore", invalid="ignore"):
        return known(parts / wholes)
