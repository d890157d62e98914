"""Cascade R-CNN against its stages as loops over single boxes, and against Faster R-CNN where they agree."""

import math
from functools import partial
from typing import Any

import detectron2_peer as peer
import pytest
import torch
import torch.nn.functional as F
from deploy.networks import SIZES
from torch import Tensor
from torchvision.ops import roi_align

from fpn.models.cascade import CascadeRCNN
from fpn.models.detectors import Detector, FasterRCNN
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.optimized import optimized
from fpn.models.postprocess import DetectionSelection, ProposalSelection, select_proposals
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import GroundTruth, RoISampling, all_rois, sample_rois
from fpn.types import Batch, Targets

SIZE = (96, 128)
STAGES = [(0.5, (10.0, 10.0, 5.0, 5.0)), (0.6, (20.0, 20.0, 10.0, 10.0)), (0.7, (30.0, 30.0, 15.0, 15.0))]


def small(kind: type[Detector] = CascadeRCNN, agnostic: bool = True, **arguments: Any) -> Any:
    head = partial(TwoFCHead, hidden=16)
    parts: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet18", norm="group", width=8),
        "neck": partial(FeaturePyramid, channels=8),
        "rpn": partial(RegionProposalNetwork, sizes=SIZES),
        "roi_head": partial(RoIHead, canonical_size=56, head=head, class_agnostic=agnostic),
        "roi_sampling": RoISampling(per_image=64),
        "training_proposals": ProposalSelection(100, 100),
        "testing_proposals": ProposalSelection(100, 60),
    }
    torch.manual_seed(3)
    return kind(3, **(parts | arguments))


def lively(detector: CascadeRCNN) -> CascadeRCNN:
    """Scores that are spread, and deltas that move a box by some pixels, most where weights are small."""
    with torch.no_grad():
        for number, head in enumerate(detector.heads, 1):
            last = head.head["shared"]
            last.scores.weight.mul_(300)
            last.deltas.weight.mul_(300 * number)
    return detector


def images(number: int = 2) -> Tensor:
    return torch.randn(number, 3, *SIZE, generator=torch.Generator().manual_seed(5))


def batch(truth: list[Targets] | None) -> Batch:
    return Batch(images(), [SIZE, (90, 100)], [SIZE, (90, 100)], [0, 1], truth)


def truths() -> list[Targets]:
    boxes = torch.tensor([[8.0, 10, 60, 70], [40, 30, 120, 90], [70, 5, 90, 40]])
    crowd = torch.tensor([[0.0, 50, 60, 96]])
    return [
        Targets(boxes, torch.tensor([1, 3, 2]), torch.zeros(0, 4)),
        Targets(boxes[:1], torch.tensor([2]), crowd),
    ]


def said(p: dict[int, Tensor], n: int, box: list[float], head: RoIHead) -> tuple[Tensor, Tensor]:
    """A head's logits and deltas of one box, pooled by torchvision from the level of Eq. 1."""
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    k = min(max(math.floor(4 + math.log2(side / 56 + 1e-30) + 1e-6), 2), 5)
    pooled = roi_align(p[k][n : n + 1], [torch.tensor([box])], 7, 2.0**-k, 2)
    scores, deltas = head.head["shared"](pooled)
    return scores[0], deltas[0]


def moved(box: list[float], scores: Tensor, deltas: Tensor, weights: Any, size: Any) -> list[float]:
    which = 0 if len(deltas) == 1 else 1 + int(scores[1:].argmax())
    return list(peer.clip(peer.decode(deltas[which].tolist(), tuple(box), weights), size))  # type: ignore[arg-type]


def stage_losses(
    p: dict[int, Tensor], rois: list[list[list[float]]], truth: list[Targets], head: RoIHead, stage: Any
) -> tuple[Tensor, Tensor, list[list[list[float]]], int]:
    """Both losses of a stage (Cascade R-CNN, eq. 3 and its losses), box by box, and where its boxes are."""
    iou, weights = stage
    number, foreground = 0, 0
    class_loss, box_loss = torch.zeros(()), torch.zeros(())
    out: list[list[list[float]]] = []
    for n, boxes in enumerate(rois):
        out.append([])
        for box in boxes:
            if box[2] <= box[0] or box[3] <= box[1]:
                continue
            overlaps = [peer.overlap(tuple(one), tuple(box)) for one in truth[n].boxes.tolist()]  # type: ignore[arg-type]
            best = max(range(len(overlaps)), key=lambda i: overlaps[i], default=0)
            label = int(truth[n].labels[best]) if overlaps and overlaps[best] >= iou else 0
            area = (box[2] - box[0]) * (box[3] - box[1])
            shares = [
                max(min(box[2], c[2]) - max(box[0], c[0]), 0)
                * max(min(box[3], c[3]) - max(box[1], c[1]), 0)
                / area
                for c in truth[n].crowds.tolist()
            ]
            if label == 0 and any(share >= 0.7 for share in shares):
                continue
            number += 1
            scores, deltas = said(p, n, box, head)
            class_loss = class_loss + F.cross_entropy(scores[None], torch.tensor([label]))
            if label:
                foreground += 1
                x1, y1, x2, y2 = truth[n].boxes[best].tolist()
                w, h = box[2] - box[0], box[3] - box[1]
                wanted = [
                    weights[0] * ((x1 + x2) - (box[0] + box[2])) / 2 / w,
                    weights[1] * ((y1 + y2) - (box[1] + box[3])) / 2 / h,
                    weights[2] * math.log((x2 - x1) / w),
                    weights[3] * math.log((y2 - y1) / h),
                ]
                for delta, one in zip(deltas[label if len(deltas) > 1 else 0], wanted, strict=True):
                    away = (delta - one).abs()
                    box_loss = box_loss + (4.5 * away**2 if away < 1 / 9 else away - 1 / 18)
            out[-1].append(moved(box, scores, deltas, weights, batch(None).sizes[n]))
    return class_loss / max(number, 1), box_loss / max(number, 1), out, foreground


@pytest.mark.parametrize("agnostic", [True, False])
def test_losses_and_gradients_by_loop(agnostic: bool) -> None:
    detector, data = lively(small(agnostic=agnostic)), batch(truths())
    assert data.targets is not None
    ours = detector.losses(data, torch.Generator().manual_seed(1))
    assert tuple(ours) == detector.loss_names
    torch.stack([loss for name, loss in ours.items() if name.startswith("roi")]).sum().backward()
    gradients = {name: q.grad.clone() for name, q in detector.named_parameters() if q.grad is not None}
    detector.zero_grad()

    maps = detector.neck(detector.bottom_up(data.images))
    p = {k: x.detach().requires_grad_() for k, x in maps.items()}
    output = detector.rpn(maps, SIZE)
    generator = torch.Generator().manual_seed(1)
    table = torch.tensor(data.sizes, dtype=torch.float32)
    truth = GroundTruth.of(data.targets)
    detector._sample_anchors(output, truth, table, generator)  # which draws first
    proposals = select_proposals(output, table, detector.rpn.box_weights, detector.training_proposals)
    sample, candidates = sample_rois(proposals, truth, detector.roi_sampling, generator)
    rois = [candidates[n][sample.chosen[n][sample.taken[n]]].tolist() for n in range(len(data.targets))]
    total = torch.zeros(())
    for number, (head, stage) in enumerate(zip(detector.heads, STAGES, strict=True), 1):
        assert head.box_weights == stage[1]
        of_class, of_box, rois, foreground = stage_losses(p, rois, data.targets, head, stage)
        assert foreground >= 3
        torch.testing.assert_close(ours[f"roi_class_{number}"], of_class, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(ours[f"roi_box_{number}"], of_box, atol=1e-5, rtol=1e-4)
        total = total + of_class + of_box
    total.backward()
    # A head learns from its own losses; what lies below from a third of each.
    assert sum(x.grad is not None for x in p.values()) >= 3
    below = [torch.zeros_like(x) if x.grad is None else x.grad / 3 for x in p.values()]
    torch.autograd.backward(list(maps.values()), below)
    for name, q in detector.named_parameters():
        if not name.startswith("rpn"):
            assert q.grad is not None
            scale = q.grad.abs().max().item()
            assert scale > 0 or ".5." in name, "of P5 alone, from which no RoI is read"
            torch.testing.assert_close(gradients[name], q.grad, atol=1e-4 * scale, rtol=1e-3)


@pytest.mark.parametrize("agnostic", [True, False])
def test_detections_by_loop(agnostic: bool) -> None:
    detector, data = lively(small(agnostic=agnostic)).eval(), batch(None)
    with torch.no_grad():
        found = detector(data)
        p = detector.neck(detector.bottom_up(data.images))
    for n, proposals in enumerate(found.proposals):
        by_class: list[list[peer.Scored]] = [[], [], []]
        for box in proposals.boxes.tolist():
            probabilities = torch.zeros(4)
            with torch.no_grad():
                for head, (_, weights) in zip(detector.heads, STAGES, strict=True):
                    start = box
                    scores, deltas = said(p, n, box, head)
                    probabilities += scores.softmax(0) / 3
                    box = moved(box, scores, deltas, weights, data.sizes[n])
            for label in (1, 2, 3):
                which = deltas[0 if agnostic else label].tolist()
                last = peer.clip(peer.decode(which, tuple(start), STAGES[-1][1]), data.sizes[n])  # type: ignore[arg-type]
                large = last[2] - last[0] >= 1e-2 and last[3] - last[1] >= 1e-2
                if probabilities[label] > 0.05 and large:
                    by_class[label - 1].append(peer.Scored(float(probabilities[label]), last, label))
        expected = sorted((s for of in by_class for s in peer.suppress(of, 0.5)), key=lambda s: -s.score)
        assert len(expected) > 10
        expected = expected[:100]
        one = found.detections[n]
        assert one.labels.tolist() == [s.class_ for s in expected]
        assert one.scores.tolist() == pytest.approx([s.score for s in expected], abs=1e-4)
        torch.testing.assert_close(one.boxes, torch.tensor([s.box for s in expected]), atol=1e-2, rtol=1e-4)
    quick = optimized(detector)
    for one, other in zip(quick.detect(data), found.detections, strict=True):
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=1e-4)


def test_stages_that_move_nothing_find_what_faster_rcnn_finds() -> None:
    """All score alike, and the last moves boxes as Faster R-CNN's head does, by thrice its weights."""
    cascade, faster, data = lively(small()), small(FasterRCNN).eval(), batch(None)
    first = cascade.roi_head.head["shared"]
    state = cascade.state_dict()
    faster.load_state_dict({name: state[name] for name in faster.state_dict()})
    with torch.no_grad():
        for head in cascade.heads[1:]:
            head.head["shared"].load_state_dict(first.state_dict())
        last = cascade.heads[-1].head["shared"].deltas
        last.weight.mul_(3)
        for head in cascade.heads[:-1]:
            head.head["shared"].deltas.weight.zero_()
        found, expected = cascade.eval()(data), faster(data)
    for one, other in zip(found.detections, expected.detections, strict=True):
        assert len(other.boxes) > 10
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-2, rtol=1e-4)
        torch.testing.assert_close(one.scores, other.scores, atol=1e-4, rtol=1e-4)


def test_one_stage_is_faster_rcnn() -> None:
    cascade, faster = lively(small(later_ious=())), small(FasterRCNN)
    faster.load_state_dict(cascade.state_dict())
    losses, expected = (
        detector.losses(batch(truths()), torch.Generator().manual_seed(2)) for detector in (cascade, faster)
    )
    assert cascade.loss_names == tuple(losses) == (*list(expected)[:2], "roi_class_1", "roi_box_1")
    assert all(torch.equal(one, other) for one, other in zip(losses.values(), expected.values(), strict=True))


@pytest.mark.parametrize("agnostic", [True, False])
@pytest.mark.parametrize(("objects", "include"), [(2, True), (0, True), (0, False)])
def test_every_parameter_has_a_gradient_on_every_step(agnostic: bool, objects: int, include: bool) -> None:
    """Also where there is no RoI at all."""
    sampling = RoISampling(include_ground_truth=include)
    selection = ProposalSelection() if include else ProposalSelection(score_threshold=1.0)
    detector = small(agnostic=agnostic, roi_sampling=sampling, training_proposals=selection)
    truth = [Targets(one.boxes[:objects], one.labels[:objects], one.crowds) for one in truths()]
    losses = detector.losses(batch(truth))
    if not include:
        assert all(loss.item() == 0 for name, loss in losses.items() if name.startswith("roi"))
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_an_roi_without_area_is_learned_from_by_nobody() -> None:
    boxes = torch.tensor(
        [[[8.0, 10, 60, 70], [5, 5, 5, 40], [torch.nan] * 4, [0, 0, 20, 20], [9, 60, 40, 90]]]
    )
    truth = GroundTruth.of(truths()[1:])
    sample, candidates = all_rois(boxes, truth, RoISampling(foreground_iou=0.7, background_iou=0.7))
    assert candidates is boxes
    # The last is background, and in a crowd.
    assert sample.match.tolist() == [[0, -2, -2, -1, -2]]
    assert sample.chosen.tolist() == [[0, 1, 2, 3, 4]]


def test_validation_asks_once_and_a_pyramid_of_images_is_merged() -> None:
    detector, data = lively(small()).eval(), batch(truths())
    with torch.no_grad():
        found, losses = detector.find_with_losses(data, torch.Generator().manual_seed(1))
        expected = detector.losses(data, torch.Generator().manual_seed(1))
        alone, twice = detector(data), detector.over_scales([data, data])
    assert all(torch.equal(losses[name], expected[name]) for name in expected)
    for one, other, merged in zip(found.detections, alone.detections, twice.detections, strict=True):
        assert torch.equal(one.boxes, other.boxes)
        assert torch.equal(merged.boxes, other.boxes)


def test_each_stage_has_a_conv5_of_its_own_with_the_bottom_ups_weights() -> None:
    """Table 3 (a) as a cascade."""
    bottom_up = ResNet("resnet18", norm="group", width=8)
    whole = {name: value.clone() for name, value in bottom_up.state_dict().items()}
    head = partial(RoIHead, resolution=14, canonical_size=56, head=Conv5Head, class_agnostic=True)
    detector = small(
        bottom_up=lambda: bottom_up,
        neck=partial(SingleLevel, level=4),
        rpn=partial(RegionProposalNetwork, sizes={4: [16.0, 64.0]}),
        roi_head=head,
    )
    assert len(bottom_up.taken) == 3
    for stage in detector.heads:
        own = stage.head["shared"].conv5[0].state_dict()
        assert all(torch.equal(value, whole[f"layer4.{name}"]) for name, value in own.items())
    sum(detector.losses(batch(truths())).values()).backward()
    assert all(p.grad is not None for p in detector.parameters())


def test_detections_may_be_limited() -> None:
    detector = lively(small(detections=DetectionSelection(max_detections=3))).eval()
    with torch.no_grad():
        assert [len(one.boxes) for one in detector.detect(batch(None))] == [3, 3]


def test_half_precision_keeps_boxes_in_float32() -> None:
    detector, data = lively(small()), batch(truths())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = detector.losses(data)
        sum(losses.values()).backward()
        found = detector.eval().detect(batch(None))
    assert all(torch.isfinite(loss) and loss.dtype == torch.float32 for loss in losses.values())
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    assert found[0].boxes.dtype == torch.float32
