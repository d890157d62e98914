import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Started

from fpn.errors import InputError
from fpn.evaluation import (
    BoxAP,
    ProposalRecall,
    Truth,
    evaluate_proposals,
    recall_curves,
    score_boxes,
)
from fpn.evaluation.inputs import read_results, read_truth
from fpn.types import Batch, Categories, Detections, Inference

CATEGORIES = Categories((2, 7, 90), ("two", "seven", "ninety"))
IMAGES = [11, 4, 30, 8, 25, 3, 17]


@pytest.fixture
def truth() -> dict[str, Any]:
    """Six objects in each of seven images and of one more, which no test shows to a metric."""
    random = torch.Generator().manual_seed(1)
    objects: list[dict[str, Any]] = []
    for image_id in [*IMAGES, 99]:
        for number in range(6):
            x, y, width, height = (torch.rand(4, generator=random) * 150 + 5).tolist()
            objects.append(
                {
                    "id": len(objects) + 1,
                    "image_id": image_id,
                    "category_id": CATEGORIES.ids[number % 3],
                    "bbox": [x, y, width, height],
                    "area": 0.7 * width * height,
                    "iscrowd": int(number == 5),
                }
            )
    return {
        "images": [{"id": image_id} for image_id in [*IMAGES, 99]],
        "categories": [
            {"id": id_, "name": name} for id_, name in zip(CATEGORIES.ids, CATEGORIES.names, strict=True)
        ],
        "annotations": objects,
    }


@pytest.fixture
def found(truth: dict[str, Any]) -> dict[int, Detections]:
    """By image: each object three times, jittered, some of a wrong class; nothing in image 30."""
    random = torch.Generator().manual_seed(2)
    detections = {}
    for image_id in IMAGES:
        objects = [one for one in truth["annotations"] if one["image_id"] == image_id] * 3
        boxes = torch.tensor([one["bbox"] for one in objects])
        boxes = boxes + torch.randn(boxes.shape, generator=random) * 8
        boxes = torch.cat((boxes[:, :2], boxes[:, :2] + boxes[:, 2:].clamp(min=1)), dim=1)
        labels = torch.tensor([CATEGORIES.ids.index(one["category_id"]) + 1 for one in objects])
        labels = torch.where(torch.rand(len(labels), generator=random) < 0.8, labels, 1)
        scores = torch.rand(len(labels), generator=random)
        kept = 0 if image_id == 30 else None
        detections[image_id] = Detections(boxes[:kept], scores[:kept], labels[:kept])
    return detections


def scored_on(metric: Any, truth: Any, categories: Categories = CATEGORIES) -> Any:
    metric.score_on(Truth(truth, categories))
    return metric


def of(truth: dict[str, Any], images: list[int]) -> dict[str, Any]:
    """An annotation file of these images alone."""
    annotations = [one for one in truth["annotations"] if one["image_id"] in images]
    return truth | {"images": [{"id": id_} for id_ in images], "annotations": annotations}


def batch_of(images: list[int]) -> Batch:
    return Batch(torch.empty(len(images), 3, 1, 1), [], [], images)


def shown(metric: Any, found: dict[int, Detections], images: list[int], at_once: int = 2) -> Any:
    for start in range(0, len(images), at_once):
        some = images[start : start + at_once]
        boxes = [found[image_id] for image_id in some]
        metric.update(batch_of(some), Inference(boxes, boxes))
    return metric


def of_proposals(scores: dict[str, float]) -> dict[str, float]:
    return {f"proposal_{name}": value for name, value in scores.items()}


def entries(found: dict[int, Detections], images: list[int]) -> list[dict[str, Any]]:
    """Results as a file would hold them, made one by one."""
    return [
        {
            "image_id": image_id,
            "category_id": CATEGORIES.ids[int(label) - 1],
            "bbox": [float(x1), float(y1), float(x2) - float(x1), float(y2) - float(y1)],
            "score": float(score),
        }
        for image_id in images
        for (x1, y1, x2, y2), score, label in zip(*found[image_id], strict=True)
    ]


def test_results_are_coco_entries(truth: dict[str, Any], found: dict[int, Detections]) -> None:
    expected = entries(found, sorted(IMAGES))
    boxes = list(shown(scored_on(BoxAP(), truth), found, IMAGES).results())
    proposals = list(shown(scored_on(ProposalRecall(), truth), found, IMAGES).results())

    assert boxes == expected
    assert proposals == [one | {"category_id": 1} for one in expected]
    assert json.loads(json.dumps(boxes)) == boxes
    assert {type(value) for value in boxes[0].values()} == {int, list, float}


def test_numbers_are_those_of_the_images_seen(truth: dict[str, Any], found: dict[int, Detections]) -> None:
    metric = scored_on(BoxAP(), truth)
    recall = scored_on(ProposalRecall(), truth)
    for images in (IMAGES, IMAGES[:3]):
        metric.reset()
        recall.reset()
        results = entries(found, images)
        scores = shown(metric, found, images).compute()
        expected = score_boxes(of(truth, images), results)
        assert (scores, metric.by_category) == (expected.overall, expected.categories)
        recalls = evaluate_proposals(of(truth, images), results)
        assert shown(recall, found, images, at_once=1).compute() == of_proposals(recalls)
    assert 0.05 < scores["AP"] < 0.95
    assert scores["AP"] != score_boxes(truth, results).overall["AP"]


def test_numbers_follow_a_later_update(truth: dict[str, Any], found: dict[int, Detections]) -> None:
    metric = shown(scored_on(BoxAP(), truth), found, IMAGES[:2])
    metric.compute()
    shown(metric, found, IMAGES[2:])

    assert list(metric.results()) == entries(found, sorted(IMAGES))
    assert metric.compute() == score_boxes(of(truth, IMAGES), entries(found, IMAGES)).overall


def test_annotations_are_read_late(tmp_path: Path, found: dict[int, Detections]) -> None:
    metric = shown(scored_on(ProposalRecall(), tmp_path / "absent.json"), found, IMAGES)
    with pytest.raises(InputError, match=r"absent\.json: no such annotations file"):
        metric.compute()


def test_an_image_seen_twice_is_an_error(truth: dict[str, Any], found: dict[int, Detections]) -> None:
    metric = shown(scored_on(BoxAP(), truth), found, [*IMAGES, 8])
    with pytest.raises(RuntimeError, match="of id 8"):
        metric.compute()
    metric.reset()
    assert shown(metric, found, IMAGES).compute()["AP"] > 0


def test_images_and_categories_of_another_set_are_refused(
    truth: dict[str, Any], found: dict[int, Detections]
) -> None:
    with pytest.raises(InputError, match=r"1 \(12345\) not in annotations"):
        shown(scored_on(ProposalRecall(), truth), {12345: found[8]}, [12345]).compute()
    with pytest.raises(InputError, match=r"none of the detector's category ids, as \[91, 92, 93\]"):
        shown(scored_on(BoxAP(), truth, Categories((91, 92, 93), ("a", "b", "c"))), found, IMAGES).compute()


@pytest.mark.parametrize("label", [0, 4])
def test_labels_out_of_range_are_refused(truth: dict[str, Any], label: int) -> None:
    wrong = {8: Detections(torch.ones(1, 4), torch.ones(1), torch.tensor([label]))}
    with pytest.raises(RuntimeError, match=rf"labels {label}…{label} found; they must be in 1…3"):
        shown(scored_on(BoxAP(), truth), wrong, [8]).compute()


def test_numbers_that_are_not_finite_are_refused(truth: dict[str, Any], found: dict[int, Detections]) -> None:
    boxes, scores, labels = found[8]
    for wrong in (Detections(boxes * math.nan, scores, labels), Detections(boxes, scores / 0, labels)):
        with pytest.raises(RuntimeError, match="not finite, the first in image 8"):
            shown(scored_on(ProposalRecall(), truth), found | {8: wrong}, IMAGES).compute()


@pytest.mark.filterwarnings("ignore:The ``compute`` method of metric")
def test_no_image_seen_is_nan(truth: dict[str, Any]) -> None:
    for metric in (scored_on(BoxAP(), truth), scored_on(ProposalRecall(), truth)):
        assert list(metric.results()) == []
        assert all(math.isnan(value) for value in metric.compute().values())


def test_half_precision_counts_as_float32(truth: dict[str, Any], found: dict[int, Detections]) -> None:
    halves = {8: Detections(found[8].boxes.half(), found[8].scores.half(), found[8].labels)}
    metric = shown(scored_on(BoxAP(), truth), halves, [8])
    assert metric.boxes[0].dtype == metric.scores[0].dtype == torch.float32


def curves(truth: dict[str, Any], results: list[dict[str, Any]], images: list[int]) -> dict[str, Any]:
    ground = read_truth(truth)
    return recall_curves(ground.restricted_to(images), read_results(results, ground, with_categories=True))


def dealt(images: list[int], processes: int) -> list[list[int]]:
    """Exact shards: each image once, none to fill up."""
    return [images[rank::processes] for rank in range(processes)]


SHARES = {
    "five by two": dealt(IMAGES[:5], 2),
    "five by three": dealt(IMAGES[:5], 3),
    "seven by two": dealt(IMAGES, 2),
    "seven by three": dealt(IMAGES, 3),
    "two by three": dealt(IMAGES[:2], 3),
    "the second idle": [IMAGES, []],
    "the first idle": [[], IMAGES],
    "one image": [[], [30]],
    "nothing found": [[11, 4, 30], [8, 25]],
    "twice": [[11, 4, 30], [30, 8, 25]],
    "unknown": [[11, 4], [8, 12345]],
    "odd again": [[25], [8, 30, 4, 11]],
}


def test_two_and_three_processes_equal_one(
    tmp_path: Path, truth: dict[str, Any], found: dict[int, Detections]
) -> None:
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    case = {
        "category_ids": list(CATEGORIES.ids),
        "shares": SHARES,
        "found": {image_id: tuple(one) for image_id, one in (found | {12345: found[8]}).items()},
    }
    torch.save(case, tmp_path / "case.pt")
    script = Path(__file__).with_name("ranks.py")
    with Started([str(tmp_path)], script=script) as ranks:
        assert ranks.status() == 0, ranks.said()
    said = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(3)]

    for share, shares in SHARES.items():
        images = [image for own in shares for image in own]
        for name in ("boxes", "proposals"):
            here, *others = (one[f"{share}, {name}"] for one in said[: len(shares)])
            if share in ("twice", "unknown"):
                assert others == [here]
                assert here["error"] == {"twice": "RuntimeError", "unknown": "InputError"}[share]
                assert ("of id 30" if share == "twice" else "12345") in here["message"]
                continue
            results = [] if share == "nothing found" else entries(found, sorted(images))
            if name == "boxes":
                expected = score_boxes(of(truth, images), results).overall
            else:
                expected = of_proposals(evaluate_proposals(of(truth, images), results))
                assert here["curves"] == curves(truth, results, images)
                results = [one | {"category_id": 1} for one in results]
            for one in (here, *others):
                assert one["scores"] == pytest.approx(expected, abs=0, rel=0, nan_ok=True), share
            assert here["results"] == results
