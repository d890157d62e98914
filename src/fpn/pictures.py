"""Boxes drawn into images."""

from collections.abc import Sequence

import torch
from matplotlib import colormaps, font_manager
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from fpn.types import Categories, Detections

_COLOURS = colormaps["tab10"].resampled(10)


def draw(image: Tensor, found: Detections, categories: Categories, score_threshold: float = 0.0) -> Tensor:
    """An image with boxes, names and scores.

    Args:
        image: (3, H, W) uint8.
        found: boxes in this image's pixels; NaN scores, as of true boxes, are not written.
        categories: names of the labels.
        score_threshold: boxes with a lower score are left out.

    Returns:
        (3, H, W) uint8; the line width and the letters grow with the image.
    """
    keep = ~(found.scores < score_threshold)
    # Worst first, so that the best lie on top.
    boxes, scores, labels = (part[keep].flip(0) for part in found)
    # An outline needs a pixel to stand on.
    boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
    if not len(boxes):
        return image.clone()
    names = [categories.names[label - 1] for label in labels.tolist()]
    texts = [
        name if score != score else f"{name} {100 * score:.0f}"
        for name, score in zip(names, scores.tolist(), strict=True)
    ]
    side = min(image.shape[-2:])
    return draw_bounding_boxes(
        image,
        boxes,
        texts,
        colors=[_colour(label) for label in labels.tolist()],
        label_colors="white",
        fill_labels=True,
        width=max(1, round(side / 300)),
        font=font_manager.findfont("DejaVu Sans"),
        font_size=max(9, round(side / 45)),
    )


def truth(boxes: Tensor, labels: Tensor) -> Detections:
    """True boxes (G, 4) and labels (G,) in the form that `draw` takes."""
    return Detections(boxes, torch.full((len(boxes),), torch.nan), labels)


def beside(left: Sequence[Tensor], right: Sequence[Tensor], gap: int = 4, columns: int = 2) -> Tensor:
    """Pairs of pictures side by side, several pairs in a row.

    Args:
        left: (3, H, W) uint8 pictures.
        right: as many, each of the size of its partner.
        gap: white pixels between them.
        columns: pairs in a row.

    Returns:
        One (3, H, W) uint8 picture.
    """
    pairs = [_row([a, b], gap) for a, b in zip(left, right, strict=True)]
    rows = [_row(pairs[i : i + columns], 4 * gap) for i in range(0, len(pairs), columns)]
    width = max(row.shape[2] for row in rows)
    height = sum(row.shape[1] for row in rows) + 4 * gap * (len(rows) - 1)
    sheet = torch.full((3, height, width), 255, dtype=torch.uint8)
    y = 0
    for row in rows:
        sheet[:, y : y + row.shape[1], : row.shape[2]] = row
        y += row.shape[1] + 4 * gap
    return sheet


def _row(pictures: Sequence[Tensor], gap: int) -> Tensor:
    height = max(p.shape[1] for p in pictures)
    width = sum(p.shape[2] for p in pictures) + gap * (len(pictures) - 1)
    row = torch.full((3, height, width), 255, dtype=torch.uint8)
    x = 0
    for p in pictures:
        row[:, : p.shape[1], x : x + p.shape[2]] = p
        x += p.shape[2] + gap
    return row


def _colour(label: int) -> tuple[int, int, int]:
    red, green, blue, _ = _COLOURS(label % 10)
    return round(255 * red), round(255 * green), round(255 * blue)
