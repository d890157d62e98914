"""Which ground-truth box an anchor or RoI belongs to, by intersection over union (Sec. 4.1).

Symbols: G ground-truth boxes, A candidates (anchors or RoIs); before them, the dimension of a batch, or none.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from fpn.ops.boxes import box_iou

BACKGROUND = -1
IGNORED = -2
PAIRS_AT_ONCE = 2**22
"""Pairs of a box and a candidate whose overlap is reckoned with at once, about 100 MB; on an accelerator,
where a launch costs more than memory, eight times as many."""


def blocks(boxes: Tensor, candidates: int) -> Iterator[slice]:
    """Parts of boxes (..., G, 4) whose pairs with so many candidates are reckoned with at once.

    So hundreds of objects among 200,000 anchors take no more memory than a few.
    """
    pairs = PAIRS_AT_ONCE if boxes.device.type == "cpu" else 8 * PAIRS_AT_ONCE
    size = max(1, pairs // max(1, candidates))
    for start in range(0, boxes.shape[-2], size):
        yield slice(start, start + size)


def match_boxes(
    ground_truth: Tensor,
    candidates: Tensor,
    foreground_iou: float,
    background_iou: float,
    rescue: bool,
    there: Tensor | None = None,
    eligible: Tensor | None = None,
) -> Tensor:
    """The ground truth each candidate stands for.

    Args:
        ground_truth: (..., G, 4).
        candidates: (..., A, 4). Two boxes without area do not overlap.
        foreground_iou: a candidate with at least this overlap belongs to the box it overlaps most.
        background_iou: one with less overlap than this with every box is background; in between, ignored.
        rescue: candidates that overlap some ground truth more than all others do (ties included) are
            foreground however small that overlap, so that no object goes without. Such a candidate belongs to
            the box it overlaps most itself, which need not be the one that rescued it.
        there: (..., G) which of the boxes are objects; None for all.
        eligible: (..., A) which of the candidates take part; the others are ignored. None for all.

    Returns:
        (..., A) int64: an index into the ground truth, BACKGROUND or IGNORED.
    """
    batch = torch.broadcast_shapes(ground_truth.shape[:-2], candidates.shape[:-2])
    number = candidates.shape[-2]
    best_iou = torch.full((*batch, number), -1.0, device=candidates.device)
    best = torch.zeros_like(best_iou, dtype=torch.int64)
    rescued = torch.zeros_like(best, dtype=torch.bool)
    for part in blocks(ground_truth, best.numel()):
        iou = box_iou(ground_truth[..., part, :], candidates).nan_to_num_(nan=0.0)
        if there is not None:
            iou.masked_fill_(~there[..., part, None], -1)
        if eligible is not None:
            iou.masked_fill_(~eligible[..., None, :], -1)
        block_iou, block_best = iou.max(dim=-2)
        best = torch.where(block_iou > best_iou, block_best + part.start, best)
        best_iou = torch.maximum(block_iou, best_iou)
        if rescue and number:
            most = iou.amax(dim=-1, keepdim=True)
            # A box that nothing touches has a best overlap of 0, which every distant candidate would share.
            rescued |= ((iou == most) & (most > 0)).any(dim=-2)
    match = best.masked_fill(best_iou < foreground_iou, IGNORED)
    match = torch.where(rescued, best, match.masked_fill(best_iou < background_iou, BACKGROUND))
    return match if eligible is None else match.masked_fill(~eligible, IGNORED)
