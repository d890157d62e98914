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

from fpn.ops.boxes import box_iou

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


@torch.library.custom_op("fpn::soft_suppress", mutates_args=())
def soft_suppress(
    boxes: Tensor, scores: Tensor, number: int, iou: float, sigma: float | None
) -> tuple[Tensor, Tensor]:
    """Soft-NMS (Bodla et al., 2017) of all groups of an image at once, as far as its best boxes.

    A box that is picked lowers the scores of its own group alone. So the best that are left in an image,
    picked one after another, are the best of what group after group would give.

    Args:
        boxes: (N, groups, n, 4) float32.
        scores: (N, groups, n) float32; 0 where there is no box.
        number: how many to pick in each image.
        iou: of the linear decay: only larger overlaps count, each with 1 - IoU …
        sigma: … or of the gaussian, exp(-IoU² / sigma); None for the linear.

    Returns:
        (N, number) indices among an image's groups · n boxes, best first, and (N, number) their lowered
        scores; a score is 0 where no box is left.
    """
    images, groups, each = scores.shape
    left = scores.clone()
    index = scores.new_zeros(images, number, dtype=torch.int64)
    best = scores.new_zeros(images, number)
    image = torch.arange(images, device=scores.device)
    for i in range(min(number, groups * each)):
        best[:, i], picked = left.flatten(1).max(dim=1)
        index[:, i] = picked
        group = picked // each
        place = picked - group * each
        others = boxes[image, group]
        overlap = box_iou(others[image, place, None], others).squeeze(1).nan_to_num(nan=0.0)
        kept = (1 - overlap).where(overlap > iou, 1) if sigma is None else (-(overlap**2) / sigma).exp()
        left[image, group] *= kept
        left[image, group, place] = 0
    return index, best


@soft_suppress.register_fake
def _(boxes: Tensor, scores: Tensor, number: int, iou: float, sigma: float | None) -> tuple[Tensor, Tensor]:
    best = scores.new_empty(scores.shape[0], number)
    return torch.empty_like(best, dtype=torch.int64), best
