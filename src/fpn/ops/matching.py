"""Which ground-truth box an anchor or RoI belongs to, by intersection over union (Sec. 4.1).

Symbols: G ground-truth boxes, A candidates (anchors or RoIs).
"""

import torch
from torch import Tensor
from torchvision.ops import box_iou

BACKGROUND = -1
IGNORED = -2
PAIRS_AT_ONCE = 2**22
"""Pairs of a box and a candidate whose overlap is reckoned with at once, about 100 MB."""


def match_boxes(
    ground_truth: Tensor, candidates: Tensor, foreground_iou: float, background_iou: float, rescue: bool
) -> Tensor:
    """The ground truth each candidate stands for.

    Args:
        ground_truth: (G, 4).
        candidates: (A, 4). Two boxes without area do not overlap.
        foreground_iou: a candidate with at least this overlap belongs to the box it overlaps most.
        background_iou: one with less overlap than this with every box is background; in between, ignored.
        rescue: candidates that overlap some ground truth more than all others do (ties included) are
            foreground however small that overlap, so that no object goes without. Such a candidate belongs to
            the box it overlaps most itself, which need not be the one that rescued it.

    Returns:
        (A,) int64: an index into the ground truth, BACKGROUND or IGNORED.
    """
    if not len(ground_truth):
        return torch.full((len(candidates),), BACKGROUND, device=candidates.device)
    ground_truth, candidates = ground_truth.float(), candidates.float()
    best_iou = candidates.new_full((len(candidates),), -1)
    best = torch.zeros_like(best_iou, dtype=torch.int64)
    rescued = torch.zeros_like(best, dtype=torch.bool)
    # In blocks, so that hundreds of objects among 200,000 anchors take no more memory than a few.
    block = max(1, PAIRS_AT_ONCE // max(1, len(candidates)))
    for start in range(0, len(ground_truth), block):
        iou = box_iou(ground_truth[start : start + block], candidates).nan_to_num_(nan=0.0)
        block_iou, block_best = iou.max(dim=0)
        best = torch.where(block_iou > best_iou, block_best + start, best)
        best_iou = torch.maximum(block_iou, best_iou)
        if rescue and len(candidates):
            most = iou.amax(dim=1, keepdim=True)
            # A box that nothing touches has a best overlap of 0, which every distant candidate would share.
            rescued |= ((iou == most) & (most > 0)).any(dim=0)
    match = best.masked_fill(best_iou < foreground_iou, IGNORED).masked_fill(
        best_iou < background_iou, BACKGROUND
    )
    return torch.where(rescued, best, match)
