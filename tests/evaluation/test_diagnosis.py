"""Against loops from the definitions, COCO's own code on boxes at the input, and cases worked out by hand."""

import itertools
import json
import math
from dataclasses import asdict
from typing import Any

import numpy as np
import pytest

from fpn.evaluation import Pyramid, diagnose, diagnose_proposals, engines, matching
from fpn.evaluation.diagnosis import KINDS
from fpn.evaluation.engines import accumulate, class_agnostic
from fpn.evaluation.inputs import GroundTruth, Results, read_results, read_truth
from fpn.evaluation.scoring import box_scores

IMAGES, NAMES = 30, {3: "a", 7: "b", 9: "c"}


def given(objects: list[dict[str, Any]], found: list[dict[str, Any]]) -> tuple[GroundTruth, Results]:
    images = sorted({one["image_id"] for one in [*objects, *found]})
    truth = read_truth(
        {
            "images": [{"id": id_} for id_ in images],
            "categories": [{"id": id_, "name": name} for id_, name in NAMES.items()],
            "annotations": objects,
        }
    )
    return truth, read_results(found, truth, with_categories=True)


def thing(box: list[float], category: int = 3, image: int = 1, **more: Any) -> dict[str, Any]:
    return {"image_id": image, "category_id": category, "bbox": box, "area": box[2] * box[3]} | more


@pytest.fixture(scope="module")
def random_set() -> tuple[GroundTruth, Results]:
    """Objects of three categories, crowds, an image without any; jittered, mistaken and made-up results."""
    random = np.random.default_rng(3)
    objects, found = [], []
    for image in range(1, IMAGES + 1):
        own = []
        for _ in range(int(random.integers(0, 7)) * (image > 1)):
            side, shape = 2 ** random.uniform(3, 8.5), random.uniform(0.6, 1.6)
            box = [*random.uniform(0, 200, 2), side * shape, side / shape]
            own.append(thing(box, int(random.choice([3, 7, 9])), image, iscrowd=int(random.random() < 0.12)))
            own[-1]["area"] *= random.uniform(0.4, 1)
        objects += own
        seen = own[image % 2 :]
        for _ in range(40):
            if seen and random.random() < 0.8:
                one = seen[random.integers(len(seen))]
                box = np.array(one["bbox"])
                box += random.normal(0, random.choice([0.02, 0.1, 0.3]), 4) * np.tile(box[2:], 2)
                category = one["category_id"] if random.random() < 0.7 else int(random.choice([3, 7, 9]))
            else:
                box, category = random.uniform(5, 150, 4), int(random.choice([3, 7, 9]))
            box[2:] = np.abs(box[2:]).clip(2)
            found.append(thing(box.tolist(), category, image, score=float(random.random())))
    return given(objects, found)


def iou(a: np.ndarray, b: np.ndarray, crowd: bool = False) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return float(both / (a[2] * a[3] + (0 if crowd else b[2] * b[3] - both)))


class Loops:
    """What TIDE's paper and COCO's protocol say, detection by detection."""

    def __init__(self, truth: GroundTruth, results: Results) -> None:
        self.truth = truth
        places = {id_: k for k, id_ in enumerate(truth.categories)}
        image = {id_: i for i, id_ in enumerate(truth.image_ids.tolist())}
        self.score = results.scores
        self.category = [places[id_] for id_ in results.category_ids.tolist()]
        self.objects = [np.flatnonzero(truth.image == i) for i in range(len(truth.image_ids))]
        self.image = [image[id_] for id_ in results.image_ids.tolist()]
        self.boxes = results.boxes
        self.order = sorted(range(len(self.score)), key=lambda d: -self.score[d])
        self.taken: dict[int, int] = {}
        self.right: set[int] = set()
        self.ignored: set[int] = set()
        for d in self.order:
            near = self.near(d, lambda g, d=d: truth.category[g] == self.category[d] and g not in self.taken)
            if near[0] >= 0.5:
                self.taken[near[1]] = d
                self.right.add(d)
            elif self.in_crowd(d):
                self.ignored.add(d)

    def near(self, d: int, allowed: Any) -> tuple[float, int]:
        own = [g for g in self.objects[self.image[d]] if not self.truth.crowd[g] and allowed(g)]
        return max(((iou(self.boxes[d], self.truth.boxes[g]), g) for g in own), default=(0.0, -1))

    def in_crowd(self, d: int) -> bool:
        crowds = [g for g in self.objects[self.image[d]] if self.truth.crowd[g]]
        same = [g for g in crowds if self.truth.category[g] == self.category[d]]
        return any(iou(self.boxes[d], self.truth.boxes[g], crowd=True) >= 0.5 for g in same)

    def kind(self, d: int) -> tuple[str, int]:
        own, mine = self.near(d, lambda g: self.truth.category[g] == self.category[d])
        other, theirs = self.near(d, lambda g: self.truth.category[g] != self.category[d])
        if 0.1 <= own <= 0.5:
            return "localisation", mine
        if other >= 0.5:
            return "classification", theirs
        if own > 0.5:
            return "duplicate", -1
        return ("background" if max(own, other) <= 0.1 else "both"), -1

    def ap(self, points: list[tuple[int, float, bool]], objects: list[int]) -> float:
        """Of (category, score, right), as COCO interpolates it."""
        found = []
        for k, number in enumerate(objects):
            own = sorted(((s, ok) for c, s, ok in points if c == k), key=lambda point: -point[0])
            hits = np.cumsum([ok for _, ok in own]) if own else np.zeros(0)
            precision = hits / np.arange(1, len(own) + 1)
            recall = hits / max(number, 1)
            levels = (
                [max(precision[recall >= r], default=0) for r in np.linspace(0, 1, 101)] if number else [0]
            )
            if number or own:
                found.append(np.mean(levels))
        return float(np.mean(found))

    def errors(self) -> tuple[dict[str, float], dict[str, int]]:
        single = ~self.truth.crowd
        objects = np.bincount(self.truth.category[single], minlength=len(NAMES))
        wrong = {d: self.kind(d) for d in self.order if d not in self.right and d not in self.ignored}
        claimed: dict[int, int] = {}
        for d, (_, g) in wrong.items():
            if g >= 0 and g not in self.taken:
                claimed.setdefault(g, d)
        good = [(self.category[d], self.score[d], True) for d in self.right]
        bad = {d: (self.category[d], self.score[d], False) for d in wrong}
        base = self.ap([*good, *bad.values()], objects.tolist())
        points, counts = {}, {}
        for kind in KINDS[:-1]:
            counts[kind] = sum(one == kind for one, _ in wrong.values())
            left = [point for d, point in bad.items() if wrong[d][0] != kind]
            mended = [
                (int(self.truth.category[g]), self.score[d], True)
                for g, d in claimed.items()
                if wrong[d][0] == kind
            ]
            points[kind] = max(self.ap([*good, *left, *mended], objects.tolist()) - base, 0)
        unfound = [g for g in np.flatnonzero(single) if g not in self.taken]
        missed = [g for g in unfound if g not in claimed]
        counts["missed"] = len(missed)
        for name, lost in (("missed", missed), ("false negatives", unfound)):
            less = objects - np.bincount(self.truth.category[lost], minlength=len(NAMES))
            points[name] = self.ap([*good, *bad.values()], less.tolist()) - base
        points["false positives"] = self.ap(good, objects.tolist()) - base
        return points, counts

    def confusion(self, least: float) -> np.ndarray:
        pairs = []
        for d in self.order:
            if self.score[d] >= least:
                for g in self.objects[self.image[d]]:
                    overlap = iou(self.boxes[d], self.truth.boxes[g])
                    if overlap >= 0.5 and not self.truth.crowd[g]:
                        pairs.append((self.truth.category[g] == self.category[d], overlap, d, g))
        counts, done, gone = np.zeros((len(NAMES) + 1, len(NAMES) + 1), dtype=int), set(), set()
        for _, _, d, g in sorted(pairs, reverse=True):
            if d not in done and g not in gone:
                counts[self.truth.category[g], self.category[d]] += 1
                done.add(d)
                gone.add(g)
        for d in self.order:
            if self.score[d] >= least and d not in done | self.ignored:
                counts[-1, self.category[d]] += 1
        for g in np.flatnonzero(~self.truth.crowd):
            counts[self.truth.category[g], -1] += g not in gone
        return counts


def test_errors_and_confusion_equal_loops(random_set: tuple[GroundTruth, Results]) -> None:
    truth, results = random_set
    loops = Loops(truth, results)
    points, counts = loops.errors()
    found = diagnose(truth, results, score=0.3)
    assert pytest.approx(box_scores(truth, results).overall["AP50"], abs=1e-12) == found.errors.AP50
    assert found.errors.counts == counts
    assert found.errors.points == pytest.approx(points, abs=1e-12)
    assert all(number > 5 for number in counts.values())
    assert all(value > 0 for value in points.values()), "a kind that costs nothing is not tested"
    assert np.array_equal(found.confusion.counts, loops.confusion(0.3))


# A disc of category 3 at 0…100, another of category 7 at 200…300.
OBJECTS = [thing([0, 0, 100, 100]), thing([200, 200, 100, 100], 7)]
RIGHT = [thing([0, 0, 100, 100], score=0.9), thing([200, 200, 100, 100], 7, score=0.9)]


@pytest.mark.parametrize(
    ("found", "kind", "number", "points"),
    [
        # The object of category 3 is found only if the error is mended: AP goes from 1/2 to 1.
        ([RIGHT[1], thing([0, 0, 100, 40], score=0.8)], "localisation", 1, 0.5),
        ([RIGHT[1], thing([0, 0, 100, 100], 9, score=0.8)], "classification", 1, 0.5),
        # Nothing can be mended here, but a worse box can stand behind a better one: precision 1/2 before.
        ([*RIGHT, thing([0, 0, 100, 90], score=0.95)], "duplicate", 1, 0),
        ([*RIGHT, thing([500, 500, 9, 9], score=0.95)], "background", 1, 0.25),
        ([*RIGHT, thing([200, 200, 100, 40], score=0.95)], "both", 1, 0.25),
        ([RIGHT[1]], "missed", 1, 0.5),
    ],
)
def test_each_kind_of_error(found: list[dict[str, Any]], kind: str, number: int, points: float) -> None:
    errors = diagnose(*given(OBJECTS, found)).errors
    assert errors.counts[kind] == number
    others = {name: n for name, n in errors.counts.items() if name != kind}
    assert not any(others.values()), others
    assert errors.points[kind] == pytest.approx(points)


def test_a_missed_objects_category_is_left_out_when_nothing_of_it_is_left() -> None:
    """As in tidecv: AP of 3 was 0, and is no longer in the mean."""
    errors = diagnose(*given(OBJECTS, [RIGHT[1]])).errors
    assert (errors.AP50, errors.points["missed"], errors.points["false negatives"]) == (0.5, 0.5, 0.5)


def test_the_confusion_matrix_by_hand() -> None:
    found = [
        thing([0, 0, 100, 95], 7, score=0.9),  # overlaps more, and of another category
        thing([0, 0, 100, 80], 3, score=0.6),  # is preferred
        thing([200, 200, 100, 90], 9, score=0.7),  # b taken for c
        thing([200, 200, 100, 100], 7, score=0.2),  # below the score
        thing([700, 700, 50, 50], 9, score=0.8),  # in a crowd of c: not counted
        thing([700, 700, 50, 50], 3, score=0.8),  # a crowd of others is background
    ]
    crowd = thing([600, 600, 300, 300], 9, iscrowd=1)
    alone = thing([0, 0, 10, 10], 9, image=2)
    confusion = diagnose(*given([*OBJECTS, crowd, alone], found), score=0.5).confusion
    assert confusion.counts == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]


def test_quality_of_images_by_hand() -> None:
    objects = [*OBJECTS, thing([0, 0, 10, 10], image=2), thing([5, 5, 10, 10], image=3, iscrowd=1)]
    found = [RIGHT[0], thing([200, 200, 100, 80], 7, score=0.8), thing([500, 0, 10, 10], 9, score=0.7)]
    # IoUs 1 and 0.8, nothing missed, one too many; image 2 missed; image 3 has nothing to find.
    assert diagnose(*given(objects, found)).by_image == [pytest.approx(1.8 / 2.5), 0, None]


@pytest.mark.parametrize("at_once", [7, 2**20])
def test_sizes_and_levels_equal_pycocotools(
    random_set: tuple[GroundTruth, Results], at_once: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
    truth, results = random_set
    scales = np.random.default_rng(1).uniform(0.5, 3, (IMAGES, 1)).repeat(2, axis=1)
    pyramid = Pyramid(2, 4, 112.0, 4)
    found = diagnose(truth, results, scales, pyramid)
    proposed = diagnose_proposals(truth, results, scales, pyramid)
    of = np.searchsorted(truth.image_ids, results.image_ids)
    at_input = (
        truth._replace(
            boxes=truth.boxes * np.tile(scales, 2)[truth.image],
            areas=truth.areas * scales.prod(1)[truth.image],
        ),
        results._replace(boxes=results.boxes * np.tile(scales, 2)[of]),
    )
    assert [(one.by, one.name) for one in found.groups] == [
        *(("image", size) for size in ("small", "medium", "large")),
        *(("input", size) for size in ("small", "medium", "large")),
        *(("level", f"P{k}") for k in (2, 3, 4)),
    ]
    for start, pair in ((0, (truth, results)), (3, at_input)):
        overall = box_scores(*pair, engine="pycocotools").overall
        for one in found.groups[start : start + 3]:
            assert one.scores["AP"] == pytest.approx(overall[f"AP_{one.name}"], abs=1e-12)
            assert one.scores["AR@100"] == pytest.approx(overall[f"AR_{one.name}"], abs=1e-12)
    # Eq. 1 with 112 pixels on P4: P2 below 56, P4 from 112 on, by the box.
    edges = [0, 56.0**2, 112.0**2, 1e10]
    levels = [(low, math.nextafter(high, 0)) for low, high in itertools.pairwise(edges)]
    boxes = at_input[0].boxes
    by_box = at_input[0]._replace(areas=boxes[:, 2] * boxes[:, 3]), at_input[1]
    monkeypatch.setattr(engines, "AREA_RANGES", levels)
    table = accumulate(*by_box, (100,), engine="pycocotools").precision[..., 0]
    agnostic = class_agnostic(*by_box)
    recalls = accumulate(*agnostic, (10, 100, 1000), engine="pycocotools").recall[:, 0]
    for place, (one, other) in enumerate(zip(found.groups[6:], proposed.groups[6:], strict=True)):
        valid = table[..., place][table[..., place] > -1]
        assert one.scores["AP"] == pytest.approx(valid.mean(), abs=1e-12)
        half = table[0, ..., place]
        assert one.scores["AP50"] == pytest.approx(half[half > -1].mean(), abs=1e-12)
        assert list(other.scores.values()) == pytest.approx(recalls[:, place].mean(0), abs=1e-12)
        single = by_box[0].areas[~by_box[0].crowd]
        assert (
            one.objects == other.objects == ((edges[place] <= single) & (single < edges[place + 1])).sum() > 0
        )


def test_recall_equals_pycocotools(random_set: tuple[GroundTruth, Results]) -> None:
    found = diagnose_proposals(*random_set)
    recall = accumulate(*class_agnostic(*random_set), found.limits, engine="pycocotools").recall[:, 0, 0]
    assert found.average == pytest.approx(recall.mean(axis=0), abs=1e-12)
    for limit in (100, 1000):
        assert found.by_iou[limit] == pytest.approx(recall[:, found.limits.index(limit)], abs=1e-12)
    assert [one.by for one in found.groups] == ["image"] * 3
    single = ~random_set[0].crowd
    number = np.bincount(random_set[0].image[single], minlength=IMAGES - 1)
    shares = np.array([value or 0.0 for value in found.by_image])
    at_100 = dict(zip(found.limits, found.average, strict=True))[100]
    assert (shares * number).sum() / number.sum() == pytest.approx(at_100)


def test_nothing_found_and_nothing_to_find() -> None:
    for objects, found in (([], RIGHT), (OBJECTS, []), ([thing([0, 0, 9, 9], iscrowd=1)], RIGHT)):
        truth, results = given(objects, found)
        scales = np.ones((len(truth.image_ids), 2))
        told = diagnose(truth, results, scales), diagnose_proposals(truth, results, scales)
        json.dumps([asdict(one) for one in told], allow_nan=False)
        assert (None if truth.crowd.all() else 0) == told[0].errors.AP50
        assert told[1].average[-1] == (None if truth.crowd.all() else 0)
        assert told[0].errors.counts["missed"] == (0 if truth.crowd.all() else 2)
