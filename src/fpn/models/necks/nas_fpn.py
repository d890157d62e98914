"""A pyramid that was searched for.

NAS-FPN (Ghiasi et al., 2019, arXiv:1904.07392), Sec. 3, Fig. 2, 3 and 6. A merging cell resizes two maps to
its level, joins them, and gives BatchNorm(conv 3×3 (ReLU(what is joined))):

    sum(x, y) = x + y,   gp(x, y) = x + sigmoid(the greatest of x, by channel) · y.

The published 7 cells, on the paper's P3 to P7 and in this order; they are repeated 7 times:

    A4 = gp(P6, P4)        P3' = sum(P3, B4)         P5' = gp(P4', P3') + P5       P6' = gp(P7', P5')
    B4 = sum(P4, A4)       P4' = sum(B4, P3')        P7' = gp(P5', B4) + P7

P5 and P7, which no other cell reads, are added where their level is made; levels above C5 are pooled. All
this is as in the authors' code (tensorflow/tpu, nasfpn.py), where the coarser map is the gate; mmdetection's
is the finer one, and by the mean. Here the levels are P2 to P6, as an FPN's RPN has them.
"""

from collections.abc import Mapping, Sequence

from torch import nn

from fpn.errors import InputError
from fpn.models.necks.base import Neck
from fpn.models.necks.laterals import Laterals, norm
from fpn.models.necks.resizing import pooled, resized
from fpn.settings import PositiveInt
from fpn.types import Features

_CELLS = (
    ("A1", "gp", ("P3", "P1"), None),
    ("B1", "sum", ("P1", "A1"), None),
    ("Q0", "sum", ("P0", "B1"), None),
    ("Q1", "sum", ("B1", "Q0"), None),
    ("Q2", "gp", ("Q1", "Q0"), "P2"),
    ("Q4", "gp", ("Q2", "B1"), "P4"),
    ("Q3", "gp", ("Q4", "Q2"), None),
)
"""Name, operation, inputs, and what is added; a name ends in its level, counted from the finest."""


class NASFPNLayer(nn.Module):
    """The 7 merging cells once.

    Args:
        channels: d.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleDict(
            {
                name: nn.Sequential(
                    nn.ReLU(), nn.Conv2d(channels, channels, 3, padding=1, bias=False), norm(channels)
                )
                for name, *_ in _CELLS
            }
        )

    def forward(self, p: Features) -> Features:
        """From five maps, {k: P_k}, to five."""
        first = min(p)
        maps = {f"P{k - first}": x for k, x in p.items()}
        for name, operation, inputs, added in _CELLS:
            like = maps[f"P{name[-1]}"]
            size = like.shape[-2], like.shape[-1]
            x, y = (resized(maps[i], int(i[-1]), int(name[-1]), size) for i in inputs)
            joined = x + y if operation == "sum" else x + x.amax((2, 3), keepdim=True).sigmoid() * y
            maps[name] = self.convs[name](joined if added is None else joined + maps[added])
        return {k: maps[f"Q{k - first}"] for k in sorted(p)}


class NASFPN(Neck):
    """The pyramid of the published cells.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every level.
        levels: five, one after the other; those above the bottom-up's top are made by pooling.
        repeats: how often the 7 cells are passed.

    Raises:
        InputError: not five levels, levels with a gap, or finer ones than the bottom-up has.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5, 6),
        repeats: PositiveInt = 7,
    ) -> None:
        super().__init__()
        if len(set(levels)) != 5:
            raise InputError(f"neck.levels are {list(levels)}: the cells of NAS-FPN are made for five")
        self.laterals = Laterals(in_channels, channels, levels, pooled, own=False)
        self.inputs, self.levels, self.channels = self.laterals.inputs, self.laterals.levels, channels
        self.layers = nn.ModuleList(NASFPNLayer(channels) for _ in range(repeats))

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: P_k}, each (N, channels, h_k, w_k)."""
        p: Features = self.laterals(c)
        for layer in self.layers:
            p = layer(p)
        return p
