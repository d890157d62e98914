"""Results matched to objects by the COCO protocol, in arrays: whole data sets in seconds.

The engines keep the numbers of record; what they do not tell, as which result matched which object, is found
here, in the same arithmetic. Tests hold the two equal.

Symbols: B objects, M results, P pairs of a result and an object of its image, K categories, R recall
thresholds 0:.01:1.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from fpn.evaluation.engines import class_agnostic, numbered
from fpn.evaluation.inputs import GroundTruth, Results

IOUS = np.linspace(0.5, 0.95, 10)
"""COCO's thresholds."""
RECALLS = np.linspace(0, 1, 101)
PAIRS_AT_ONCE = 2**20


class Pairs(NamedTuple):
    """Results and objects that overlap, in the order of the results; of each, the best comes first."""

    result: np.ndarray
    """(P,) places of results."""
    object: np.ndarray
    """(P,) places of objects."""
    iou: np.ndarray
    """(P,) float64; of a crowd, the share of the result's box that lies in it."""

    def where(self, kept: np.ndarray) -> "Pairs":
        """Some of them, by a mask (P,) or places."""
        return Pairs(*(column[kept] for column in self))


def ranked(truth: GroundTruth, results: Results, limit: int) -> tuple[Results, np.ndarray]:
    """The best results of each image and category, by category and score.

    Returns:
        The results, with places in `truth` as ids, and (M,) the rank of each in its image and category, from
        0. Of equal scores the first image, and in it the first in the file, is the better, as in COCO's code.
    """
    found = numbered(truth, results)
    order = np.lexsort((-found.scores, found.category_ids, found.image_ids))
    group = (found.image_ids * len(truth.categories) + found.category_ids)[order]
    rank = np.arange(len(group)) - np.searchsorted(group, group)
    order, rank = order[rank < limit], rank[rank < limit]
    again = np.lexsort((-found.scores[order], found.category_ids[order]))
    return Results(*(column[order[again]] for column in found)), rank[again]


def overlapping(truth: GroundTruth, found: Results, least: float) -> Pairs:
    """All pairs of at least this IoU, of the same image and of any categories."""
    parts = list(_overlapping(truth, found, least))
    pairs = Pairs(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))
    # Of equal overlaps COCO's code takes the later object.
    return pairs.where(np.lexsort((-pairs.object, -pairs.iou, pairs.result)))


def _overlapping(truth: GroundTruth, found: Results, least: float) -> Iterator[Pairs]:
    by_image = np.argsort(truth.image, kind="stable")
    begin = np.searchsorted(truth.image[by_image], np.arange(len(truth.image_ids) + 1))
    first, number = begin[found.image_ids], np.diff(begin)[found.image_ids]
    total = np.append(0, np.cumsum(number))
    cuts = np.searchsorted(total, np.arange(0, total[-1] + 2 * PAIRS_AT_ONCE, PAIRS_AT_ONCE))
    cuts = cuts.clip(max=len(number))
    for start, end in itertools.pairwise(cuts):
        own = number[start:end]
        result = np.repeat(np.arange(start, end), own)
        nth = np.arange(len(result)) - np.repeat(total[start:end] - total[start], own)
        place = by_image[nth + np.repeat(first[start:end], own)]
        (x, y, w, h), (u, v, p, q) = found.boxes[result].T, truth.boxes[place].T
        width = np.minimum(x + w, u + p) - np.maximum(x, u)
        height = np.minimum(y + h, v + q) - np.maximum(y, v)
        both = np.maximum(width, 0) * np.maximum(height, 0)
        either = np.where(truth.crowd[place], w * h, w * h + p * q - both)
        iou = np.divide(both, either, out=np.zeros_like(both), where=either > 0)
        kept = iou >= least
        yield Pairs(result[kept], place[kept], iou[kept])


def match(result: np.ndarray, target: np.ndarray, rank: np.ndarray) -> np.ndarray:
    """Each result gets the target it likes best of those that no result of lower rank takes.

    With the results' own order as rank that is COCO's greedy matching, in which the better scored chooses
    first. It is found by deferred acceptance (Gale and Shapley, 1962): a few rounds for all images together.

    Args:
        result: (P,) of pairs sorted by result, those a result likes best first.
        target: (P,) what it would get.
        rank: (P,) who is preferred by a target: the lowest; all of a target's are different.

    Returns:
        Places of the pairs that are matched.
    """
    live = np.arange(len(result))
    best = np.full(target.max(initial=-1) + 1, np.iinfo(np.int64).max)
    while True:
        first = live[np.diff(result[live], prepend=-1) > 0]
        np.minimum.at(best, target[first], rank[first])
        kept = live[rank[live] <= best[target[live]]]
        if len(kept) == len(live):
            return first
        live = kept


def object_pairs(
    truth: GroundTruth, results: Results, limit: int
) -> tuple[GroundTruth, Results, np.ndarray, Pairs]:
    """What class-agnostic recall is told by: truth, results and ranks as of `ranked`, pairs with objects."""
    truth, results = class_agnostic(truth, results)
    found, rank = ranked(truth, results, limit)
    pairs = overlapping(truth, found, IOUS[0])
    return truth, found, rank, pairs.where(~truth.crowd[pairs.object])


def ranks_found(pairs: Pairs, rank: np.ndarray, of: np.ndarray, most: int) -> np.ndarray:
    """How many better results there are than the one that finds an object, whatever the categories.

    Args:
        pairs: results and objects, of which none is a crowd.
        rank: (M,) of the results within their image.
        of: (B,) bool, the objects to be found; others are as if they were not there.
        most: stands for those that are not found.

    Returns:
        (10, objects to be found), at each of IOUS.
    """
    at = np.full((len(IOUS), len(of)), most)
    pairs = pairs.where(of[pairs.object])
    for found, iou in zip(at, IOUS, strict=True):
        close = pairs.where(pairs.iou >= iou)
        chosen = close.where(match(close.result, close.object, close.result))
        found[chosen.object] = rank[chosen.result]
    return at[:, of]


def recall_at(ranks: np.ndarray, limits: Sequence[int]) -> np.ndarray:
    """(10, L) the shares of objects, of `ranks_found`, that so many results find; NaN of no objects."""
    found = ranks < np.array(limits)[:, None, None]
    return found.sum(axis=2).T / (ranks.shape[1] or np.nan)


class Verdicts(NamedTuple):
    """What the results are to the objects of one kind."""

    right: np.ndarray
    """(M,) bool: matched to one of them."""
    ignored: np.ndarray
    """(M,) bool: neither right nor wrong, as in a crowd."""
    object: np.ndarray
    """(M,) the object of each that is right, else -1."""


def verdicts(truth: GroundTruth, found: Results, pairs: Pairs, of: np.ndarray, like: np.ndarray) -> Verdicts:
    """COCO's, of pairs of one category each.

    Args:
        truth: all objects.
        found: all results.
        pairs: those that overlap enough.
        of: (B,) bool, the objects that count; what matches others only is ignored, as are crowds.
        like: (M,) bool, results that are wrong if they match nothing; others are ignored then.
    """
    counts = of & ~truth.crowd
    # Whom a result may choose from: first the objects that count, of the others the best.
    pairs = pairs.where(np.argsort(2 * pairs.result + ~counts[pairs.object], kind="stable"))
    # A crowd may be matched by any number of results.
    crowd = truth.crowd[pairs.object]
    target = np.where(crowd, len(counts) + np.arange(len(crowd)), pairs.object)
    chosen = pairs.where(match(pairs.result, target, pairs.result))
    matched = np.full(len(found.scores), -1)
    matched[chosen.result] = chosen.object
    right = (matched >= 0) & counts[matched] if len(counts) else np.zeros_like(like)
    ignored = ~right & ((matched >= 0) | ~like)
    return Verdicts(right, ignored, np.where(right, matched, -1))


def precision_recall(
    category: np.ndarray, right: np.ndarray, counted: np.ndarray, objects: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """COCO's interpolated precision, and the highest recall.

    Args:
        category: (M,) ascending; of one category, the best result comes first.
        right: (M,) bool.
        counted: (M,) bool, right or wrong.
        objects: (K,) their numbers.

    Returns:
        (R, K) and (K,), 0 of a category without objects.
    """
    every = np.arange(len(objects) + 1)
    hits = np.flatnonzero(right)
    own = np.searchsorted(category[hits], every)
    passed = np.append(0, np.cumsum(counted))
    before = passed[np.searchsorted(category, every[:-1])]
    of = category[hits]
    nth = np.arange(len(hits)) - own[of] + 1
    precision = nth / np.maximum(passed[hits + 1] - before[of], 1)
    table, recall = np.zeros((len(RECALLS), len(objects))), np.zeros(len(objects))
    for k in np.flatnonzero(objects):
        at = slice(own[k], own[k + 1])
        # Between two hits precision only falls: what is highest from a recall on, is so at a hit.
        highest = np.maximum.accumulate(precision[at][::-1])[::-1]
        reached = nth[at] / objects[k]
        table[:, k] = np.append(highest, 0)[np.searchsorted(reached, RECALLS)]
        recall[k] = reached.max(initial=0)
    return table, recall
