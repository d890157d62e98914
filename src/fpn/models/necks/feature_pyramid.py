"""The feature pyramid (Sec. 3, Fig. 3), with the toggles of Table 1."""

from collections.abc import Callable, Mapping, Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from fpn.errors import InputError
from fpn.models.necks.base import Neck
from fpn.models.norms import Norm, absorb_norms, fold_norms, norm_layer
from fpn.settings import PositiveInt
from fpn.types import Features, Size


def nearest(x: Tensor, size: Size) -> Tensor:
    """A map enlarged to (height, width) by repeating its cells, as the paper does for simplicity (Sec. 3)."""
    return F.interpolate(x, size=size, mode="nearest")


class FeaturePyramid(Neck):
    """The feature pyramid: top-down pathway and lateral connections.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every P level.
        levels: the P levels to give.
        lateral: add the 1×1 of each C level to the map from above; without it only the top level
            sees the bottom-up pathway: Table 1 (e).
        top_down: add the upsampled map of the level above; without it each level stands alone:
            the bottom-up pyramid of Table 1 (d).
        smooth: a 3×3 convolution on each merged map, against the aliasing of upsampling.
        nonlinearity: a ReLU after each extra convolution; the paper has none.
        norm: frozen (BatchNorm as a fixed scale and shift), batch or group, after each extra convolution in
            place of its bias; the paper has none.

    Raises:
        InputError: no lateral connections and no top-down pathway, or levels that the bottom-up lacks.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
        lateral: bool = True,
        top_down: bool = True,
        smooth: bool = True,
        nonlinearity: bool = False,
        norm: Norm | None = None,
    ) -> None:
        super().__init__()
        self.levels, self.channels = tuple(sorted(levels)), channels
        self.top_down, self.nonlinearity = top_down, nonlinearity
        self.toggles = {
            "lateral": lateral,
            "top_down": top_down,
            "smooth": smooth,
            "nonlinearity": nonlinearity,
        }
        top = max(in_channels)
        if not set(self.levels) <= set(in_channels) or not self.levels:
            raise InputError(
                f"neck.levels {list(levels)} are not among the bottom-up's {sorted(in_channels)}"
            )
        if not (lateral or top_down) and self.levels != (top,):
            raise InputError(
                "neck.lateral and neck.top_down are both false: the finer levels would have no input"
            )
        # Levels of the pathway, coarsest first: a top-down pathway to a fine level runs through all above it.
        self.path = [
            k for k in sorted(in_channels, reverse=True) if k in levels or (top_down and k > min(levels))
        ]
        after = [nn.ReLU()] if nonlinearity else []

        def extra(in_channels: int, side: int) -> nn.Sequential:
            conv = nn.Conv2d(in_channels, channels, side, padding=side // 2, bias=norm is None)
            normed = [] if norm is None else [norm_layer(norm)(channels)]
            return nn.Sequential(conv, *normed, *after)

        self.inputs = tuple(k for k in self.path if lateral or k == top)
        self.laterals = nn.ModuleDict({str(k): extra(in_channels[k], 1) for k in self.inputs})
        self.smooths = nn.ModuleDict({str(k): extra(channels, 3) for k in self.levels if smooth})
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_uniform_(module.weight, a=1)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        absorb_norms(self)

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: P_k}, each (N, channels, h_k, w_k)."""
        return self.smooth(self.merge(c))

    def merge(self, c: Features, upsample: Callable[[Tensor, Size], Tensor] = nearest) -> Features:
        """The pathway's maps before the 3×3: {k: 1×1 of C_k + the enlarged map of the level above}.

        Args:
            c: the bottom-up's maps.
            upsample: enlarges a map to a (height, width).
        """
        merged: Features = {}
        above = None
        for k in self.path:
            x = self.laterals[str(k)](c[k]) if str(k) in self.laterals else None
            if self.top_down and above is not None:
                # To the finer map's own size: an odd map is not half of the next.
                up = upsample(above, (c[k].shape[-2], c[k].shape[-1]))
                x = up if x is None else x + up
            assert x is not None  # the constructor refuses a level without input
            merged[k] = above = x
        return merged

    def smooth(self, merged: Features) -> Features:
        """{k: P_k} of the pathway's maps: the 3×3 of each, where there is one."""
        return {k: self.smooths[str(k)](merged[k]) if self.smooths else merged[k] for k in self.levels}

    def fold_norms(self) -> None:
        """For inference: BatchNorms become part of the convolutions before them."""
        fold_norms(self.laterals)
        fold_norms(self.smooths)
