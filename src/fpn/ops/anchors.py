"""Anchors: boxes of a few scales and shapes around every position of a feature map (Sec. 4.1).

Symbols: A anchors of one position, h × w positions of a map. A ratio is height : width.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float], rounded: bool = True) -> Tensor:
    """The anchors of one position, centred on the origin; each has the area size², but for the rounding.

    Args:
        sizes: square roots of the areas, in pixels of the network's input.
        ratios: heights over widths.
        rounded: whole-pixel corners, as in torchvision; False keeps the exact shapes, as in Detectron2.

    Returns:
        (A, 4) float32, A = len(ratios) · len(sizes); the size runs fastest.
    """
    size = torch.tensor(sizes, dtype=torch.float32)
    root = torch.tensor(ratios, dtype=torch.float32).sqrt()
    w = (1 / root[:, None] * size[None, :]).flatten()
    h = (root[:, None] * size[None, :]).flatten()
    anchors = torch.stack((-w, -h, w, h), dim=1) / 2
    return anchors.round() if rounded else anchors


def grid_anchors(cell: Tensor, map_size: tuple[int, int], stride: tuple[int, int]) -> Tensor:
    """A position's anchors repeated at every position of a map; position (0, 0) is the image's corner.

    Args:
        cell: (A, 4) anchors of one position.
        map_size: (h, w) positions.
        stride: pixels from one position to the next, down and across.

    Returns:
        (h · w · A, 4) float32, row by row, the anchors of one position together.
    """
    # For an exporter a step is a symbol, which might not be positive.
    symbols = torch.compiler.is_exporting()
    y, x = (
        torch.arange(side, device=cell.device) * step
        if symbols
        else torch.arange(0, side * step, step, device=cell.device)
        for side, step in zip(map_size, stride, strict=True)
    )
    position = torch.stack(torch.broadcast_tensors(x, y[:, None]), dim=-1).view(-1, 1, 1, 2)
    # In float32 also where a whole network has been cast: bfloat16 tells apart every 32nd pixel beyond 4096.
    return (position + cell.float().view(-1, 2, 2)).view(-1, 4)
