"""A pyramid of one map, for a plain transformer.

ViTDet (Li et al., 2022, arXiv:2203.16527), Sec. 3, Fig. 2 (c). Each level is made of the bottom-up's last map
alone, by itself: finer ones by transposed convolutions of stride 2 that halve the channels, with LayerNorm
and GELU in between, coarser ones by max pooling. Then follow a 1×1 and a 3×3, each with LayerNorm.
There is no top-down pathway and no lateral connection.

    neck: fpn.models.necks.SimpleFPN
    bottom_up:
      class_path: fpn.TimmBottomUp
      init_args: {name: vit_base_patch16_224, weights: default, options: {dynamic_img_size: true}}
"""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from torch import nn
from torchvision.models.convnext import LayerNorm2d

from fpn.errors import InputError
from fpn.models.necks.base import Neck
from fpn.models.necks.resizing import pooled
from fpn.settings import PositiveInt
from fpn.types import Features


class SimpleFPN(Neck):
    """ViTDet's simple feature pyramid.

    A finer map is a whole multiple of the map it is made of. So that each level has the size of its stride,
    the sides of a batch must be multiples of that map's stride, as they are by default (data.images.divisor).

    Args:
        in_channels: channels of each C level; the last is read.
        channels: d, the channels of every level.
        levels: the levels to give.

    Raises:
        InputError: no levels, or one so fine that no channel would be left.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
    ) -> None:
        super().__init__()
        self.source = max(in_channels)
        self.inputs, self.levels, self.channels = (self.source,), tuple(sorted(levels)), channels
        width = in_channels[self.source]
        if not self.levels or width >> max(self.source - self.levels[0], 0) == 0:
            raise InputError(
                f"neck.levels are {list(levels)}: SimpleFPN makes one or more, each finer one of half the "
                f"channels, of {width} at level {self.source}"
            )
        self.finer = nn.ModuleDict()
        self.outputs = nn.ModuleDict()
        for k in self.levels:
            widths = [width >> step for step in range(max(self.source - k, 0) + 1)]
            steps: list[nn.Module] = []
            for before, after in pairwise(widths):
                steps += [_norm(before), nn.GELU()] if steps else []
                steps.append(nn.ConvTranspose2d(before, after, 2, stride=2))
            self.finer[str(k)] = nn.Sequential(*steps)
            self.outputs[str(k)] = nn.Sequential(
                nn.Conv2d(widths[-1], channels, 1, bias=False),
                _norm(channels),
                nn.Conv2d(channels, channels, 3, padding=1, bias=False),
                _norm(channels),
            )

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: P_k}, each (N, channels, h_k, w_k)."""
        p: Features = {}
        for k in self.levels:
            x = self.finer[str(k)](c[self.source])
            x = pooled(x, k - self.source) if k > self.source else x
            p[k] = self.outputs[str(k)](x)
        return p


def _norm(channels: int) -> nn.Module:
    return LayerNorm2d(channels, eps=1e-6)
