import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torchvision.ops import box_iou

from fpn.models import postprocess
from fpn.models.postprocess import (
    DetectionSelection,
    ProposalSelection,
    ranked,
)
from fpn.types import Detections, RPNOutput

ONES = (1.0, 1.0, 1.0, 1.0)


def select_proposals(
    out: RPNOutput, sizes: list[tuple[int, int]], weights: tuple[float, ...], selection: ProposalSelection
) -> list[Detections]:
    return postprocess.select_proposals(out, torch.tensor(sizes), weights, selection).split()


def select_detections(
    scores: Tensor,
    deltas: Tensor,
    proposals: list[Tensor],
    sizes: list[tuple[int, int]],
    weights: tuple[float, ...],
    selection: DetectionSelection,
) -> list[Detections]:
    """Of scores and deltas of as many RoIs as there are proposals, image after image."""
    places = ranked(proposals)
    padded = []
    for part in (scores, deltas):
        whole = torch.full((*places.there.shape, *part.shape[1:]), torch.nan)
        whole[places.there] = part
        padded.append(whole)
    table = torch.tensor(sizes)
    return postprocess.select_detections(*padded, places, table, weights, selection).split()


def greedy(boxes: Tensor, scores: Tensor, threshold: float) -> list[int]:
    """Non-maximum suppression by definition."""
    kept: list[int] = []
    for i in scores.argsort(descending=True, stable=True).tolist():
        if all(box_iou(boxes[i : i + 1], boxes[j : j + 1]).item() <= threshold for j in kept):
            kept.append(i)
    return kept


def some_boxes(number: int) -> Tensor:
    corner = torch.rand(number, 2) * 80 - 10
    return torch.cat((corner, corner + torch.rand(number, 2) * 40 + 1), dim=1)


def output(images: int, per_level: dict[int, int]) -> RPNOutput:
    return RPNOutput(
        {k: some_boxes(n) for k, n in per_level.items()},
        {k: torch.randn(images, n) for k, n in per_level.items()},
        {k: torch.randn(images, n, 4) * 0.1 for k, n in per_level.items()},
    )


def test_proposals_by_loop() -> None:
    out = output(2, {2: 60, 3: 20})
    selection = ProposalSelection(pre_nms_top_n=25, post_nms_top_n=30, nms_iou=0.5)
    sizes = [(70, 90), (40, 60)]
    for n, (found, (height, width)) in enumerate(
        zip(select_proposals(out, sizes, ONES, selection), sizes, strict=True)
    ):
        expected: list[tuple[float, list[float]]] = []
        for k in (2, 3):
            best = out.objectness[k][n].argsort(descending=True)[:25]
            candidates = []
            for i in best.tolist():
                x1, y1, x2, y2 = out.anchors[k][i].tolist()
                dx, dy, dw, dh = out.deltas[k][n, i].tolist()
                w, h = x2 - x1, y2 - y1
                cx, cy = x1 + w / 2 + dx * w, y1 + h / 2 + dy * h
                w, h = w * 2.718281828459045**dw, h * 2.718281828459045**dh
                box = [
                    min(max(cx - w / 2, 0), width),
                    min(max(cy - h / 2, 0), height),
                    min(max(cx + w / 2, 0), width),
                    min(max(cy + h / 2, 0), height),
                ]
                if box[2] - box[0] >= 1e-3 and box[3] - box[1] >= 1e-3:
                    candidates.append((torch.sigmoid(out.objectness[k][n, i]).item(), box))
            boxes = torch.tensor([box for _, box in candidates])
            scores = torch.tensor([score for score, _ in candidates])
            expected += [candidates[i] for i in greedy(boxes, scores, 0.5)]
        expected = sorted(expected, key=lambda item: -item[0])[:30]
        torch.testing.assert_close(found.scores, torch.tensor([s for s, _ in expected]))
        torch.testing.assert_close(found.boxes, torch.tensor([b for _, b in expected]), atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("min_size", [0.0, 1e-3])
def test_what_is_not_finite_is_no_proposal(value: float, min_size: float) -> None:
    """The others are those that there would be without it."""
    out = output(1, {2: 60, 3: 20})
    selection = ProposalSelection(pre_nms_top_n=25, post_nms_top_n=80, min_size=min_size)
    bad = torch.zeros(60, dtype=torch.bool)
    bad[out.objectness[2][0].topk(20).indices] = True
    rest = RPNOutput(
        {2: out.anchors[2][~bad], 3: out.anchors[3]},
        {2: out.objectness[2][:, ~bad], 3: out.objectness[3]},
        {2: out.deltas[2][:, ~bad], 3: out.deltas[3]},
    )
    out.objectness[2][:, bad] = value
    (found,), (expected,) = (select_proposals(o, [(70, 90)], ONES, selection) for o in (out, rest))
    assert len(found.scores) > 10
    assert all(map(torch.equal, found, expected))
    # Nor where there are no others to fill the number.
    out.objectness[2][:] = value
    (found,) = select_proposals(out, [(70, 90)], ONES, selection)
    (expected,) = select_proposals(RPNOutput(*({3: part[3]} for part in out)), [(70, 90)], ONES, selection)
    assert all(map(torch.equal, found, expected))


def test_numbers_are_per_image() -> None:
    """An image's proposals do not change with its neighbours, however many better ones these have."""
    alone = output(1, {2: 200, 3: 50})
    loud = RPNOutput(
        alone.anchors,
        {k: torch.cat((x, x + 100, x + 200)) for k, x in alone.objectness.items()},
        {k: x.repeat(3, 1, 1) for k, x in alone.deltas.items()},
    )
    selection = ProposalSelection(100, 40)
    one = select_proposals(alone, [(70, 90)], ONES, selection)[0]
    first, *others = select_proposals(loud, [(70, 90)] * 3, ONES, selection)
    assert torch.equal(first.boxes, one.boxes)
    assert torch.equal(first.scores, one.scores)
    assert [len(o.boxes) for o in others] == [40, 40]


def test_detections_by_loop() -> None:
    numbers, classes = [30, 0, 20], 4
    proposals = [some_boxes(n).clamp(min=0) for n in numbers]
    scores = torch.randn(50, classes + 1) * 2
    deltas = torch.zeros(50, classes + 1, 4)
    selection = DetectionSelection(score_threshold=0.2, nms_iou=0.4, max_detections=12)
    found = select_detections(scores, deltas, proposals, [(300, 300)] * 3, ONES, selection)
    probability = scores.softmax(1).split(numbers)
    for n, boxes in enumerate(proposals):
        expected = []
        for label in range(1, classes + 1):
            score = probability[n][:, label] if len(boxes) else torch.zeros(0)
            certain = torch.where(score > 0.2)[0]
            for i in greedy(boxes[certain], score[certain], 0.4):
                expected.append((score[certain[i]].item(), label, boxes[certain[i]].tolist()))
        expected = sorted(expected, key=lambda item: -item[0])[:12]
        assert found[n].labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(found[n].scores, torch.tensor([s for s, _, _ in expected]))
        wanted = torch.tensor([b for _, _, b in expected]).reshape(-1, 4)
        torch.testing.assert_close(found[n].boxes, wanted, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(("decay", "sigma"), [("gaussian", 0.5), ("gaussian", 0.2), ("linear", 0.5)])
@pytest.mark.parametrize("threshold", [0.0, 0.2])
def test_soft_detections_by_loop(decay: Any, sigma: float, threshold: float) -> None:
    numbers, classes = [30, 0, 20], 4
    proposals = [some_boxes(n).clamp(min=0) for n in numbers]
    scores = torch.randn(50, classes + 1) * 2
    deltas = torch.zeros(50, classes + 1, 4)
    selection = DetectionSelection(threshold, nms_iou=0.4, max_detections=12, suppression=decay, sigma=sigma)
    found = select_detections(scores, deltas, proposals, [(300, 300)] * 3, ONES, selection)
    probability = scores.softmax(1).split(numbers)
    for n, boxes in enumerate(proposals):
        expected = []
        for label in range(1, classes + 1 if len(boxes) else 1):
            left = {i: s for i, s in enumerate(probability[n][:, label].tolist()) if s > threshold}
            while left:
                best = max(left, key=lambda i: left[i])
                expected.append((left.pop(best), label, boxes[best].tolist()))
                for i in left:
                    overlap = box_iou(boxes[best : best + 1], boxes[i : i + 1]).item()
                    if decay == "gaussian":
                        left[i] *= math.exp(-(overlap**2) / sigma)
                    elif overlap > 0.4:
                        left[i] *= 1 - overlap
        expected = sorted((one for one in expected if one[0] > threshold), key=lambda item: -item[0])[:12]
        assert found[n].labels.tolist() == [label for _, label, _ in expected]
        torch.testing.assert_close(found[n].scores, torch.tensor([s for s, _, _ in expected]))
        wanted = torch.tensor([b for _, _, b in expected]).reshape(-1, 4)
        torch.testing.assert_close(found[n].boxes, wanted, atol=1e-3, rtol=1e-4)


def test_boxes_without_area_are_no_detections() -> None:
    scores = torch.tensor([[0.0, 9.0]])
    outside = torch.tensor([[200.0, 200.0, 220.0, 230.0]])
    found = select_detections(
        scores, torch.zeros(1, 2, 4), [outside], [(100, 100)], ONES, DetectionSelection()
    )
    assert len(found[0].boxes) == 0


@pytest.mark.parametrize("soft", ["hard", "gaussian"])
def test_equal_scores_do_not_depend_on_the_neighbours_places(soft: Any) -> None:
    """An image with few proposals beside one with many has the same detections as alone."""
    few, many = some_boxes(40).clamp(min=0), some_boxes(150).clamp(min=0)
    scores, deltas = torch.zeros(190, 5), torch.zeros(190, 5, 4)
    scores[:, 1:] = (torch.randn(190, 4) * 2).round() * 20  # of which many probabilities are 1
    selection = DetectionSelection(score_threshold=0.0, nms_iou=0.6, max_detections=25, suppression=soft)
    beside = select_detections(scores, deltas, [few, many], [(90, 90)] * 2, ONES, selection)[0]
    (alone,) = select_detections(scores[:40], deltas[:40], [few], [(90, 90)], ONES, selection)
    assert (alone.scores == 1).sum() > 5
    assert all(map(torch.equal, alone, beside))
