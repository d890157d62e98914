"""A GPU gives what the CPU gives."""

from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch.utilities import move_data_to_device

import fpn.models.detectors
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid
from fpn.models.optimized import CompileMode, accelerate, optimized
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.ops.suppression import suppress
from fpn.types import Batch, Inference, Targets

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


def test_the_kernel_suppresses_as_the_cpu_does() -> None:
    corner, side = torch.rand(2, 40, 1000, 2) * 400
    boxes, scores = torch.cat((corner, corner + side), dim=-1), torch.randn(40, 1000)
    scores[torch.rand(40, 1000) < 0.3] = -torch.inf
    scores[-1] = -torch.inf
    for iou in (0.3, 0.7):
        keep = suppress(boxes.cuda(), scores.cuda(), iou).cpu()
        # An overlap within rounding of the threshold may go either way, and what follows it.
        assert (keep != suppress(boxes, scores, iou)).float().mean() < 1e-4


@pytest.mark.parametrize("training", [True, False])
def test_the_host_waits_where_it_counts_and_nowhere_else(
    training: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the second step, since the first compiles the kernel."""
    usual, hand_over = fpn.models.detectors.counts, fpn.models.detectors._handed_over
    waits: list[int] = []

    def counts(*masks: torch.Tensor) -> list[int]:
        strict = torch.cuda.get_sync_debug_mode()
        torch.cuda.set_sync_debug_mode("default")
        waits.append(len(masks))
        numbers = usual(*masks)
        torch.cuda.set_sync_debug_mode(strict)
        return numbers

    def handed_over(*given: Any) -> Inference:
        torch.cuda.set_sync_debug_mode("default")
        return hand_over(*given)

    monkeypatch.setattr(fpn.models.detectors, "counts", counts)
    monkeypatch.setattr(fpn.models.detectors, "_handed_over", handed_over)
    model, data = detector().cuda(), move_data_to_device(batch(), torch.device("cuda"))
    quick, generator = optimized(model), torch.Generator("cuda").manual_seed(0)
    try:
        for mode in ("default", "error"):
            with torch.inference_mode(not training):
                torch.cuda.set_sync_debug_mode(mode)
                if training:
                    sum(model.losses(data, generator).values()).backward()
                else:
                    quick(data)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(waits) == 2


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_compiled_and_with_channels_last_it_learns_the_same(mode: CompileMode) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    model, data = detector().cuda(), move_data_to_device(batch(), torch.device("cuda"))
    sum(model.losses(data).values()).backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    accelerate(model, mode, channels_last=True)
    for _ in range(3):  # of which the first compile, and record
        model.zero_grad()
        torch.compiler.cudagraph_mark_step_begin()
        sum(model.losses(data).values()).backward()
    for name, p in model.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(p.grad, expected[name], rtol=1e-2, atol=1e-4)
    model.eval()
    for _ in range(3):  # none of whose parts has its input overwritten by the next
        torch.compiler.cudagraph_mark_step_begin()
        with torch.inference_mode():
            found = model(data)
    assert all(torch.isfinite(one.boxes).all() for one in found.proposals)
