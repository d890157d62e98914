"""How large the objects of a data set are, and the best overlap that anchors can have with them.

The anchors are those of an image alone in its batch: the grid of level k covers the image, padded
to multiples of 32 pixels, at every 2**k pixels, and anchors may cross the border (Sec. 4.1).

Symbols: I images, B boxes, L levels.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fpn.data.findings import Usable
from fpn.data.transforms import ImageSettings
from fpn.ops.anchors import cell_anchors

AREAS = (32.0**2, 96.0**2)
"""COCO's limits between small, medium and large, in square pixels."""
EDGES = tuple(2.0**k for k in range(3, 10))
"""Square roots of areas at the network's input, in pixels, between one octave and the next."""
REACHED = (0.5, 0.7)
"""IoUs at which an anchor is said to reach an object: a detection's, and the RPN's foreground's."""

SLIVER = (4.0, 20.0)
"""A sliver's short side is less than this at the network's input, in pixels, its long side so many times it.

Four pixels are the stride of P2, the finest map: what is thinner lies between two of its cells. An anchor of
1:2, 1:1 or 2:1 has an IoU of about 0.2 at most with a box of 20:1, where the RPN takes all below 0.3 for
background: its best anchor is trained on it all the same, with deltas far from any other's.
"""


@dataclass
class ObjectSizes:
    """Numbers of objects by size, and the shares of them that anchors reach: None of no objects."""

    by_area: dict[str, int]
    """Small, medium and large by `area`, as COCO scores; by width × height where there is none."""
    short_side: int
    max_side: int
    overall: dict[str, Any]
    """How many objects, and the shares of these whose best anchor reaches an IoU."""
    octaves: list[dict[str, Any]]
    """The same by octave: of √(width × height) at the network's input, from and to, in pixels."""
    levels: list[dict[str, Any]]
    """The same of one level's anchors alone: level, sizes, the share of objects they fit best."""


def object_sizes(
    usable: Usable, anchor_sizes: Mapping[int, Sequence[float]], short_side: int, max_side: int
) -> ObjectSizes:
    """Measure the objects that training learns from, in images resized as `resized_size` does."""
    image = usable.image[usable.objects]
    sizes = usable.file.sizes.clip(1)
    at_input = input_sizes(sizes, short_side, max_side)
    boxes = usable.boxes[usable.objects] * (at_input / sizes)[image][:, [1, 0, 1, 0]]
    octave = np.digitize(np.sqrt((boxes[:, 2:] - boxes[:, :2]).prod(axis=1)), EDGES)
    overlaps = best_overlaps(boxes, at_input[image], anchor_sizes)
    fittest, best = overlaps.argmax(axis=1), overlaps.max(axis=1)
    by_area = np.bincount(np.digitize(usable.file.area[usable.objects], AREAS), minlength=3).tolist()
    ends = zip((0.0, *EDGES), (*EDGES, None), strict=True)
    return ObjectSizes(
        dict(zip(("small", "medium", "large"), by_area, strict=True)),
        short_side,
        max_side,
        _reached(best),
        [{"from": low, "to": high} | _reached(best[octave == k]) for k, (low, high) in enumerate(ends)],
        [
            {"level": level, "sizes": [*anchor_sizes[level]], "fits_best": _share(fittest == column)}
            | _reached(overlaps[:, column])
            for column, level in enumerate(sorted(anchor_sizes))
        ],
    )


def slivers(usable: Usable, short_side: int, max_side: int) -> list[Any]:
    """The ids of the annotations that training learns from and whose box is a sliver."""
    sizes = usable.file.sizes.clip(1)
    scale = (input_sizes(sizes, short_side, max_side) / sizes)[usable.image[usable.objects]]
    sides = (usable.boxes[:, 2:] - usable.boxes[:, :2])[usable.objects] * scale[:, ::-1]
    short, long = sides.min(axis=1), sides.max(axis=1)
    thin, times = SLIVER
    kept: list[Any] = usable.file.ids[usable.objects][(short < thin) & (long >= times * short)].tolist()
    return kept


def input_sizes(sizes: NDArray[np.int64], short_side: int, max_side: int) -> NDArray[np.int64]:
    """`resized_size`, rounded down, of many images: (I, 2) heights and widths at the network's input."""
    scale = np.minimum(short_side / sizes.min(axis=1), max_side / sizes.max(axis=1))
    return np.floor(sizes * scale[:, None]).astype(np.int64).clip(1)


def best_overlaps(
    boxes: NDArray[np.float64],
    sizes: NDArray[np.int64],
    anchor_sizes: Mapping[int, Sequence[float]],
    ratios: Sequence[float] = (0.5, 1.0, 2.0),
) -> NDArray[np.float32]:
    """The greatest IoU that each box has with an anchor of each level.

    Args:
        boxes: (B, 4) corners in pixels of the network's input, of positive width and height.
        sizes: (B, 2) heights and widths of their images there.
        anchor_sizes: square roots of the anchors' areas, by level.
        ratios: heights over widths.

    Returns:
        (B, L), levels ascending.
    """
    padded = -(-sizes // ImageSettings.divisor) * ImageSettings.divisor
    area = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    best = np.zeros((len(boxes), len(anchor_sizes)), dtype=np.float32)
    for column, level in enumerate(sorted(anchor_sizes)):
        cells = -(-padded // 2**level)
        stride = padded // cells  # as of `rpn.grid: spread`
        for cell in cell_anchors(anchor_sizes[level], ratios).double().numpy():
            # The overlaps along x and along y do not depend on each other, and neither grows with the
            # distance of the centres: of all anchors of a shape, that of the nearest position is the best.
            overlap = np.ones(len(boxes))
            for low, high, side in ((0, 2, 1), (1, 3, 0)):
                distance = boxes[:, low] + boxes[:, high] - cell[low] - cell[high]
                step = stride[:, side]
                position = step * np.rint(distance / (2 * step)).clip(0, cells[:, side] - 1)
                start = np.maximum(boxes[:, low], cell[low] + position)
                overlap *= (np.minimum(boxes[:, high], cell[high] + position) - start).clip(0)
            union = area + (cell[2] - cell[0]) * (cell[3] - cell[1]) - overlap
            best[:, column] = np.maximum(best[:, column], overlap / union)
    return best


def _reached(best: NDArray[np.float32]) -> dict[str, Any]:
    return {"objects": len(best)} | {f"iou_{iou}": _share(best >= iou) for iou in REACHED}


def _share(kept: NDArray[np.bool_]) -> float | None:
    return float(kept.mean()) if len(kept) else None
