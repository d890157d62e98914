"""Box losses against torchvision's on decoded boxes, one of a user's own, and all without foreground."""

from collections.abc import Callable, Sequence
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from fpn.checkpoints import build_detector
from fpn.models.detectors import FasterRCNN
from fpn.models.losses import L1, BoxLoss, CIoU, DIoU, GIoU, SmoothL1
from fpn.models.necks import FeaturePyramid
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.ops.boxes import decode_boxes, encode_boxes
from fpn.types import Batch, Targets

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


class Center(BoxLoss):
    """As a user writes it: only where a box is counts."""

    def forward(
        self, predicted: Tensor, wanted: Tensor, references: Tensor, box_weights: Sequence[float]
    ) -> Tensor:
        return (predicted - wanted)[:, :2].abs().sum()


LOSSES = [SmoothL1, partial(SmoothL1, 0.0), GIoU, DIoU, CIoU, Center]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [(GIoU, generalized_box_iou_loss), (DIoU, distance_box_iou_loss), (CIoU, complete_box_iou_loss)],
)
def test_iou_losses_are_torchvisions_of_the_boxes(
    ours: Callable[..., BoxLoss], theirs: Callable[..., Tensor]
) -> None:
    corners = torch.rand(2, 50, 4) * 100
    references, objects = torch.cat((corners[..., :2], corners[..., :2] + corners[..., 2:] + 10), dim=-1)
    predicted = torch.randn(50, 4, requires_grad=True)
    wanted = encode_boxes(objects, references, WEIGHTS)
    expected = theirs(decode_boxes(predicted, references, WEIGHTS), objects, reduction="sum")
    torch.testing.assert_close(ours(weight=3.0)(predicted, wanted, references, WEIGHTS), 3 * expected)
    none = ours()(wanted, wanted, references, WEIGHTS)
    assert none.item() == pytest.approx(0, abs=1e-3)


@pytest.mark.parametrize("loss", [GIoU, DIoU, CIoU])
def test_a_box_without_sides_has_a_loss(loss: Callable[[], BoxLoss]) -> None:
    reference = torch.tensor([[1000.0, 1000.0, 1100.0, 1100.0]])
    deltas = torch.tensor([[0.0, 0.0, -400.0, -400.0]], requires_grad=True)
    found = loss()(deltas, torch.zeros(1, 4), reference, WEIGHTS)
    found.backward()
    assert 1 - 1e-4 <= found.item() < 2
    assert deltas.grad is not None
    assert deltas.grad.isfinite().all()


def test_giou_by_hand() -> None:
    """Two squares of 2 × 2 that share one of 1 × 1, in a hull of 3 × 3: 1 − 1/7 + (9 − 7) / 9."""
    reference = torch.tensor([[0.0, 0.0, 4.0, 4.0]])
    found, wanted = (
        encode_boxes(torch.tensor([[x, x, x + 2, x + 2]]), reference, WEIGHTS) for x in (0.0, 1.0)
    )
    assert GIoU()(found, wanted, reference, WEIGHTS).item() == pytest.approx(1 - 1 / 7 + 2 / 9)


def test_beta_zero_is_l1() -> None:
    predicted, wanted = torch.randn(2, 9, 4)
    found = SmoothL1(0.0)(predicted, wanted, wanted, WEIGHTS)
    torch.testing.assert_close(found, F.l1_loss(predicted, wanted, reduction="sum"))


@pytest.mark.parametrize("loss", LOSSES)
def test_without_foreground_the_loss_is_zero(loss: Callable[[], BoxLoss]) -> None:
    deltas = torch.randn(3, 4, requires_grad=True)
    nothing = torch.zeros(0, 4)
    found = loss()(deltas[:0], nothing, nothing, WEIGHTS)
    assert found.item() == 0
    found.backward()
    assert deltas.grad is not None
    assert torch.equal(deltas.grad, torch.zeros(3, 4))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("objects", [0, 1])
def test_detectors_learn_by_them(loss: Callable[[], BoxLoss], objects: int) -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(
        2,
        bottom_up=partial(ResNet, "resnet10", norm="batch", width=4),
        neck=partial(FeaturePyramid, channels=8),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=8)),
        rpn_box_loss=loss,
        roi_box_loss=loss,
    )
    truth = Targets(
        torch.tensor([[4.0, 4, 50, 60]])[:objects], torch.ones(objects, dtype=torch.int64), torch.zeros(0, 4)
    )
    losses = detector.losses(Batch(torch.randn(1, 3, 64, 64), [(64, 64)], [(64, 64)], [0], [truth]))
    for name in ("rpn_box", "roi_box"):
        assert (losses[name].item() > 0) == (objects > 0)
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())


def test_one_line_of_a_configuration_names_one() -> None:
    small = {"bottom_up": {"name": "resnet10", "width": 4}}
    detector = build_detector([small, {"roi_box_loss": {"class_path": "fpn.models.losses.GIoU"}}], 3)
    assert isinstance(detector, FasterRCNN)
    assert (type(detector.rpn_box_loss), type(detector.roi_box_loss)) == (SmoothL1, GIoU)
    detector = build_detector([small, {"rpn_box_loss": {"beta": 0.0}, "rpn_loss_per_image": 256}], 3)
    assert isinstance(detector, FasterRCNN)
    assert (detector.rpn_box_loss.beta, detector.rpn_loss_per_image) == (0, 256)


def test_a_loss_is_given_as_a_class_or_as_one() -> None:
    bottom_up, neck = partial(ResNet, "resnet18", width=8, norm="group"), partial(FeaturePyramid, channels=8)
    own = GIoU(weight=2.0)
    detector = FasterRCNN(3, bottom_up=bottom_up, neck=neck, rpn_box_loss=L1, roi_box_loss=own)
    assert detector.roi_box_loss is own
    assert isinstance(detector.rpn_box_loss, L1)
    predicted, wanted, references = torch.randn(3, 5, 4)
    expected = (predicted - wanted).abs().sum()
    torch.testing.assert_close(detector.rpn_box_loss(predicted, wanted, references, (1, 1, 1, 1)), expected)
