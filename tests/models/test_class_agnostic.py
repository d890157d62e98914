"""One box for all classes, against heads that have one for each, all the same."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fpn.errors import InputError
from fpn.models.detectors import FasterRCNN
from fpn.models.losses import GIoU
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.postprocess import DetectionSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, FourConvOneFC, HeadInput, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.types import Batch, Targets

HEADS: dict[str, dict[str, Any]] = {
    "two fc": {"head": partial(TwoFCHead, hidden=16)},
    "a head for each level": {"head": partial(TwoFCHead, hidden=16), "shared": False},
    "four convolutions": {"head": partial(FourConvOneFC, norm="group", hidden=16)},
    "conv5": {"head": Conv5Head, "resolution": 14},
}


def network(head: dict[str, Any], agnostic: bool, **arguments: Any) -> FasterRCNN:
    neck: dict[str, Any] = {"neck": partial(FeaturePyramid, channels=8)}
    sizes = {k: [2.0 * 2**k] for k in range(2, 7)}
    if head["head"] is Conv5Head:
        neck["neck"], sizes = partial(SingleLevel, level=4), {4: [16.0, 48.0]}
    return FasterRCNN(
        3,
        bottom_up=partial(ResNet, "resnet10", norm="group", width=8),
        rpn=partial(RegionProposalNetwork, sizes=sizes),
        roi_head=partial(RoIHead, canonical_size=56, class_agnostic=agnostic, **head),
        **neck,
        **arguments,
    )


def both(head: dict[str, Any], **arguments: Any) -> tuple[FasterRCNN, FasterRCNN]:
    """A detector with a box for all classes, and an equal one with the same box for each."""
    torch.manual_seed(0)
    one, each = network(head, True, **arguments), network(head, False, **arguments)
    state = one.state_dict()
    for name, value in state.items():
        if name.endswith(".deltas.weight"):
            value.mul_(100)
        if name.endswith(".scores.weight"):
            value.mul_(2)
    repeated = {
        name: torch.cat([value] * 4) if name.startswith("roi_head") and ".deltas." in name else value
        for name, value in state.items()
    }
    each.load_state_dict(repeated)
    return one, each


def batch() -> Batch:
    torch.manual_seed(1)
    boxes = torch.tensor([[8.0, 10, 60, 70], [40, 30, 90, 60]])
    truth = [Targets(boxes, torch.tensor([1, 3]), torch.zeros(0, 4)) for _ in range(2)]
    return Batch(torch.randn(2, 3, 64, 96), [(64, 96)] * 2, [(64, 96)] * 2, [0, 1], truth)


@pytest.mark.parametrize(("head", "loss"), [*((head, None) for head in HEADS), ("two fc", GIoU)])
def test_losses_and_gradients(head: str, loss: Callable[[], GIoU] | None) -> None:
    detectors = both(HEADS[head], **({} if loss is None else {"roi_box_loss": loss}))
    losses = [one.losses(batch(), torch.Generator().manual_seed(2)) for one in detectors]
    for name, value in losses[0].items():
        torch.testing.assert_close(value, losses[1][name])
    gradients: list[dict[str, Tensor]] = []
    for detector, of in zip(detectors, losses, strict=True):
        torch.stack(list(of.values())).sum().backward()
        gradients.append({name: p.grad for name, p in detector.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == dict(detectors[0].named_parameters()).keys()
    for name, gradient in gradients[0].items():
        other = gradients[1][name]
        if name.startswith("roi_head") and ".deltas." in name:  # what all classes say is said by one
            other = other.unflatten(0, (4, 4)).sum(dim=0)
        torch.testing.assert_close(gradient, other, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize(("head", "soft"), [*((head, "hard") for head in HEADS), ("two fc", "gaussian")])
def test_detections(head: str, soft: Any) -> None:
    detectors = both(HEADS[head], detections=DetectionSelection(0.0, max_detections=1500, suppression=soft))
    with torch.no_grad():
        found, expected = (one.eval().detect(batch()) for one in detectors)
    for one, other in zip(found, expected, strict=True):
        assert len(set(other.labels.tolist())) > 1
        assert torch.equal(one.labels, other.labels)
        torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=1e-4)
        torch.testing.assert_close(one.scores, other.scores)


def test_it_is_four_numbers_of_the_last_layer() -> None:
    heads = [network(HEADS["two fc"], agnostic).roi_head.head["shared"] for agnostic in (True, False)]
    assert [head.deltas.out_features for head in heads] == [4, 16]
    assert [head.scores.out_features for head in heads] == [4, 4]


class Plain(nn.Module):
    """A head of a user's own that does not heed it."""

    def __init__(self, input: HeadInput) -> None:
        super().__init__()
        self.classes = input.classes
        self.all = nn.Linear(input.channels * input.resolution**2, 5 * (input.classes + 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.all(x.flatten(1)).unflatten(1, (self.classes + 1, 5))
        return y[..., 0], y[..., 1:]


def test_a_head_that_gives_a_box_for_each_class_is_named() -> None:
    network({"head": Plain}, False).losses(batch())
    detector = network({"head": Plain}, True)
    with pytest.raises(InputError) as raised:
        detector.losses(batch())
    assert "Plain gives scores [4] and boxes [4, 4] of an RoI, not [4] and [1, 4]" in str(raised.value)
