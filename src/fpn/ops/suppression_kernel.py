"""Greedy non-maximum suppression on an NVIDIA GPU: a program for each group, and no wait of the host.

It needs Triton, so `fpn.ops.suppression` imports it only where it is used.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _greedy(boxes, numbers, keep, iou, each, width: tl.constexpr):  # type: ignore[no-untyped-def]
    """One group, whose boxes lie best first: each that is still alive ends those it overlaps too much."""
    group = tl.program_id(0).to(tl.int64)
    number = tl.load(numbers + group)
    place = tl.arange(0, width)
    alive = (place < number).to(tl.int32)
    first = boxes + group * each * 4
    x1 = tl.load(first + place * 4, mask=place < number, other=0.0)
    y1 = tl.load(first + place * 4 + 1, mask=place < number, other=0.0)
    x2 = tl.load(first + place * 4 + 2, mask=place < number, other=0.0)
    y2 = tl.load(first + place * 4 + 3, mask=place < number, other=0.0)
    area = (x2 - x1) * (y2 - y1)
    for i in range(number):
        if tl.sum(tl.where(place == i, alive, 0)) > 0:
            left, top = tl.load(first + i * 4), tl.load(first + i * 4 + 1)
            right, bottom = tl.load(first + i * 4 + 2), tl.load(first + i * 4 + 3)
            overlap = tl.maximum(tl.minimum(x2, right) - tl.maximum(x1, left), 0.0)
            overlap *= tl.maximum(tl.minimum(y2, bottom) - tl.maximum(y1, top), 0.0)
            union = area + (right - left) * (bottom - top) - overlap
            alive = tl.where((place > i) & (overlap / union > iou), 0, alive)
    tl.store(keep + group * each + place, alive, mask=place < each)


def greedy(boxes: Tensor, scores: Tensor, iou: float) -> Tensor:
    """As `fpn.ops.suppression.suppress`."""
    each = scores.shape[1]
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    boxes = boxes.gather(1, order[..., None].expand(-1, -1, 4)).contiguous()
    numbers = (ordered > -torch.inf).sum(dim=1, dtype=torch.int32)
    keep = torch.empty(scores.shape, dtype=torch.int32, device=scores.device)
    width = triton.next_power_of_2(each)
    with torch.cuda.device_of(boxes):  # Triton launches on the current device
        _greedy[(len(scores),)](boxes, numbers, keep, iou, each, width=width, num_warps=width // 256 or 1)
    return torch.zeros_like(keep, dtype=torch.bool).scatter(1, order, keep > 0)
