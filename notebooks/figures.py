"""Images, maps and boxes on matplotlib's axes, as the notebooks show them."""

from collections.abc import Sequence

import torch
from matplotlib import patheffects
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle
from torch import Tensor

from fpn.data.transforms import ImageSettings
from fpn.palette import BLUE, GREEN, ORANGE, PURPLE, VERMILION
from fpn.types import Features

LEVEL_COLOURS = {2: BLUE, 3: GREEN, 4: ORANGE, 5: VERMILION, 6: PURPLE}


def show_image(axes: Axes, image: Tensor, title: str = "", settings: ImageSettings = ImageSettings()) -> None:
    """An image (3, H, W), uint8 or as the network takes it, which these settings prepared."""
    if image.dtype != torch.uint8:
        image = settings.restore(image, (image.shape[1], image.shape[2]))
    axes.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
    _bare(axes, title)


def show_map(axes: Axes, features: Tensor, title: str = "") -> None:
    """A map (d, h, w): the norm of each cell's features."""
    axes.imshow(features.detach().norm(dim=0).numpy(), cmap="magma", interpolation="nearest")
    _bare(axes, title)


def show_maps(row: Sequence[Axes], maps: Features, name: str) -> None:
    """The first image's maps by level, each on an axes of its own, the finest first."""
    for axes, (level, features) in zip(row, sorted(maps.items()), strict=True):
        channels, h, w = features.shape[1:]
        show_map(axes, features[0], f"{name}{level}: {channels} × {h} × {w}, stride {2**level}")


def show_principal(axes: Axes, features: Tensor, title: str = "") -> None:
    """A map (d, h, w) in colours: its cells along the three directions in which they differ most.

    It has three channels and three cells at least.
    """
    d, h, w = features.shape
    cells = features.detach().reshape(d, -1).T
    cells = cells - cells.mean(dim=0)
    directions = torch.linalg.svd(cells, full_matrices=False).Vh[:3]
    # The sign of a direction is free: let its largest entry be positive.
    directions = directions * directions.gather(1, directions.abs().argmax(dim=1, keepdim=True)).sign()
    colours = cells @ directions.T
    low, high = (colours.quantile(q, dim=0) for q in (0.02, 0.98))
    colours = ((colours - low) / (high - low).clamp(min=1e-12)).clamp(0, 1)
    axes.imshow(colours.reshape(h, w, 3).numpy(), interpolation="nearest")
    _bare(axes, title)


def add_boxes(
    axes: Axes,
    boxes: Tensor,
    colours: str | Sequence[str] = "white",
    texts: Sequence[str] = (),
    width: float = 1.5,
) -> None:
    """Boxes (D, 4) over an image.

    Args:
        axes: that show the image.
        boxes: in its pixels.
        colours: one for all, or one each.
        texts: written above their upper left corners, or below where the image ends; none for none.
        width: of the lines, in points.
    """
    each = [colours] * len(boxes) if isinstance(colours, str) else colours
    for number, ((x1, y1, x2, y2), colour) in enumerate(zip(boxes.tolist(), each, strict=True)):
        # Pixel (0, 0) has its centre at the origin of the axes.
        corner = (x1 - 0.5, y1 - 0.5)
        axes.add_patch(Rectangle(corner, x2 - x1, y2 - y1, fill=False, color=colour, linewidth=width))
        if texts:
            va = "bottom" if y1 > 0.04 * axes.get_ylim()[0] else "top"
            text = axes.text(*corner, texts[number], color=colour, fontsize=7, va=va, clip_on=True)
            text.set_path_effects([patheffects.withStroke(linewidth=1.5, foreground="black")])


def legend_below(axes: Axes, columns: int = 1) -> None:
    """A legend under the axes' label, where it covers nothing."""
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), ncols=columns, frameon=False)


def _bare(axes: Axes, title: str) -> None:
    axes.set_xticks([])
    axes.set_yticks([])
    axes.set_title(title, fontsize=9)
