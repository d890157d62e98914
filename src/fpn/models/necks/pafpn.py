"""FPN and a second path, from the finest level up.

PANet (Liu et al., 2018, arXiv:1803.01534), Sec. 3.1, Fig. 1 (b):

    N2 = P2,  N_{k+1} = ReLU(conv 3×3 (ReLU(conv 3×3, stride 2 (N_k)) + P_{k+1}))    (Fig. 2)

What is fine reaches the coarse levels by few layers. mmdetection's PAFPN has no ReLU, and takes for N_k in
the sum what comes before the last 3×3.
"""

from collections.abc import Mapping, Sequence

import torch.nn.functional as F
from torch import nn

from fpn.errors import InputError
from fpn.models.necks.feature_pyramid import FeaturePyramid
from fpn.settings import PositiveInt
from fpn.types import Features


class PAFPN(FeaturePyramid):
    """FPN with PANet's bottom-up path augmentation.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every level of the output.
        levels: the levels to give, one after the other.

    Raises:
        InputError: levels with a gap, or that the bottom-up lacks.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
    ) -> None:
        super().__init__(in_channels, channels, levels)
        if self.levels != tuple(range(self.levels[0], self.levels[-1] + 1)):
            raise InputError(f"neck.levels {list(levels)} have a gap: each level is made of the one before")
        self.downs, self.fuses = (
            nn.ModuleDict(
                {str(k): nn.Conv2d(channels, channels, 3, stride, padding=1) for k in self.levels[1:]}
            )
            for stride in (2, 1)
        )
        for conv in (*self.downs.values(), *self.fuses.values()):
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: N_k}, each (N, channels, h_k, w_k)."""
        p = super().forward(c)
        n = {self.levels[0]: p[self.levels[0]]}
        for k in self.levels[1:]:
            down = F.relu(self.downs[str(k)](n[k - 1]))
            n[k] = F.relu(self.fuses[str(k)](down + p[k]))
        return n
