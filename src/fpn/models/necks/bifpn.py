"""BiFPN: down and up again, weighted, several times over.

EfficientDet (Tan et al., 2020, arXiv:1911.09070), Sec. 3.2 and 3.3, Fig. 2 (d). A map is
a convolution of the fast normalised fusion of maps I_i of its size,

    O = Σ_i w_i / (ε + Σ_j w_j) · I_i,   w_i = ReLU of a learned scalar, 1 at first,   ε = 0.0001.

    M_k = conv(fusion(P_k, M_{k+1} enlarged)),                from the level below the top down to the finest,
    P_k' = conv(fusion(P_k, M_k, P_{k-1}' pooled)),           from there up; the finest is M itself, and
    P_top' = conv(fusion(P_top, P_{top-1}' pooled)).

A convolution is Swish, depthwise 3×3, 1×1 and BatchNorm, as in the authors' code.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpn.models.necks.base import Neck
from fpn.models.necks.feature_pyramid import nearest
from fpn.models.necks.laterals import Laterals, norm
from fpn.settings import PositiveInt
from fpn.types import Features


class Fusion(nn.Module):
    """Maps of one size, weighted, and the convolution of their sum.

    Args:
        channels: d.
        maps: how many.
    """

    def __init__(self, channels: int, maps: int) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.ones(maps))
        self.depthwise = nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False)
        self.pointwise = nn.Conv2d(channels, channels, 1)
        self.norm = norm(channels)

    def forward(self, *maps: Tensor) -> Tensor:
        """From maps (N, d, h, w) to one."""
        w = F.relu(self.weights)
        w = w / (w.sum() + 1e-4)
        fused = sum((w[i] * x for i, x in enumerate(maps[1:], 1)), w[0] * maps[0])
        out: Tensor = self.norm(self.pointwise(self.depthwise(F.silu(fused))))
        return out


class BiFPNLayer(nn.Module):
    """Once down and once up.

    Args:
        channels: d.
        levels: finest first.
    """

    def __init__(self, channels: int, levels: Sequence[int]) -> None:
        super().__init__()
        self.levels = tuple(levels)
        *below, top = self.levels
        self.down = nn.ModuleDict({str(k): Fusion(channels, 2) for k in below})
        self.up = nn.ModuleDict({str(k): Fusion(channels, 2 if k == top else 3) for k in self.levels[1:]})

    def forward(self, p: Features) -> Features:
        """From {k: P_k} to {k: P_k'}."""
        *below, top = self.levels
        m = {top: p[top]}
        for k in reversed(below):
            m[k] = self.down[str(k)](p[k], nearest(m[k + 1], (p[k].shape[-2], p[k].shape[-1])))
        out = {self.levels[0]: m[self.levels[0]]}
        for k in self.levels[1:]:
            here = (p[k],) if k == top else (p[k], m[k])
            out[k] = self.up[str(k)](*here, halved(out[k - 1]))
        return out


class BiFPN(Neck):
    """The bidirectional feature pyramid of EfficientDet.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every level; EfficientDet-D0 has 64, D7 384.
        levels: the levels to give, two or more, one after the other. Those above the bottom-up's top are
            made by pooling; EfficientDet has 3 to 7.
        repeats: how many layers; EfficientDet-D0 has 3, D7 8.

    Raises:
        InputError: a single level, levels with a gap, or finer ones than the bottom-up has.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
        repeats: PositiveInt = 3,
    ) -> None:
        super().__init__()
        self.laterals = Laterals(in_channels, channels, levels, halved, own=True)
        self.inputs, self.levels, self.channels = self.laterals.inputs, self.laterals.levels, channels
        self.layers = nn.ModuleList(BiFPNLayer(channels, self.levels) for _ in range(repeats))

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: P_k}, each (N, channels, h_k, w_k)."""
        p: Features = self.laterals(c)
        for layer in self.layers:
            p = layer(p)
        return p


def halved(x: Tensor) -> Tensor:
    """The greatest of 3×3 values around every second one: (N, d, ⌈h / 2⌉, ⌈w / 2⌉)."""
    return F.max_pool2d(x, 3, stride=2, padding=1)
