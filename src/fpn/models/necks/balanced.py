"""Libra R-CNN's balanced feature pyramid (Pang et al., 2019, arXiv:1904.02701), Sec. 3.2, Fig. 4.

All levels of an FPN are averaged into one map, that map is refined, and every level gets it back:

    B = 1 / L Σ_k (P_k resized to the middle level),   P_k' = P_k + (refine(B) resized to level k).

To a coarser level a map is max-pooled, to a finer one repeated. Refined is by a 3×3 convolution or by
an embedded Gaussian non-local block (Wang et al., 2018), which the paper found better:

    refine(B) = B + out(softmax(θ(B)ᵀ φ(B)) g(B)),   four 1×1 convolutions, the last one zero at first.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

from fpn.errors import InputError
from fpn.models.necks.feature_pyramid import FeaturePyramid
from fpn.models.necks.resizing import resized
from fpn.settings import PositiveInt
from fpn.types import Features


class NonLocal(nn.Module):
    """Each position of a map and what all others, weighted by likeness, add to it.

    Args:
        channels: d, of input, output and what lies between.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.theta, self.phi, self.g, self.out = (nn.Conv2d(channels, channels, 1) for _ in range(4))
        for conv in (self.theta, self.phi, self.g):
            nn.init.normal_(conv.weight, std=0.01)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """From (N, d, h, w) to the same size."""
        # One head, and the paper's scores as they are: not over √d. Contiguous, as what holds no (h·w)² asks.
        query, key, value = (
            conv(x).flatten(2).transpose(1, 2)[:, None].contiguous()
            for conv in (self.theta, self.phi, self.g)
        )
        seen = F.scaled_dot_product_attention(query, key, value, scale=1.0)[:, 0]
        return x + self.out(seen.transpose(1, 2).reshape(x.shape))


class BalancedFeaturePyramid(FeaturePyramid):
    """FPN, balanced.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every level of the output.
        levels: the levels to give.
        middle: the level at which they are averaged.
        refine: non_local, conv (3×3 with ReLU), or null for neither.

    Raises:
        InputError: the middle is none of the levels, or the bottom-up lacks one.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
        middle: int = 4,
        refine: Literal["non_local", "conv"] | None = "non_local",
    ) -> None:
        super().__init__(in_channels, channels, levels)
        if middle not in self.levels:
            raise InputError(f"neck.middle {middle} is none of neck.levels {list(self.levels)}")
        self.middle = middle
        self.refine: nn.Module
        if refine == "non_local":
            self.refine = NonLocal(channels)
        elif refine == "conv":
            self.refine = nn.Sequential(nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU())
        else:
            self.refine = nn.Identity()

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: P_k'}, each (N, channels, h_k, w_k)."""
        p = super().forward(c)
        sizes = {k: (x.shape[-2], x.shape[-1]) for k, x in p.items()}
        b = sum(
            (resized(x, k, self.middle, sizes[self.middle]) for k, x in p.items() if k != self.middle),
            p[self.middle],
        ) / len(p)
        b = self.refine(b)
        return {k: x + resized(b, self.middle, k, sizes[k]) for k, x in p.items()}
