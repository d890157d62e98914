"""RoIAlign (He et al., 2017, Sec. 3), whose quick form on a CPU is another than torchvision's.

Symbols: N images, C channels, H × W cells of a map, R RoIs, o cells along a side of a pooled RoI, s samples
along a side of such a cell.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torchvision
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F


def pool_levels(
    maps: Sequence[Tensor],
    rois: Tensor,
    numbers: Sequence[int],
    resolution: int,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """torchvision's RoIAlign of each level's RoIs, by the quickest way there is on the maps' device.

    Args:
        maps: of each level (N, C, H, W) float32.
        rois: (R, 5) index of the image, x1, y1, x2, y2 in pixels of the network's input; level after level.
        numbers: of each level, how many RoIs there are.
        resolution: o.
        scales: of each level, cells of its map to a pixel.
        sampling_ratio: s; 0 takes as many samples as the cell has pixels.
        aligned: shift by half a cell of the map.

    Returns:
        (R, C, o, o).
    """
    if rois.device.type == "cpu" and sampling_ratio > 0 and not torch.compiler.is_exporting():
        return gather_roi_align(maps, rois, numbers, resolution, scales, sampling_ratio, aligned)
    settings = (sampling_ratio, aligned)
    parts = zip(maps, rois.split(list(numbers)), scales, strict=True)
    return torch.cat(
        [torchvision.ops.roi_align(p, some, resolution, scale, *settings) for p, some, scale in parts]
    )


def gather_roi_align(
    maps: Sequence[Tensor],
    rois: Tensor,
    numbers: Sequence[int],
    resolution: int,
    scales: Sequence[float],
    sampling_ratio: int,
    aligned: bool,
) -> Tensor:
    """RoIAlign as a weighted sum of rows of the map, all channels at once.

    A pooled cell is the mean of s² samples, each of which is interpolated between 4 cells of the map: a sum
    of 4 s² rows of the map as a table (N · H · W, C). Arguments and result as of `pool_levels`, s at least 1.
    """
    counts = torch.tensor(numbers, device=rois.device)
    scale, h, w = (
        torch.tensor(values, device=rois.device).repeat_interleave(counts, output_size=len(rois))
        for values in (scales, [p.shape[2] for p in maps], [p.shape[3] for p in maps])
    )
    image, boxes = rois[:, 0].long(), rois[:, 1:] * scale[:, None]
    # Both sides in one go.
    start, end = boxes.t().reshape(2, -1)
    cells, weights = _taps(start, end, torch.cat((w, h)), resolution, sampling_ratio, aligned)
    (x, y), (x_weight, y_weight) = cells.chunk(2), weights.chunk(2)
    y = (y + (image * h)[:, None, None]) * w[:, None, None]
    taps = 4 * sampling_ratio**2
    row = (y[:, :, None, :, None] + x[:, None, :, None, :]).view(-1, taps)
    weight = (y_weight[:, :, None, :, None] * x_weight[:, None, :, None, :]).view(-1, taps)
    bags = [number * resolution**2 for number in numbers]
    pooled = [
        F.embedding_bag(rows, _Table.apply(p), per_sample_weights=shares, mode="sum")
        for p, rows, shares in zip(maps, row.split(bags), weight.split(bags), strict=True)
    ]
    return torch.cat(pooled).unflatten(0, (len(rois), resolution, resolution)).permute(0, 3, 1, 2)


class _Table(torch.autograd.Function):
    """A map (N, C, H, W) as a table (N · H · W, C)."""

    @staticmethod
    def forward(ctx: Any, p: Tensor) -> Tensor:
        ctx.shape = p.shape
        return p.permute(0, 2, 3, 1).reshape(-1, p.shape[1]).contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        n, c, h, w = ctx.shape
        there, rows = gradient.new_empty(n, c, h * w), gradient.view(n, h * w, c)
        # Turned over some cells at a time, which fit in the cache: five times sooner than at once.
        for part, some in zip(there.split(256, dim=2), rows.split(256, dim=1), strict=True):
            part.copy_(some.transpose(1, 2))
        return there.view(n, c, h, w)


def _taps(
    start: Tensor, end: Tensor, cells: Tensor, resolution: int, samples: int, aligned: bool
) -> tuple[Tensor, Tensor]:
    """Along one side: the cells of the map (R, o, 2 s) that each pooled cell is made of, and their weights.

    A sample more than a cell outside of the map counts as 0, one less far takes the value at the border.
    """
    start, extent = (start - 0.5, end - start) if aligned else (start, (end - start).clamp(min=1))
    step = extent / (resolution * samples)
    places = torch.arange(resolution * samples, device=start.device) + 0.5
    at = (start[:, None] + places * step[:, None]).unflatten(1, (resolution, samples))
    last = (cells - 1)[:, None, None]
    inside = (at >= -1) & (at <= last + 1)
    at = at.clamp(min=0).minimum(last)
    low = at.floor()
    share = at - low
    weight = torch.stack((1 - share, share), dim=-1) * (inside / samples)[..., None]
    lower = low.long()
    return torch.stack((lower, (lower + 1).minimum(last)), dim=-1).flatten(2), weight.flatten(2)
