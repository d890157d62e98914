"""RoI pooling over the pyramid's levels, forward and backward."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torchvision.ops import MultiScaleRoIAlign

from fpn.benchmark.comparison import Run, equally_far
from fpn.benchmark.images import random_targets
from fpn.benchmark.report import Report
from fpn.benchmark.work import Work
from fpn.errors import positive
from fpn.models.necks import FeaturePyramid
from fpn.models.roi_head import HeadInput, RoIHead
from fpn.types import RoIs

IMAGES, CHANNELS, LEVELS = 2, 256, (2, 3, 4, 5)
LIMIT = 1e-4
"""Largest difference of pooled values and gradients, in parts of the largest value."""


class Pooled(nn.Module):
    """A head that hands on what it is given: `RoIHead` is then RoI pooling alone."""

    def __init__(self, input: HeadInput) -> None:
        super().__init__()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The same twice."""
        return x, x


def roi(rois: int = 512, short_side: int = 800, **options: Any) -> Report:
    """RoI pooling, forward and backward, of 2 images' RoIs over 4 levels of 256 channels.

    Args:
        rois: of both images together.
        short_side: pixels of the images; the long side has 1.36 times as many.
        **options: of `Run`.
    """
    run = Run(**options)
    positive(rois=rois, short_side=short_side)
    height, width = (32 * max(1, round(side / 32)) for side in (short_side, 1.36 * short_side))
    given = (rois, height, width, run.device)
    title = f"RoI pooling, forward and backward, {rois} RoIs, {height} × {width} pixels"
    case = run.compare(title, partial(theirs, *given), partial(ours, *given), same_pooling, 1, "repetition")
    return run.report("RoI pooling", {"images": IMAGES, "channels": CHANNELS, "resolution": 7}, cases=[case])


def theirs(rois: int, height: int, width: int, device: str) -> Work:
    """torchvision's MultiScaleRoIAlign."""
    pool = MultiScaleRoIAlign([str(k) for k in LEVELS], output_size=7, sampling_ratio=2)

    def pooled(p: dict[int, Tensor], boxes: list[Tensor]) -> Tensor:
        found: Tensor = pool({str(k): x for k, x in p.items()}, boxes, [(height, width)] * IMAGES)
        return found

    return pooling(pooled, rois, height, width, device)


def ours(rois: int, height: int, width: int, device: str) -> Work:
    """Our RoIHead's way from the pyramid to its head."""
    head = RoIHead(FeaturePyramid(dict.fromkeys(LEVELS, 1)), classes=1, head=Pooled)

    def pooled(p: dict[int, Tensor], boxes: list[Tensor]) -> Tensor:
        image = torch.cat([torch.full((len(b),), i, device=device) for i, b in enumerate(boxes)])
        found: Tensor = head(p, RoIs(torch.cat(boxes), image))[0]
        return found

    return pooling(pooled, rois, height, width, device)


def pooling(
    pooled: Callable[[dict[int, Tensor], list[Tensor]], Tensor],
    rois: int,
    height: int,
    width: int,
    device: str,
) -> Work:
    """A repetition: pool and go back, with a random gradient."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    p = {k: random(IMAGES, CHANNELS, height >> k, width >> k).requires_grad_() for k in LEVELS}
    boxes = [
        _boxes(n, height, width, seed).to(device) for seed, n in enumerate((rois - rois // 2, rois // 2))
    ]
    gradient = random(rois, CHANNELS, 7, 7)

    def run() -> Tensor:
        for x in p.values():
            x.grad = None
        found = pooled(p, boxes)
        found.backward(gradient)
        return found

    def outputs() -> dict[str, Tensor]:
        found = {"pooled": run().detach().cpu()}
        return found | {f"gradient of P{k}": x.grad.cpu() for k, x in p.items() if x.grad is not None}

    return Work(run, outputs)


def _boxes(number: int, height: int, width: int, seed: int) -> Tensor:
    """RoIs of all levels: sides that halve from one quarter of them to the next."""
    whole = random_targets((height, width), number, 1, seed).boxes
    corner, sides = whole[:, :2], whole[:, 2:] - whole[:, :2]
    shrunk = sides * 2.0 ** -(torch.arange(number) % 4)[:, None] * 2
    return torch.cat((corner, torch.min(corner + shrunk, torch.tensor([float(width), height]))), dim=1)


def same_pooling(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> str:
    """See that pooled values and gradients are the same.

    Raises:
        DisagreementError: they differ too much.
    """
    # A level that no RoI is read from has gradients of 0.
    scales = {name: float(x.abs().max()) or 1.0 for name, x in theirs.items()}
    far = {name: float((ours[name] - x).abs().max()) / scales[name] for name, x in theirs.items()}
    return equally_far("pooled values and gradients (in parts of the largest)", far, LIMIT)
