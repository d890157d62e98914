"""Recall curves of the rows of a table, side by side."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fpn.palette import BLACK, LINES
from fpn.study.results import Curves

COLOURS = (*LINES, BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
DASHES = ("-", "--", ":")
"""For the first, second and third round of markers: without its colour a line is told from 23 others."""
PANELS = (
    ("by_limit", "limits", "AR", "proposals per image", "average recall (%)"),
    ("by_size", "from", "AR@1000", "√area of the object (pixels)", "average recall of 1000 proposals (%)"),
    ("by_iou", "thresholds", "recall@1000", "IoU", "recall of 1000 proposals (%)"),
)
"""Of each the curve, its x and y in curves.json, and what is written below and above it."""


def draw_curves(rows: Mapping[str, Sequence[Curves]], title: str, path: Path) -> None:
    """Writes a PNG of three panels: recall over number of proposals, size of objects, and IoU.

    Args:
        rows: the curves of each row's runs, over the same x, by what the legend calls the row; a row
            without any is left out and keeps its colour. One row at least has some.
        title: of the figure.
        path: the file to write.
    """
    figure = Figure(figsize=(13, 4.8), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    some = next(curves[0] for curves in rows.values() if curves)
    for axes, (curve, across, up, below, above) in zip(
        figure.subplots(1, 3, sharey=True), PANELS, strict=True
    ):
        x = np.array(some[curve][across])
        if curve == "by_limit":
            axes.set_xscale("log")
            axes.set_xticks(x, [f"{limit:g}" for limit in x])
            axes.set_xticks([], minor=True)
        if curve == "by_size":  # an octave's point stands between the ticks of its ends
            axes.set_xticks(np.arange(len(x) - 1) + 0.5, [f"{edge:g}" for edge in x[1:]])
            x = np.arange(len(x))
        for number, (label, curves) in enumerate(rows.items()):
            if not curves:
                continue
            style = line_style(number)
            values = 100 * np.ma.masked_invalid([run[curve][up] for run in curves])  # NaN: no object
            mean, low, high = values.mean(axis=0), values.min(axis=0), values.max(axis=0)
            axes.plot(
                x,
                mean,
                label=label.replace("$", r"\$") if curve == "by_limit" else None,  # a dollar begins a formula
                **style,
                linewidth=1.6,
                markersize=4.5,
            )
            if len(curves) > 1:
                axes.fill_between(x, low, high, color=style["color"], alpha=0.18, linewidth=0)
        axes.set_xlabel(below)
        axes.set_title(above, fontsize=10, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelleft=True)
        axes.grid(axis="y", color="0.9", linewidth=0.8)
        axes.set_axisbelow(True)
    figure.axes[0].set_ylim(0, 102)  # in every figure, so that they can be compared
    several = any(len(curves) > 1 for curves in rows.values())
    figure.suptitle(title + ("; bands from the lowest to the highest seed" if several else ""), fontsize=12)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10, handlelength=3.5)
    figure.savefig(path)


def line_style(number: int) -> dict[str, str]:
    """Colour, marker and line of a row by its number, as matplotlib takes them."""
    round_, place = divmod(number, len(MARKERS))
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[place],
        "linestyle": DASHES[round_ % len(DASHES)],
        "markerfacecolor": "white" if round_ % 2 else COLOURS[number % len(COLOURS)],
    }
