"""Random choice of foreground and background (Fast R-CNN, Sec. 2.3; Faster R-CNN, Sec. 3.1.3)."""

import torch
from torch import Tensor


def sample_balanced(
    labels: Tensor, number: int, fg_fraction: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Choose up to `number` candidates of an image, at most a share of them foreground.

    Where foreground is short, background takes its place.

    Args:
        labels: (A,) positive for foreground, 0 for background, negative for neither.
        number: how many to choose.
        fg_fraction: the largest share of foreground.
        generator: source of randomness, on the labels' device; PyTorch's own if None.

    Returns:
        Indices of the chosen foreground and of the chosen background, each in ascending order.
    """
    foreground = torch.where(labels > 0)[0]
    background = torch.where(labels == 0)[0]
    foreground = _choose(foreground, int(number * fg_fraction), generator)
    background = _choose(background, number - len(foreground), generator)
    return foreground, background


def _choose(indices: Tensor, number: int, generator: torch.Generator | None) -> Tensor:
    order = torch.randperm(len(indices), device=indices.device, generator=generator)
    return indices[order[:number]].sort().values
