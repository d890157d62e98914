"""A GPU gives what the CPU gives."""

from functools import partial

import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device

from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.types import Batch, Targets

pytestmark = pytest.mark.gpu


def detector() -> FasterRCNN:
    everything = 10**6
    return FasterRCNN(
        3,
        bottom_up=partial(ResNet, "resnet18", norm="group", width=16),
        neck=partial(FeaturePyramid, channels=16),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=32)),
        anchor_sampling=AnchorSampling(per_image=everything),
        roi_sampling=RoISampling(per_image=everything),
    )


def batch() -> Batch:
    boxes = torch.tensor([[10.0, 20, 90, 100], [30, 5, 60, 50]])
    truth = [
        Targets(boxes, torch.tensor([1, 3]), torch.zeros(0, 4)),
        Targets(boxes[:0], torch.zeros(0, dtype=torch.int64), boxes[:1]),
    ]
    return Batch(torch.randn(2, 3, 128, 160), [(128, 160), (120, 130)], [(64, 80), (240, 260)], [1, 2], truth)


def test_rpn_losses_and_gradients() -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, data = detector(), batch()
    expected = model.losses(data)
    expected["rpn_objectness"].backward()
    gradient = model.rpn.head["shared"].conv.weight.grad.clone()
    model.zero_grad()
    model.cuda()
    losses = model.losses(move_data_to_device(data, torch.device("cuda")))
    losses["rpn_objectness"].backward()
    for name in ("rpn_objectness", "rpn_box"):
        torch.testing.assert_close(losses[name].cpu(), expected[name], rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(
        model.rpn.head["shared"].conv.weight.grad.cpu(), gradient, rtol=1e-3, atol=1e-6
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_and_a_generator(dtype: torch.dtype) -> None:
    model, data = detector().cuda(), move_data_to_device(batch(), torch.device("cuda"))
    with torch.autocast("cuda", dtype):
        losses = model.losses(data, torch.Generator("cuda").manual_seed(0))
        sum(losses.values()).backward()
        found = model.eval().detect(data)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert all(p.grad is not None for p in model.parameters())
    assert found[0].boxes.dtype == torch.float32
