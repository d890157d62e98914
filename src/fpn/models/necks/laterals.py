"""Maps of one width, of the bottom-up's levels and of coarser ones: what BiFPN and NAS-FPN begin with."""

from collections.abc import Callable, Mapping, Sequence

from torch import Tensor, nn

from fpn.errors import InputError
from fpn.types import Features


class Laterals(nn.Module):
    """A 1×1 with BatchNorm for each C level; coarser maps are pooled.

    Args:
        in_channels: channels of each C level.
        channels: d, of every map.
        levels: the levels to give.
        pool: halves a map.
        own: whether the first map above the top C level has a 1×1 of its own, from that level, as in
            EfficientDet; otherwise it is pooled from the map below.

    Attributes:
        inputs: the C levels it reads.
        levels: of its maps, finest first.

    Raises:
        InputError: a single level, levels with a gap, or finer ones than the bottom-up has.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: int,
        levels: Sequence[int],
        pool: Callable[[Tensor], Tensor],
        own: bool,
    ) -> None:
        super().__init__()
        self.levels, self.pool = tuple(sorted(levels)), pool
        self.inputs = tuple(k for k in self.levels if k in in_channels)
        self.top = max(in_channels)
        whole = self.levels == tuple(range(self.levels[0], self.levels[0] + len(self.levels)))
        if not whole or len(self.levels) < 2:
            raise InputError(f"neck.levels are {list(levels)}: give two or more, without a gap")
        if any(k not in in_channels for k in self.levels if k <= self.top) or not self.inputs:
            raise InputError(
                f"neck.levels {list(levels)} are not among the bottom-up's {sorted(in_channels)}, "
                "nor all above them"
            )
        self.convs = nn.ModuleDict(
            {
                str(k): nn.Sequential(nn.Conv2d(in_channels[min(k, self.top)], channels, 1), norm(channels))
                for k in self.levels
                if k <= self.top + own
            }
        )

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: (N, d, h_k, w_k)}."""
        p: Features = {}
        for k in self.levels:
            x = self.convs[str(k)](c[min(k, self.top)]) if str(k) in self.convs else p[k - 1]
            p[k] = x if k <= self.top else self.pool(x)
        return p


def norm(channels: int) -> nn.BatchNorm2d:
    """EfficientDet's BatchNorm, whose averages are slow."""
    return nn.BatchNorm2d(channels, eps=1e-3, momentum=0.01)
