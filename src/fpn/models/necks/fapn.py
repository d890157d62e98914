"""FPN that selects and aligns before it adds.

FaPN (Huang et al., 2021, arXiv:2108.07058), Sec. 3, Fig. 2 to 4:

    Ĉ_k = conv 1×1 (C_k + u · C_k),  u = sigmoid(conv 1×1 (mean of C_k))             feature selection
    Δ = f(Ĉ_k, 2 U),  U = the merged map of level k + 1, enlarged bilinearly          offsets and masks
    merged_k = Ĉ_k + ReLU(deformable conv 3×3 (U, Δ))                                feature alignment

The top level has FPN's 1×1, and its 3×3, which the authors' code leaves out there. As in that code, f is a
1×1 and a 3×3 that is zero at first, and each of 8 groups of channels has offsets and masks (deformable
convolution, version 2) of its own.
"""

from collections.abc import Callable, Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import deform_conv2d

from fpn.errors import InputError
from fpn.models.necks.feature_pyramid import FeaturePyramid
from fpn.settings import PositiveInt
from fpn.types import Features, Size


class Selection(nn.Module):
    """The channels of a map that matter, in fewer.

    Args:
        in_channels: of C_k.
        channels: d.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.weigh = nn.Conv2d(in_channels, in_channels, 1, bias=False)
        self.reduce = nn.Conv2d(in_channels, channels, 1, bias=False)
        for conv in (self.weigh, self.reduce):
            nn.init.kaiming_uniform_(conv.weight, a=1)

    def forward(self, c: Tensor) -> Tensor:
        """From (N, in_channels, h, w) to (N, d, h, w)."""
        u = self.weigh(c.mean((2, 3), keepdim=True)).sigmoid()
        selected: Tensor = self.reduce(c + u * c)
        return selected


class Alignment(nn.Module):
    """An enlarged map, sampled where the finer level says.

    Args:
        channels: d.
        groups: groups of channels with offsets and masks of their own.
    """

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.compare = nn.Conv2d(2 * channels, channels, 1, bias=False)
        self.offsets = nn.Conv2d(channels, 3 * 9 * groups, 3, padding=1)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.kaiming_uniform_(self.compare.weight, a=1)
        nn.init.kaiming_uniform_(self.conv.weight, a=1)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.offsets.weight)
        nn.init.zeros_(self.offsets.bias)  # type: ignore[arg-type]

    def forward(self, up: Tensor, fine: Tensor) -> Tensor:
        """From two maps (N, d, h, w) to the first, aligned with the second."""
        seen = self.offsets(self.compare(torch.cat([fine, 2 * up], dim=1)))
        third = seen.shape[1] // 3
        offset, mask = seen.split([2 * third, third], dim=1)
        weight, bias = self.conv.weight, self.conv.bias
        # Under autocast maps may be in half precision, in which a CPU cannot do this.
        given = (x.to(weight.dtype) for x in (up, offset))
        return F.relu(deform_conv2d(*given, weight, bias, padding=1, mask=mask.to(weight.dtype).sigmoid()))


class FaPN(FeaturePyramid):
    """The feature-aligned pyramid.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every level of the output.
        levels: the levels to give.
        groups: groups of channels with offsets of their own; must divide `channels`.

    Raises:
        InputError: `groups` does not divide `channels`, or the bottom-up lacks a level.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
        groups: PositiveInt = 8,
    ) -> None:
        super().__init__(in_channels, channels, levels)
        if channels % groups:
            raise InputError(f"neck.groups {groups} does not divide neck.channels {channels}")
        below = self.path[1:]
        for k in below:
            self.laterals[str(k)] = Selection(in_channels[k], channels)
        self.alignments = nn.ModuleDict({str(k): Alignment(channels, groups) for k in below})

    def merge(self, c: Features, upsample: Callable[[Tensor, Size], Tensor] | None = None) -> Features:
        """The pathway's maps before the last 3×3, by level.

        Args:
            c: the bottom-up's maps.
            upsample: enlarges a map to a (height, width); None for bilinearly.
        """
        top, *below = self.path
        merged = {top: self.laterals[str(top)](c[top])}
        above = merged[top]
        for k in below:
            up = (upsample or bilinear)(above, (c[k].shape[-2], c[k].shape[-1]))
            fine = self.laterals[str(k)](c[k])
            merged[k] = above = fine + self.alignments[str(k)](up, fine)
        return merged


def bilinear(x: Tensor, size: Size) -> Tensor:
    """A map enlarged to (height, width) by linear interpolation between the centres of its cells."""
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)
