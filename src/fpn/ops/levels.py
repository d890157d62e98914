"""Eq. 1: which level of the pyramid an RoI is read from."""

import torch
from torch import Tensor


def assign_levels(
    boxes: Tensor,
    lowest: int,
    highest: int,
    canonical_size: float = 224.0,
    canonical_level: int = 4,
    epsilon: float = 1e-6,
) -> Tensor:
    """k = floor(k0 + log2(sqrt(w · h) / 224)), Eq. 1, held between the levels there are.

    Args:
        boxes: (..., 4) in pixels of the network's input; of any precision, reckoned with in float32.
        lowest: the finest level there is.
        highest: the coarsest level there is.
        canonical_size: pixels; the size of ImageNet pre-training, 224.
        canonical_level: k0, the level of an RoI of the canonical size.
        epsilon: added before the floor, so that an RoI of exactly 112, 224 or 448 pixels is not moved
            a level down by rounding (torchvision; Detectron2 adds 1e-8 inside the logarithm, which in
            float32 is 0 for all sizes that matter).

    Returns:
        (...) int64 levels; the finest of a box that has no size, as one of negative area.
    """
    boxes = boxes.float()
    size = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1).sqrt()
    level = torch.floor(canonical_level + torch.log2(size / canonical_size) + epsilon)
    return level.clamp(lowest, highest).nan_to_num(nan=lowest).long()
