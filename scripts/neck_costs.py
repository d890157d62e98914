"""Parameters and operations of each neck on ResNet-50, beside FPN's: the table of docs/necks.md.

python scripts/neck_costs.py --height 800 --width 1088
"""

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

import torch
from jsonargparse import auto_cli
from torch.utils.flop_counter import FlopCounterMode

from fpn.models import necks
from fpn.models.necks import Neck

RESNET50 = {2: 256, 3: 512, 4: 1024, 5: 2048}
VIT_BASE = {4: 768}
KINDS: dict[type[Neck], Mapping[int, int]] = {
    necks.FeaturePyramid: RESNET50,
    necks.PAFPN: RESNET50,
    necks.BiFPN: RESNET50,
    necks.BalancedFeaturePyramid: RESNET50,
    necks.CarafePyramid: RESNET50,
    necks.FaPN: RESNET50,
    necks.NASFPN: RESNET50,
    necks.SimpleFPN: VIT_BASE,
}
"""Each neck, and the channels of the maps that it is given."""


def cost(
    kind: Callable[..., Neck], channels: Mapping[int, int], height: int, width: int
) -> tuple[int, float]:
    """Parameters, and operations for an image in thousand millions: two for a product and its sum.

    What has no product of matrices or convolution is not counted: sums, norms, resizing.

    Args:
        kind: which; it is built without weights, and nothing is computed.
        channels: of the maps that it is given, by level.
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    with torch.device("meta"):
        neck = kind(channels)
        maps = {k: torch.empty(1, d, ceil(height / 2**k), ceil(width / 2**k)) for k, d in channels.items()}
    deformable = {torch.ops.torchvision.deform_conv2d: _of_deformable}
    with torch.no_grad(), FlopCounterMode(display=False, custom_mapping=deformable) as counter:
        neck.eval()(maps)
    return sum(p.numel() for p in neck.parameters()), counter.get_total_flops() / 1e9


def _of_deformable(x: Any, weight: Any, *others: Any, out_shape: Any = None, **more: Any) -> int:
    """A convolution's; finding the sampled values is left out, as it is of others."""
    n, _, h, w = out_shape
    out, into, *kernel = weight
    return int(2 * n * h * w * out * into * kernel[0] * kernel[1])


def costs(height: int = 800, width: int = 1088) -> None:
    """Print a row of each neck, with 256 channels.

    Args:
        height: of the image, in pixels.
        width: of the image, in pixels.
    """
    print("| neck | parameters, million | GFLOP |\n|---|--:|--:|")
    for kind, channels in KINDS.items():
        parameters, operations = cost(kind, channels, height, width)
        print(f"| {kind.__name__} | {parameters / 1e6:.2f} | {operations:.1f} |")


if __name__ == "__main__":
    auto_cli(costs)
