"""Boxes that are written in another convention than COCO's [x, y, width, height] in pixels.

Symbols: B boxes.
"""

import numpy as np
from numpy.typing import NDArray

from fpn.data.coco_file import CocoFile

MAX_ODD = 0.2
"""The share of boxes that may be empty, lie past their image, or be smaller than a pixel.

Of 1,363 boxes of COCO that were looked at none does. Written as corners, 74 to 80 % of the same reach past
their image, as centres 28 to 30 %.
"""
FEW = 3
"""So many boxes may be odd in any file."""
_PERCENT = 100.0
_ENOUGH = 10
"""Boxes, by which all being within the first 100 pixels of larger images is no chance."""
_NEARLY_ALL = 0.95


def another_convention(file: CocoFile) -> str:
    """Why boxes are not what they are taken for, with the likely convention; empty if they are."""
    known = (file.image >= 0) & file.annotations.has("bbox")
    known &= (np.append(file.sizes, [[0, 0]], axis=0)[file.image] > 0).all(axis=1)
    places, usable = np.flatnonzero(known), file.clipped[1]
    finite = np.isfinite(file.bbox[known]).all(axis=1, keepdims=True)
    corner, size = np.split(np.where(finite, file.bbox[known], 0), 2, axis=1)
    sides = file.sizes[file.image[known]][:, ::-1]
    if not len(places):
        return ""
    odd = {
        "reach past their image": _beyond(corner + size, sides) | _beyond(-corner, 0 * sides),
        "are smaller than a pixel": (size.max(axis=1) < 1) & (size.min(axis=1) > 0),
        "are empty or lie outside their image": ~usable[known],
    }
    within = {
        "numbers from 0 to 1, relative to the image": np.maximum(corner, size).max(axis=1) <= 1,
        "corners [x1, y1, x2, y2]": (size > corner).all(axis=1) & ~_beyond(size, sides),
        "[center x, center y, width, height]": ~_beyond(corner + size / 2, sides)
        & ~_beyond(size / 2 - corner, 0 * sides)
        & (size > 0).all(axis=1),
    }
    # The convention in which nearly all boxes would lie within their images.
    likely = [f"they look like {name}" for name, fits in within.items() if fits.mean() >= _NEARLY_ALL]
    likely.append("they may be of images of another size")
    for what, which in odd.items():
        if which.sum() > FEW - 1 and which.mean() > MAX_ODD:
            ids = file.ids[places[which]].tolist()
            shown = ", ".join(map(str, ids[:5])) + ", …" * (len(ids) > 5)
            return f"{which.sum()} of {len(places)} boxes {what} (annotations {shown}); {likely[0]}"
    large = (sides > 2 * _PERCENT).all(axis=1)
    if large.sum() >= _ENOUGH and ((corner + size)[large] <= _PERCENT + 0.01).all():
        return (
            f"all {large.sum()} boxes of larger images lie in their first {_PERCENT:g} × {_PERCENT:g} pixels;"
            " they look like percent of the image's sides"
        )
    return ""


def _beyond(ends: NDArray[np.float64], limits: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(B,) whether a box ends more than a pixel, which may be due to rounding, past a limit."""
    past: NDArray[np.bool_] = (ends > limits + 1).max(axis=1)
    return past
