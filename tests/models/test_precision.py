"""Half precision on images of 4096 pixels, whose areas, 256 times what float16 holds, must not overflow.

The truth is float64: Python's own arithmetic on the very numbers that the half-precision tensors hold.
"""

import math
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import fpn.models.detectors
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import DetectionSelection, ProposalSelection, select_detections, select_proposals
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.models.targets import AnchorSampling
from fpn.ops.anchors import cell_anchors, grid_anchors
from fpn.ops.boxes import decode_boxes, encode_boxes, intersection_over_own_area, rescale_boxes
from fpn.ops.levels import assign_levels
from fpn.ops.matching import BACKGROUND, IGNORED, match_boxes
from fpn.types import Batch, Found, RPNOutput, Targets

HALVES = [torch.float16, torch.bfloat16]
SIDE = 4096
ROI_WEIGHTS = (10.0, 10.0, 5.0, 5.0)

pytestmark = pytest.mark.parametrize("dtype", HALVES)


def boxes(number: int, dtype: torch.dtype) -> Tensor:
    """The whole image, and boxes of 64 pixels and more, which survive bfloat16's steps of 16 pixels."""
    size = torch.exp2(torch.rand(number, 2) * 6 + 6)
    corner = torch.rand(number, 2) * (SIDE - size)
    found = torch.cat((corner, corner + size), dim=1)
    found[0] = torch.tensor([0.0, 0.0, SIDE, SIDE])
    return found.to(dtype)


def area(box: list[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def overlap(one: list[float], other: list[float]) -> float:
    x1, y1, x2, y2 = (f(a, b) for f, a, b in zip((max, max, min, min), one, other, strict=True))
    return max(x2 - x1, 0.0) * max(y2 - y1, 0.0)


def centre(box: list[float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    return (x1 + x2) / 2, (y1 + y2) / 2, x2 - x1, y2 - y1


def rows(values: Tensor) -> Any:
    return values.double().tolist()


def test_encoding(dtype: torch.dtype) -> None:
    truth, references = boxes(60, dtype), boxes(60, dtype).flip(0)
    expected = []
    for box, reference in zip(rows(truth), rows(references), strict=True):
        (bx, by, bw, bh), (x, y, w, h) = centre(box), centre(reference)
        deltas = ((bx - x) / w, (by - y) / h, math.log(bw / w), math.log(bh / h))
        expected.append([weight * delta for weight, delta in zip(ROI_WEIGHTS, deltas, strict=True)])
    found = encode_boxes(truth, references, ROI_WEIGHTS)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_decoding_as_far_as_half_precision_goes(dtype: torch.dtype) -> None:
    references = boxes(60, dtype)
    deltas = torch.randn(60, 4) * 3
    deltas[:2] = (
        torch.tensor([[1.0, -1.0, 1.0, 1.0], [-1.0, 1.0, -1.0, -1.0]]) * torch.finfo(torch.float16).max
    )
    deltas = deltas.to(dtype)
    expected = []
    for (dx, dy, dw, dh), reference in zip(rows(deltas), rows(references), strict=True):
        x, y, w, h = centre(reference)
        x, y = x + dx / 10 * w, y + dy / 10 * h
        w, h = (side * math.exp(min(d / 5, math.log(1000 / 16))) for side, d in ((w, dw), (h, dh)))
        expected.append([x - w / 2, y - h / 2, x + w / 2, y + h / 2])
    found = decode_boxes(deltas, references, ROI_WEIGHTS)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-2)


def test_overlaps_and_matches(dtype: torch.dtype) -> None:
    truth, candidates = boxes(8, dtype), torch.cat((boxes(200, dtype), boxes(8, dtype)))
    candidates[-8:] = truth
    candidates[:100] = truth[torch.arange(100) % 8] + (torch.randn(100, 4) * 20).to(dtype)
    candidates = candidates[(candidates[:, 2:] > candidates[:, :2]).all(dim=1)]
    expected = []
    for box in rows(candidates):
        inter = [overlap(box, other) for other in rows(truth)]
        union = [area(box) + area(other) - i for other, i in zip(rows(truth), inter, strict=True)]
        ious = [i / u for i, u in zip(inter, union, strict=True)]
        best = max(range(8), key=ious.__getitem__)
        assert all(abs(max(ious) - limit) > 1e-6 for limit in (0.3, 0.7))  # where rounding would decide
        expected.append(best if ious[best] >= 0.7 else BACKGROUND if ious[best] < 0.3 else IGNORED)
    assert {0, BACKGROUND, IGNORED} <= set(expected)
    assert match_boxes(truth, candidates, 0.7, 0.3, rescue=False).tolist() == expected

    shares = [[overlap(box, other) / area(box) for other in rows(truth)] for box in rows(candidates)]
    found = intersection_over_own_area(candidates, truth)
    torch.testing.assert_close(found, torch.tensor(shares), rtol=1e-5, atol=1e-6)


def test_a_side_is_not_rounded_to_half_precision(dtype: torch.dtype) -> None:
    truth = torch.tensor([[0.0, 0.0, SIDE, SIDE]], dtype=dtype)
    candidate = torch.tensor([[1.0, 0.0, SIDE, SIDE]], dtype=dtype)  # an overlap of 4095 / 4096
    assert match_boxes(truth, candidate, 0.9999, 0.9999, rescue=False).item() == BACKGROUND
    assert match_boxes(truth, candidate, 0.9997, 0.9997, rescue=False).item() == 0


def test_levels(dtype: torch.dtype) -> None:
    some = torch.cat(
        (boxes(200, dtype), torch.tensor([[0.0, 0.0, s, s] for s in (112, 224, 448, SIDE)]).to(dtype))
    )
    expected = [math.floor(4 + math.log2(math.sqrt(area(box)) / 224) + 1e-6) for box in rows(some)]
    assert len(set(expected)) > 5
    assert assign_levels(some, -9, 9).tolist() == expected


def test_anchors(dtype: torch.dtype) -> None:
    """Of a network that has been cast as a whole: the centres stay where the positions are."""
    cell = cell_anchors([32.0], [0.5, 1.0, 2.0])
    found = grid_anchors(cell.to(dtype), (2, SIDE // 4), (4, 4))
    expected = [
        [4 * x + x1, 4 * y + y1, 4 * x + x2, 4 * y + y2]
        for y in range(2)
        for x in range(SIDE // 4)
        for x1, y1, x2, y2 in rows(cell)
    ]
    assert found.dtype == torch.float32
    assert found.tolist() == expected


def test_rescaling(dtype: torch.dtype) -> None:
    some = boxes(60, dtype)
    expected = torch.tensor([[x1 * 0.25, y1 * 2, x2 * 0.25, y2 * 2] for x1, y1, x2, y2 in rows(some)])
    torch.testing.assert_close(rescale_boxes(some, (SIDE, SIDE), (2 * SIDE, SIDE // 4)), expected)


def network() -> FasterRCNN:
    """Learns from all anchors and from the true boxes alone, so that no choice depends on the precision."""
    torch.manual_seed(1)
    found = FasterRCNN(
        3,
        bottom_up=partial(ResNet, "resnet18", norm="frozen", width=8),
        neck=partial(FeaturePyramid, channels=8),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=16)),
        anchor_sampling=AnchorSampling(per_image=10**6, fg_fraction=1.0),
        training_proposals=ProposalSelection(min_size=1e6),
        detections=DetectionSelection(score_threshold=0.0),
    )
    with torch.no_grad():  # boxes that leave their anchors
        found.rpn.head["shared"].deltas.weight.mul_(30)
        found.roi_head.head["shared"].deltas.weight.mul_(300)
    return found


def thin_images() -> Batch:
    """Two images of 64 × 4096 pixels, an object as large as an image, others at its far end."""
    size = (64, SIDE)
    truth = torch.tensor([[0.0, 0, SIDE, 64], [4061, 17, 4093, 50], [3800, 1, 4010, 63]])
    crowd = torch.tensor([[1000.0, 0, 3000, 64]])
    targets = [
        Targets(truth, torch.tensor([1, 2, 3]), crowd),
        Targets(truth[:0], torch.ones(0).long(), crowd),
    ]
    return Batch(torch.randn(2, 3, *size), [size] * 2, [(32, SIDE // 2)] * 2, [1, 2], targets)


def test_losses_and_gradients(dtype: torch.dtype) -> None:
    model, data = network(), thin_images()
    expected = model.losses(data)
    with torch.autocast("cpu", dtype):
        losses = model.losses(data)
        total = torch.stack(list(losses.values())).sum()
    for name, loss in losses.items():
        assert loss.dtype == torch.float32
        torch.testing.assert_close(
            loss, expected[name], rtol=0.02, atol=0, msg=lambda text, n=name: f"{n}: {text}"
        )
    if dtype == torch.float16:  # whose gradients want a GPU, and a scaler
        return
    total.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name


def test_a_frozen_norm_of_hardly_any_variance(dtype: torch.dtype) -> None:
    """As some channels of published weights have; float16 would make it none, and its root infinite."""
    model = ResNet("resnet18", norm="frozen", norm_eps=0.0, width=8, stages=1)
    model.bn1.running_var.fill_(1e-9)
    model.bn1.weight.fill_(1e-4)
    images = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)[2]
        with torch.autocast("cpu", dtype):
            found = model(images)[2]
    assert torch.isfinite(expected).all()
    torch.testing.assert_close(found.float(), expected, rtol=0.1, atol=0.05 * expected.std().item())


def nearest(found: Tensor, candidates: Tensor) -> float:
    """The greatest distance of a box found from its nearest candidate."""
    return torch.cdist(found.double(), candidates, p=math.inf).amin(dim=1).max().item()


def decoded(deltas: Tensor, references: Tensor, weights: tuple[float, ...]) -> Tensor:
    """In float64, and clipped to the image."""
    x1, y1, x2, y2 = references.double().unbind(-1)
    dx, dy, dw, dh = (deltas.double() / torch.tensor(weights, dtype=torch.float64)).unbind(-1)
    x, y = (x1 + x2) / 2 + dx * (x2 - x1), (y1 + y2) / 2 + dy * (y2 - y1)
    w, h = (x2 - x1) * dw.clamp(max=math.log(62.5)).exp(), (y2 - y1) * dh.clamp(max=math.log(62.5)).exp()
    corners = torch.stack((x - w / 2, y - h / 2, x + w / 2, y + h / 2), dim=-1).reshape(-1, 4)
    return corners.clamp(min=0).minimum(torch.tensor([SIDE, 64, SIDE, 64], dtype=torch.float64))


def test_boxes_found(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """To a hundredth of a pixel they are what the deltas say of the anchors and of the proposals."""
    said: dict[str, Any] = {}

    def proposals(output: RPNOutput, *rest: Any) -> Found:
        said["rpn"] = output
        return select_proposals(output, *rest)

    def detections(scores: Tensor, deltas: Tensor, boxes: Found, *rest: Any) -> Found:
        said["deltas"], said["boxes"] = deltas[0], [one.boxes for one in boxes.split()]
        return select_detections(scores, deltas, boxes, *rest)

    monkeypatch.setattr(fpn.models.detectors, "select_proposals", proposals)
    monkeypatch.setattr(fpn.models.detectors, "select_detections", detections)
    model, data = network().eval(), thin_images()
    with torch.no_grad(), torch.autocast("cpu", dtype):
        found = model(data)
    anchors = model.rpn(model.neck(model.bottom_up(data.images)), (64, SIDE)).anchors
    assert all(torch.equal(said["rpn"].anchors[k], anchors[k]) for k in anchors)
    everything = decoded(
        torch.cat(list(said["rpn"].deltas.values()), dim=1)[0], torch.cat(list(anchors.values())), (1,) * 4
    )
    spoken = [*said["rpn"].objectness.values(), *said["rpn"].deltas.values(), said["deltas"]]
    assert {part.dtype for part in [*spoken, *found.proposals[0][:2], *found.detections[0][:2]]} == {
        torch.float32
    }
    assert len(said["boxes"][0]) > 300
    assert nearest(said["boxes"][0], everything) < 0.01
    head = decoded(said["deltas"][: len(said["boxes"][0])], said["boxes"][0][:, None], ROI_WEIGHTS)
    assert len(found.detections[0].boxes) == 100
    assert nearest(found.detections[0].boxes * 2, head) < 0.01
    assert (found.detections[0].boxes[:, 2] > SIDE // 4).any()
