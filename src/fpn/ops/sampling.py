"""Random choice of foreground and background (Fast R-CNN, Sec. 2.3; Faster R-CNN, Sec. 3.1.3).

Symbols: N images, A candidates of each, S places for those that are chosen.
"""

import torch
from torch import Tensor


def sample_balanced(
    labels: Tensor, number: int, fg_fraction: float, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """Choose up to `number` candidates of each image, at most a share of them foreground.

    Where foreground is short, background takes its place. Every candidate draws a random key, and the
    smallest keys of each kind are chosen: no step depends on how many there are, so the host never waits.

    Args:
        labels: (N, A) positive for foreground, 0 for background, negative for neither.
        number: how many to choose.
        fg_fraction: the largest share of foreground.
        generator: source of randomness, on the labels' device; PyTorch's own if None.

    Returns:
        (N, S) indices of the chosen, in ascending order, and (N, S) which of these places are taken, the
        first ones. S is `number`, or A where that is less.
    """
    candidates = labels.shape[1]
    keys = torch.rand(labels.shape, device=labels.device, generator=generator)
    foreground, taken = _smallest(keys, labels > 0, int(number * fg_fraction))
    background, free = _smallest(keys, labels == 0, number)
    room = number - taken.sum(dim=1, keepdim=True)
    free &= torch.arange(free.shape[1], device=free.device) < room
    nobody = ~torch.cat((taken, free), dim=1)
    index = torch.cat((foreground, background), dim=1).masked_fill(nobody, candidates).sort(dim=1).values
    index = index[:, : min(number, candidates)]
    return index.clamp(max=candidates - 1), index < candidates


def _smallest(keys: Tensor, eligible: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """Where the eligible candidates with the smallest keys are, and which of these places are taken."""
    drawn, index = keys.masked_fill(~eligible, 2).topk(min(number, keys.shape[1]), dim=1, largest=False)
    return index, drawn < 2
