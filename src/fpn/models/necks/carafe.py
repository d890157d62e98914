"""FPN whose upsampling looks at the content.

CARAFE (Wang et al., 2019, arXiv:1905.02188), Sec. 3, Fig. 2 and 3. Each cell of the map twice as
large is a weighted mean of the k × k cells around the one it lies in:

    W = softmax(shuffle(encode(compress(X))))    k² weights for each of the 2h × 2w new cells    (Eq. 1)
    X'(i, j) = Σ_{n, m} W(i, j)[n, m] · X(⌊i / 2⌋ + n, ⌊j / 2⌋ + m)                              (Eq. 2 to 4)

`compress` is a 1×1 to 64 channels and `encode` a 3×3; beyond a map's border are zeros. k is 5.
"""

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpn.errors import InputError
from fpn.models.necks.feature_pyramid import FeaturePyramid
from fpn.settings import PositiveInt
from fpn.types import Features, Size


class Carafe(nn.Module):
    """A map enlarged to twice its size.

    Args:
        channels: of the map.
        compressed: channels from which the weights are predicted.
        encoder: side of the encoder's kernel, odd.
        reassembly: k, side of the neighbourhood that is averaged, odd.
    """

    def __init__(self, channels: int, compressed: int, encoder: int, reassembly: int) -> None:
        super().__init__()
        self.side = reassembly
        self.compress = nn.Conv2d(channels, compressed, 1)
        self.encode = nn.Conv2d(compressed, 4 * reassembly**2, encoder, padding=encoder // 2)
        nn.init.xavier_uniform_(self.compress.weight)
        nn.init.normal_(self.encode.weight, std=0.001)  # the mean of all k² at first
        for conv in (self.compress, self.encode):
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor, size: Size) -> Tensor:
        """From (N, d, h, w) to the first `size` cells of (N, d, 2h, 2w).

        Raises:
            InputError: the finer map is not of twice as many cells.
        """
        weights = F.pixel_shuffle(self.encode(self.compress(x)), 2).softmax(1)
        if not torch.compiler.is_exporting() and any(
            not 2 * old - 2 <= new <= 2 * old for old, new in zip(x.shape[-2:], size, strict=True)
        ):
            raise InputError(f"CARAFE enlarges twofold: {tuple(x.shape[-2:])} cells do not become {size}")
        # The four new cells of an old one see the same k × k: no map of these is made twice as large.
        weights = F.pixel_unshuffle(weights, 2).unflatten(1, (self.side**2, 4))
        around = F.pad(x, [self.side // 2] * 4).unfold(2, self.side, 1).unfold(3, self.side, 1)
        new = torch.einsum("nchwk,nkqhw->ncqhw", around.flatten(4), weights)
        return F.pixel_shuffle(new.flatten(1, 2), 2)[..., : size[0], : size[1]]


class CarafePyramid(FeaturePyramid):
    """FPN with CARAFE in place of repeated cells.

    Args:
        in_channels: channels of each C level.
        channels: d, the channels of every level of the output.
        levels: the levels to give.
        compressed: channels from which the weights are predicted.
        encoder: side of the encoder's kernel, odd.
        reassembly: side of the neighbourhood that is averaged, odd.

    Raises:
        InputError: an even side, a bottom-up with a gap, or levels that it lacks.
    """

    def __init__(
        self,
        in_channels: Mapping[int, int],
        channels: PositiveInt = 256,
        levels: Sequence[int] = (2, 3, 4, 5),
        compressed: PositiveInt = 64,
        encoder: PositiveInt = 3,
        reassembly: PositiveInt = 5,
    ) -> None:
        super().__init__(in_channels, channels, levels)
        if not encoder % 2 or not reassembly % 2:
            raise InputError(f"neck.encoder {encoder} and neck.reassembly {reassembly} must be odd")
        if self.path != list(range(self.path[0], self.path[-1] - 1, -1)):
            raise InputError(
                f"the bottom-up's levels {sorted(self.path)} have a gap: CARAFE enlarges twofold"
            )
        self.upsamplers = nn.ModuleDict(
            {str(k): Carafe(channels, compressed, encoder, reassembly) for k in self.path[:-1]}
        )

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {k: P_k}, each (N, channels, h_k, w_k)."""
        # The pathway goes down level by level, as these were made.
        upsamplers = iter(self.upsamplers.values())
        return self.smooth(self.merge(c, lambda x, size: next(upsamplers)(x, size)))
