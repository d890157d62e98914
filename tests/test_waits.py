"""How often the host waits for the device, and how many operators a step takes, whatever the batch."""

from functools import partial

import pytest
import torch

from benchmarks.inputs import random_targets
from benchmarks.waits import Counted
from fpn.models.cascade import CascadeRCNN
from fpn.models.detectors import FasterRCNN, FastRCNN, ProposalNetwork
from fpn.models.necks import FeaturePyramid
from fpn.models.optimized import optimized
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.ops.suppression import soft_suppress
from fpn.types import Batch, Targets

SIZE = (96, 128)
Kind = type[FasterRCNN] | type[FastRCNN] | type[ProposalNetwork]


def detector(kind: Kind) -> FasterRCNN | FastRCNN | ProposalNetwork:
    """As deep as the paper's, and as narrow as can be."""
    parts = {
        "bottom_up": partial(ResNet, "resnet50", norm="frozen", width=4, frozen_stages=2),
        "neck": partial(FeaturePyramid, channels=8),
    }
    if kind is not ProposalNetwork:
        parts["roi_head"] = partial(RoIHead, head=partial(TwoFCHead, hidden=8))
        parts["detections"] = DetectionSelection(score_threshold=0.0)  # type: ignore[assignment]
    return kind(4, **parts)  # type: ignore[arg-type]


def batch(images: int) -> Batch:
    truth = [random_targets(SIZE, i % 4, 4, i) for i in range(images)]
    truth[0] = Targets(*truth[0][:2], torch.tensor([[3.0, 4, 60, 70]]))
    proposals = [
        one.boxes.repeat(30, 1) for one in (random_targets(SIZE, 5 + i, 4, i) for i in range(images))
    ]
    sizes = [SIZE] * images
    return Batch(torch.randn(images, 3, *SIZE), sizes, sizes, list(range(images)), truth, proposals)


@pytest.mark.parametrize("kind", [FasterRCNN, FastRCNN, ProposalNetwork])
def test_a_training_step_waits_once(kind: Kind) -> None:
    network, numbers = detector(kind).train(), set()
    network.losses(batch(2))
    for data in map(batch, (1, 2, 7)):
        with Counted() as counted:
            loss = torch.stack(list(network.losses(data).values())).sum()
        assert dict(counted.waits) == {"tolist": 1}
        numbers.add(counted.operators)
        with Counted() as counted:
            loss.backward()
        assert not counted.waits
    assert max(numbers) <= 1000
    # Each image's own proposals, where they are given, are one more.
    assert max(numbers) - min(numbers) <= (14 if kind is FastRCNN else 3)


@pytest.mark.parametrize("kind", [FasterRCNN, FastRCNN, ProposalNetwork])
def test_an_inference_waits_once_before_it_hands_over(kind: Kind) -> None:
    network = optimized(detector(kind))
    with torch.inference_mode():
        network(batch(2))
        for images in (1, 7):
            data = batch(images)
            with Counted() as counted:
                found = network(data)
            # The last wait hands over: an image's boxes are as many as there are.
            assert dict(counted.waits) == {"tolist": 1 if kind is ProposalNetwork else 2}
            lists = sum(part is not None for part in found)
            assert counted.operators < 700 + 6 * lists * images


def test_a_cascade_waits_once_more_for_each_later_stage() -> None:
    network, numbers = detector(CascadeRCNN).train(), set()
    network.losses(batch(2))
    for data in map(batch, (1, 2, 7)):
        with Counted() as counted:
            loss = torch.stack(list(network.losses(data).values())).sum()
        assert dict(counted.waits) == {"tolist": 3}
        numbers.add(counted.operators)
        with Counted() as counted:
            loss.backward()
        assert not counted.waits
    assert max(numbers) - min(numbers) <= 9
    quick = optimized(network)
    with torch.inference_mode():
        quick(batch(2))
        with Counted() as counted:
            quick(batch(7))
    assert dict(counted.waits) == {"tolist": 4}


def test_soft_suppression_does_not_wait() -> None:
    """What one operator does inside is not looked at elsewhere."""
    boxes, scores = torch.rand(2, 3, 20, 4), torch.rand(2, 3, 20)
    for sigma in (None, 0.5):
        with Counted() as counted:
            soft_suppress._init_fn(boxes, scores, 10, 0.5, sigma)
        assert not counted.waits
        assert counted.operators > 100


def test_what_waits_is_counted() -> None:
    values = torch.arange(6)
    with Counted() as counted:
        values.nonzero()
        values[values > 3]
        values.sum().item()
        values.tolist()
        bool((values > 3).any())
    assert counted.waits.total() == 5
    with Counted() as counted:
        values[torch.tensor([1, 2])]
        values.topk(3)
    assert not counted.waits
