"""A map of one level, made of another level's."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fpn.models.necks.feature_pyramid import nearest
from fpn.types import Size


def pooled(x: Tensor, steps: int = 1) -> Tensor:
    """A map `steps` levels coarser, of the greatest values: (N, d, ⌈h / 2**steps⌉, ⌈w / 2**steps⌉)."""
    # As with ceil_mode, which torch.export refuses where sizes are not known.
    more = 2**steps - 1
    return F.max_pool2d(F.pad(x, (0, more, 0, more), value=-torch.inf), 2**steps)


def resized(x: Tensor, level: int, to: int, size: Size) -> Tensor:
    """A map of `level` at level `to`, whose maps are of `size`: repeated there, or the greatest values."""
    if level == to:
        return x
    return nearest(x, size) if level > to else pooled(x, to - level)
