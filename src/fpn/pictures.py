"""Boxes drawn into images: readable on any image, in grey and by the colour-blind; labels hide little."""

import math
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from matplotlib import font_manager
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn import functional as F

from fpn.palette import LINES, YELLOW
from fpn.types import Categories, Detections, Size

Colour = tuple[int, int, int]
Rectangle = tuple[int, int, int, int]
"""(x1, y1, x2, y2): whole pixels from x1 to x2 - 1 and from y1 to y2 - 1."""

_COLOURS = (*LINES, YELLOW)
_SHADES = ((0, 0.0), (0, 0.4), (255, 0.5))
"""What the first, second and third round of the colours is mixed with, and how much of it."""
_BLACK, _WHITE = (0, 0, 0), (255, 255, 255)
_ABOVE, _BELOW, _INSIDE, _SHIFT = 0.0, 0.1, 0.2, 0.1
"""What a label's place costs, beside the shares of boxes that it covers; a shift all along its box."""
_BEARABLE = 0.5
"""What it may cost before a shorter label is tried."""
_TAKEN = 1e5
"""What a pixel of another label costs: more than all boxes together."""


class _Mark(NamedTuple):
    """What is drawn of an object."""

    box: Rectangle
    """That the line takes up."""
    colour: Colour
    texts: list[str]
    """That its label may have, the longest first."""
    is_true: bool


class _Row(NamedTuple):
    """Where in y a label may lie."""

    top: int
    cost: float
    """Of lying there."""
    before: NDArray[np.float64]
    """What is covered at each x costs, all that lies left of it."""


def draw(image: Tensor, found: Detections, categories: Categories, score_threshold: float = 0.0) -> Tensor:
    """An image with boxes, names and scores, which are in percent.

    Lines have a casing, black or white, that stands out from them, so that one of both is seen on any image.
    Those of true boxes are dashed. A class has the same colour in every image; the 22nd has the first one's.

    Args:
        image: (3, H, W) uint8.
        found: boxes in this image's pixels, best first; those with NaN scores are true ones, see `truth`.
        categories: names of the labels.
        score_threshold: boxes with a lower score are left out.

    Returns:
        (3, H, W) uint8; the line width and the letters grow with the image.
    """
    height, width = image.shape[1:]
    line = math.ceil(min(height, width) / 300)
    casing = max(1, line // 2)
    font = _font(max(10, round(min(height, width) / 40)))
    keep = ~(found.scores < score_threshold)
    marks = []
    for box, score, label in zip(*(part[keep].tolist() for part in found), strict=True):
        outline = _outline(box, line / 2 + casing, (height, width))
        texts = _texts(categories.names[label - 1], score)
        marks.append(_Mark(outline, _colour(label), texts, math.isnan(score)))
    drawn = image.to("cpu", copy=True)
    canvas = drawn.numpy()
    for box, colour, _, is_true in reversed(marks):  # so that the best lie on top
        _frame(canvas, box, line + 2 * casing, _contrast(colour))
        x1, y1, x2, y2 = box
        inner = (x1 + casing, y1 + casing, x2 - casing, y2 - casing)
        _frame(canvas, inner, line, colour, dash=4 * line if is_true else 0)
    margin = line + 1
    widths = [[2 * margin + math.ceil(font.getlength(text)) for text in mark.texts] for mark in marks]
    places = place_labels([mark.box for mark in marks], widths, sum(font.getmetrics()), (height, width))
    for mark, of_mark, place in zip(marks, widths, places, strict=True):
        if place is None:
            continue
        x1, y1, x2, y2 = place
        colours = (mark.colour, _contrast(mark.colour))
        paper, ink = colours[::-1] if mark.is_true else colours
        plate = Image.new("RGB", (x2 - x1, y2 - y1), paper)
        text = mark.texts[of_mark.index(x2 - x1)]
        ImageDraw.Draw(plate).text((margin, 0), text, ink, font)
        canvas[:, y1:y2, x1:x2] = np.asarray(plate).transpose(2, 0, 1)
    return drawn


def place_labels(
    boxes: Sequence[Rectangle], widths: Sequence[Sequence[int]], height: int, size: Size
) -> list[Rectangle | None]:
    """Where the labels of boxes go: within the image, none over another, hiding as little as they can.

    A label lies above its box, or below, or inside at an edge, shifted along it where that hides less: it
    costs the shares that it covers of each box, so that small boxes are spared, and a little for a place that
    comes later. The first boxes choose first.

    Args:
        boxes: D of them, within the image.
        widths: of each label; of one that may be shortened, all that it may have, the longest first.
        height: of all labels.
        size: of the image.

    Returns:
        D rectangles, each of one of its widths; None where no place is free.
    """
    others = np.array(boxes, dtype=np.int64).reshape(-1, 4)
    sides = others[:, 2:] - others[:, :2]
    weights = 1 / np.maximum(1, sides.prod(axis=1))
    places: list[Rectangle | None] = []
    for box, of_label in zip(boxes, widths, strict=True):
        rows = _rows(box, height, size, others, weights)
        options = []
        for width in of_label:
            option = _best_place(box, width, height, rows, size[1])
            options += [option] if option else []
            if option and option[0] <= _BEARABLE:
                break
        place = min(options)[1] if options else None
        places.append(place)
        if place:
            others, weights = np.vstack([others, place]), np.append(weights, _TAKEN)
    return places


def truth(boxes: Tensor, labels: Tensor) -> Detections:
    """True boxes (G, 4) and labels (G,) in the form that `draw` takes."""
    return Detections(boxes, torch.full((len(boxes),), torch.nan), labels)


def beside(left: Tensor, right: Tensor, gap: int = 4) -> Tensor:
    """Two pictures (3, H, W) of one size side by side, so many white pixels between them."""
    return torch.cat((F.pad(left, (0, gap), value=255), right), dim=2)


def _rows(
    box: Rectangle, height: int, size: Size, others: NDArray[np.int64], weights: NDArray[np.float64]
) -> list[_Row]:
    """Where in y a label may lie; `weights` are what a pixel of each of others costs."""
    _, y1, _, y2 = box
    rows = []
    for top, cost in ((y1 - height, _ABOVE), (y2, _BELOW), (y1, _INSIDE), (y2 - height, _INSIDE)):
        if 0 <= top <= size[0] - height:
            common = np.minimum(top + height, others[:, 3]) - np.maximum(top, others[:, 1])
            begin, end = (
                np.bincount(others[:, i], common.clip(min=0) * weights, size[1] + 1) for i in (0, 2)
            )
            columns = (begin - end).cumsum()
            rows.append(_Row(top, cost, np.append(0, columns.cumsum())))
    return rows


def _best_place(
    box: Rectangle, width: int, height: int, rows: Sequence[_Row], end: int
) -> tuple[float, Rectangle] | None:
    """The cheapest place of a label and what it costs; `end` is the image's."""
    x1, _, x2, _ = box
    # It keeps to half of its box's width, or half of its own lies there.
    half = min(x2 - x1, width) // 2
    low, high = max(0, x1 + half - width), min(x2 - half, end - width)
    if not rows or low > high:
        return None
    shifts = _SHIFT * abs(np.arange(low, high + 1) - x1) / max(width, x2 - x1)
    ends, begins = slice(low + width, high + width + 1), slice(low, high + 1)
    costs = np.array([shifts + cost + before[ends] - before[begins] for _, cost, before in rows])
    row, column = divmod(int(costs.argmin()), len(shifts))
    if costs[row, column] > _TAKEN / 2:
        return None
    left, top = low + column, rows[row].top
    return float(costs[row, column]), (left, top, left + width, top + height)


def _outline(box: Sequence[float], margin: float, size: Size) -> Rectangle:
    """What a line around a box takes up: half of it outside, all of it in the image."""
    height, width = size
    x1, x2 = (min(max(x, 0), width) for x in box[::2])
    y1, y2 = (min(max(y, 0), height) for y in box[1::2])
    low = max(0, round(x1 - margin)), max(0, round(y1 - margin))
    return *low, min(width, round(x2 + margin)), min(height, round(y2 + margin))


def _frame(canvas: NDArray[np.uint8], box: Rectangle, line: int, colour: Colour, dash: int = 0) -> None:
    """Draw a frame of that thickness into a (3, H, W) image, inwards from a rectangle's edges."""
    x1, y1, x2, y2 = box
    ink = np.array(colour, dtype=np.uint8)[:, None, None]
    across, along = (
        slice(a, b) if not dash else a + np.flatnonzero(_dashes(b - a, dash)) for a, b in ((x1, x2), (y1, y2))
    )
    for y in (slice(y1, min(y1 + line, y2)), slice(max(y1, y2 - line), y2)):
        canvas[:, y, across] = ink
    for x in (slice(x1, min(x1 + line, x2)), slice(max(x1, x2 - line), x2)):
        canvas[:, along, x] = ink


def _dashes(length: int, dash: int) -> NDArray[np.bool_]:
    """Which pixels of a line are drawn: dashes and gaps of about a length, a dash at both ends."""
    number = max(3, 2 * round((length / dash - 1) / 2) + 1)
    drawn: NDArray[np.bool_] = np.arange(length) * number // max(1, length) % 2 == 0
    return drawn


def _texts(name: str, score: float) -> list[str]:
    """What a label may say, the longest first: the name, a shorter one, the score alone."""
    name = " ".join(name.split())
    part = max(3, len(name) // 2)
    names = [name, f"{name[:part]}…"] if part < len(name) - 1 else [name]
    return names if math.isnan(score) else [*(f"{n} {100 * score:.0f}" for n in names), f"{100 * score:.0f}"]


def _colour(label: int) -> Colour:
    round_, place = divmod(label - 1, len(_COLOURS))
    other, share = _SHADES[round_ % len(_SHADES)]
    red, green, blue = bytes.fromhex(_COLOURS[place][1:])
    mixed = [round(value + share * (other - value)) for value in (red, green, blue)]
    return mixed[0], mixed[1], mixed[2]


def _contrast(colour: Colour) -> Colour:
    """Black or white: which stands out more, by the contrast of https://www.w3.org/TR/WCAG21."""
    red, green, blue = (((value / 255 + 0.055) / 1.055) ** 2.4 for value in colour)
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return _BLACK if (luminance + 0.05) ** 2 > 1.05 * 0.05 else _WHITE


@cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
