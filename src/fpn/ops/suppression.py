"""Greedy non-maximum suppression of many groups at once, as one operator of PyTorch's.

Its result has the shape of its arguments, so that nobody waits to learn how much is left, and an exporter
finds one node (`fpn::suppress`) in place of a loop. On an NVIDIA GPU a kernel in Triton goes through all
groups side by side; elsewhere torchvision's suppression takes them one after the other.
"""

import warnings
from functools import cache

import torch
from torch import Tensor
from torchvision.ops import nms

_WIDEST = 4096
"""The largest group of boxes that the kernel holds in registers."""


@cache
def _kernel_works() -> bool:
    """Whether Triton is there and can build the kernel, for which it needs a C compiler."""
    try:
        from fpn.ops.suppression_kernel import greedy

        greedy(torch.zeros(1, 1, 4, device="cuda"), torch.zeros(1, 1, device="cuda"), 0.5)
    except Exception as error:  # of many kinds, by Triton, the compiler or the GPU
        reason = str(error).partition("\n")[0]
        warnings.warn(
            f"suppression on this GPU waits for each group: no kernel by Triton ({reason})", stacklevel=2
        )
        return False
    return True


@torch.library.custom_op("fpn::suppress", mutates_args=())
def suppress(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """Which boxes no better one of their group overlaps too much.

    Args:
        boxes: (groups, n, 4) float32.
        scores: (groups, n) float32; -inf where there is no box.
        iou: of two boxes with a larger overlap, the worse goes.

    Returns:
        (groups, n) bool; False where there is no box.
    """
    if boxes.device.type == "cuda" and scores.numel() and scores.shape[1] <= _WIDEST and _kernel_works():
        from fpn.ops.suppression_kernel import greedy

        return greedy(boxes, scores, iou)
    there = scores > -torch.inf
    keep = torch.zeros_like(there)
    group, place = there.nonzero(as_tuple=True)
    numbers = there.sum(dim=1).tolist()
    flat_boxes, flat_scores = boxes[group, place], scores[group, place]
    kept, start = [], 0
    for number in numbers:
        if number:
            rows = slice(start, start + number)
            kept.append(nms(flat_boxes[rows], flat_scores[rows], iou) + start)
            start += number
    if kept:
        rest = torch.cat(kept)
        keep[group[rest], place[rest]] = True
    return keep


@suppress.register_fake
def _(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)
