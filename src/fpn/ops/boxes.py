"""Boxes and the deltas that move one onto another (Faster R-CNN, eq. 2).

All of it runs in float32, whatever the precision of the network.

Symbols: R boxes, G and A of two kinds; a box is (x1, y1, x2, y2) in pixels, a width is x2 - x1. Deltas are
(dx, dy, dw, dh).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

MAX_LOG_SCALE = math.log(1000.0 / 16)
"""dw and dh are cut here before the exponential: no box grows by more than 62.5 in one step."""


def encode_boxes(boxes: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """The deltas that turn references into boxes, times the weights.

    Args:
        boxes: (R, 4) targets.
        references: (R, 4) anchors or RoIs, of positive width and height.
        weights: four factors for dx, dy, dw, dh.

    Returns:
        (R, 4) float32 deltas.
    """
    x, y, w, h = _center_size(references.float())
    target_x, target_y, target_w, target_h = _center_size(boxes.float())
    wx, wy, ww, wh = weights
    deltas = (
        wx * (target_x - x) / w,
        wy * (target_y - y) / h,
        ww * torch.log(target_w / w),
        wh * torch.log(target_h / h),
    )
    return torch.stack(deltas, dim=-1)


def decode_boxes(deltas: Tensor, references: Tensor, weights: Sequence[float]) -> Tensor:
    """The boxes that deltas make of references: the inverse of `encode_boxes`.

    Args:
        deltas: (..., 4).
        references: (..., 4), of a shape that broadcasts with the deltas'.
        weights: the factors the deltas were encoded with.

    Returns:
        (..., 4) float32 boxes.
    """
    x, y, w, h = _center_size(references.float())
    dx, dy, dw, dh = deltas.float().unbind(-1)
    wx, wy, ww, wh = weights
    center_x = dx / wx * w + x
    center_y = dy / wy * h + y
    half_w = 0.5 * (torch.exp((dw / ww).clamp(max=MAX_LOG_SCALE)) * w)
    half_h = 0.5 * (torch.exp((dh / wh).clamp(max=MAX_LOG_SCALE)) * h)
    return torch.stack((center_x - half_w, center_y - half_h, center_x + half_w, center_y + half_h), dim=-1)


def rescale_boxes(boxes: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Boxes (R, 4) of an image of size `old` (height, width), in pixels of the same image at size `new`."""
    boxes = boxes.float()
    y, x = new[0] / old[0], new[1] / old[1]
    return boxes * boxes.new_tensor((x, y, x, y))


def clip_boxes(boxes: Tensor, sizes: Tensor) -> Tensor:
    """Boxes (N, ..., 4) with their corners inside of images whose sizes (N, 2) are heights and widths."""
    limits = sizes.flip(1).repeat(1, 2).view(len(sizes), *[1] * (boxes.dim() - 2), 4)
    return torch.minimum(boxes.clamp(min=0), limits)


def box_iou(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union of every box of one set with every box of another.

    Args:
        boxes: (..., G, 4).
        others: (..., A, 4), of dimensions before that broadcast.

    Returns:
        (..., G, A) float32; NaN for two boxes without area.
    """
    x1, y1, x2, y2 = boxes.float().movedim(-1, 0).unsqueeze(-1).contiguous()
    left, top, right, bottom = others.float().movedim(-1, 0).unsqueeze(-2).contiguous()
    overlap = (torch.minimum(x2, right) - torch.maximum(x1, left)).clamp_(min=0)
    overlap *= (torch.minimum(y2, bottom) - torch.maximum(y1, top)).clamp_(min=0)
    union = (x2 - x1) * (y2 - y1) + (right - left) * (bottom - top)
    return overlap.div_(union.sub_(overlap))


def intersection_over_own_area(boxes: Tensor, regions: Tensor) -> Tensor:
    """The share of each box's own area that lies in each region.

    Args:
        boxes: (..., R, 4).
        regions: (..., C, 4), of dimensions before that broadcast.

    Returns:
        (..., R, C) float32 in [0, 1]; 0 for a box without area, NaN for a region of NaNs.
    """
    # In float32: areas beyond 256 × 256 pixels do not fit in float16.
    boxes, regions = boxes.float().unsqueeze(-2), regions.float().unsqueeze(-3)
    top_left = torch.maximum(boxes[..., :2], regions[..., :2])
    bottom_right = torch.minimum(boxes[..., 2:], regions[..., 2:])
    overlap = (bottom_right - top_left).clamp(min=0).prod(dim=-1)
    area = (boxes[..., 2:] - boxes[..., :2]).prod(dim=-1)
    return torch.where(area > 0, overlap / area, 0.0)


def _center_size(boxes: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x1, y1, x2, y2 = boxes.unbind(-1)
    w, h = x2 - x1, y2 - y1
    return x1 + 0.5 * w, y1 + 0.5 * h, w, h
