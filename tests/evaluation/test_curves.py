import json
import math
from typing import Any

import numpy as np
import pytest
import torch

from fpn.evaluation import ProposalRecall, Truth, evaluate_proposals, matching, recall_curves
from fpn.evaluation.engines import Engine
from fpn.evaluation.inputs import read_results, read_truth
from fpn.types import Batch, Categories, Detections, Inference

LIMITS = [1, 3, 10, 30, 100, 300, 1000]
OCTAVES = [(0, 8), (8, 16), (16, 32), (32, 64), (64, 128), (128, 256), (256, 512), (512, math.inf)]
IMAGES = 4
CROWDED = 3
"""The image with more proposals than any limit."""


@pytest.fixture(scope="module")
def truth() -> dict[str, Any]:
    """Objects of all octaves but 256-512, some on their edges, of two categories; crowds; a bare image."""
    random = np.random.default_rng(5)
    objects: list[dict[str, Any]] = []
    for side in [8, 16, 32, 64, 128, 512, *np.exp2(random.uniform(2, 8, 30)), *random.uniform(512, 600, 3)]:
        width, height = side * (shape := random.uniform(0.7, 1.4)), side / shape
        box = [*(random.random(2) * 100).tolist(), float(width), float(height)]
        objects.append(
            {
                "image_id": int(random.integers(1, IMAGES)),
                "category_id": int(random.choice([10, 20])),
                "bbox": box,
                "area": float(side**2),
                "iscrowd": int(len(objects) > 6 and random.random() < 0.2),
            }
        )
    return {
        "images": [{"id": number} for number in range(1, IMAGES + 1)],
        "categories": [{"id": 10, "name": "a"}, {"id": 20, "name": "b"}],
        "annotations": objects,
    }


@pytest.fixture(scope="module")
def proposals(truth: dict[str, Any]) -> list[dict[str, Any]]:
    """Every object up to 40 times, jittered; 1100 in one image."""
    random = np.random.default_rng(6)
    by_image = {
        number: [one["bbox"] for one in truth["annotations"] if one["image_id"] == number]
        for number in range(1, IMAGES)
    }
    entries = []
    for number, boxes in by_image.items():
        for index in range(1100 if number == CROWDED else 40):
            box = np.array(boxes[random.integers(len(boxes))])
            box += random.normal(0, 0.12, 4) * box[[2, 3, 2, 3]]
            box[2:] = box[2:].clip(1)
            entries.append({"image_id": number, "bbox": box.tolist(), "score": 1 / (index + 1)})
    return [entries[i] for i in random.permutation(len(entries))]


def iou(a: list[float], b: list[float]) -> float:
    width = min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0])
    height = min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1])
    both = max(width, 0) * max(height, 0)
    return both / (a[2] * a[3] + b[2] * b[3] - both)


def matched(
    truth: dict[str, Any], proposals: list[dict[str, Any]], size: tuple[float, float]
) -> dict[int, np.ndarray]:
    """By percent of IoU, for each object of the size: how many proposals it takes until it is found.

    From the definition: each proposal, best first, takes the free object of highest IoU.
    """
    ranks: dict[int, list[float]] = {percent: [] for percent in range(50, 100, 5)}
    for image in truth["images"]:
        wanted = [
            one["bbox"]
            for one in truth["annotations"]
            if one["image_id"] == image["id"]
            and not one["iscrowd"]
            and size[0] <= math.sqrt(one["area"]) < size[1]
        ]
        mine = [one for one in proposals if one["image_id"] == image["id"]]
        mine.sort(key=lambda one: -one["score"])
        overlaps = [[iou(one["bbox"], box) for box in wanted] for one in mine]
        for percent, rank in ranks.items():
            taken = [math.inf] * len(wanted)
            for number, row in enumerate(overlaps, start=1):
                free = [i for i in range(len(wanted)) if math.isinf(taken[i]) and row[i] >= percent / 100]
                if free:
                    taken[max(free, key=lambda i: row[i])] = number
            rank += taken
    return {percent: np.array(rank) for percent, rank in ranks.items()}


def curves_of(truth: Any, proposals: Any) -> dict[str, Any]:
    ground = read_truth(truth)
    curves = recall_curves(ground, read_results(proposals, ground, with_categories=False))
    assert json.loads(json.dumps(curves, allow_nan=False)) == curves
    return curves


@pytest.mark.parametrize("at_once", [7, 2**20])
def test_curves_equal_loops(
    truth: dict[str, Any],
    proposals: list[dict[str, Any]],
    at_once: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(matching, "PAIRS_AT_ONCE", at_once)
    curves = curves_of(truth, proposals)

    everything = matched(truth, proposals, (0, math.inf))
    average = [np.mean([(ranks <= limit).mean() for ranks in everything.values()]) for limit in LIMITS]
    assert curves["by_limit"]["limits"] == LIMITS
    assert curves["by_limit"]["AR"] == pytest.approx(average, abs=1e-12)
    assert average == sorted(set(average)), "each limit has to matter, or nothing is tested"

    by_iou = curves["by_iou"]
    assert by_iou["thresholds"] == pytest.approx([percent / 100 for percent in everything])
    by_size = curves["by_size"]
    assert list(zip(by_size["from"], by_size["to"], strict=True)) == [*OCTAVES[:-1], (512, None)]
    octaves = [matched(truth, proposals, size) for size in OCTAVES]
    assert by_size["objects"] == [len(one[50]) for one in octaves]
    for limit in (100, 1000):
        expected = [(ranks <= limit).mean() for ranks in everything.values()]
        assert by_iou[f"recall@{limit}"] == pytest.approx(expected, abs=1e-12)
        for recall, one in zip(by_size[f"AR@{limit}"], octaves, strict=True):
            if len(one[50]):
                assert recall == pytest.approx(
                    np.mean([(r <= limit).mean() for r in one.values()]), abs=1e-12
                )
            else:
                assert recall is None


def test_an_object_on_an_edge_is_of_the_larger_octave_alone() -> None:
    sides = [8, 16, 32, 64, 128, 256, 512]
    objects = [
        {"image_id": 1, "category_id": 1, "bbox": [0, 0, side, side], "area": side**2} for side in sides
    ]
    objects.append({"image_id": 1, "category_id": 1, "bbox": [0, 0, 8, 8], "area": math.nextafter(64, 0)})
    data = {"images": [{"id": 1}], "categories": [{"id": 1, "name": "a"}], "annotations": objects}
    curves = curves_of(data, [{"image_id": 1, "bbox": [0, 0, 64, 64], "score": 1}])

    assert curves["by_size"]["objects"] == [1] * 8
    assert curves["by_size"]["AR@100"] == [0, 0, 0, 0, 1, 0, 0, 0]


@pytest.mark.parametrize("engine", ["faster", "pycocotools"])
def test_curves_meet_the_scores(
    truth: dict[str, Any], proposals: list[dict[str, Any]], engine: Engine
) -> None:
    curves = curves_of(truth, proposals)
    scores = evaluate_proposals(truth, proposals, engine=engine)

    by_limit = dict(zip(curves["by_limit"]["limits"], curves["by_limit"]["AR"], strict=True))
    for limit in (100, 1000):
        assert by_limit[limit] == pytest.approx(scores[f"AR@{limit}"], abs=1e-15)
        assert np.mean(curves["by_iou"][f"recall@{limit}"]) == pytest.approx(scores[f"AR@{limit}"], abs=1e-15)
        by_size = curves["by_size"]
        of_octaves = [(n, ar) for n, ar in zip(by_size["objects"], by_size[f"AR@{limit}"], strict=True) if n]
        assert len(of_octaves) == 7


def test_nothing_found_is_0_and_nothing_to_find_is_none(truth: dict[str, Any]) -> None:
    nothing = curves_of(truth, [])
    assert nothing["by_limit"]["AR"] == [0] * 7
    assert nothing["by_size"]["AR@1000"] == [0, 0, 0, 0, 0, 0, None, 0]
    assert nothing["by_iou"]["recall@100"] == [0] * 10

    empty = curves_of(truth | {"annotations": []}, [{"image_id": 1, "bbox": [0, 0, 5, 5], "score": 1}])
    assert empty["by_limit"]["AR"] == [None] * 7
    assert empty["by_size"]["objects"] == [0] * 8
    assert empty["by_size"]["AR@100"] == [None] * 8
    assert empty["by_iou"]["recall@1000"] == [None] * 10


def test_the_metrics_curves_are_of_the_images_seen(truth: dict[str, Any]) -> None:
    boxes = torch.tensor([[0.0, 0, 64, 64], [10, 10, 300, 200]])
    found = Detections(boxes, torch.tensor([0.9, 0.8]), torch.ones(2, dtype=torch.int64))
    metric = ProposalRecall()
    metric.score_on(Truth(truth, Categories((1,), ("object",))))
    entries = [
        {"image_id": number, "bbox": [x1, y1, x2 - x1, y2 - y1], "score": score}
        for number in (1, 2)
        for (x1, y1, x2, y2), score in zip(boxes.tolist(), found.scores.tolist(), strict=True)
    ]
    for seen in ([1], [1, 2]):
        metric.update(Batch(torch.empty(1, 3, 1, 1), [], [], seen[-1:]), Inference([found], None))
        part = truth | {
            "images": [{"id": number} for number in seen],
            "annotations": [one for one in truth["annotations"] if one["image_id"] in seen],
        }
        expected = curves_of(part, entries[: 2 * len(seen)])
        assert metric.curves() == expected
        metric.compute()
        assert metric.curves() == expected
