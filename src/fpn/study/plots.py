"""Recall curves of the rows of a table, side by side."""

import math
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from fpn.study.results import Curve, Curves

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's, told apart by the colour-blind, less the yellow, too pale for lines."""
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""One more than colours, so that 56 rows pass before a pair of colour and marker comes again."""
LINES = ("-", "--", ":")
"""For the first, second and third round of colours."""


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
    limits, sizes, ious = figure.subplots(1, 3, sharey=True)
    several = False
    for number, (label, curves) in enumerate(rows.items()):
        if not curves:
            continue
        several |= len(curves) > 1
        round_, place = divmod(number, len(COLOURS))
        style = (COLOURS[place], MARKERS[number % len(MARKERS)], LINES[round_ % len(LINES)])
        text = label.replace("$", r"\$")  # a dollar would begin a formula
        octaves = np.arange(len(curves[0].by_size.x))
        _line(limits, np.array(curves[0].by_limit.x), [one.by_limit for one in curves], style, text)
        _line(sizes, octaves, [one.by_size for one in curves], style)
        _line(ious, np.array(curves[0].by_iou.x), [one.by_iou for one in curves], style)
    some = next(curves[0] for curves in rows.values() if curves)
    _label(limits, "proposals per image", "average recall (%)")
    limits.set_xscale("log")
    limits.xaxis.set_major_locator(FixedLocator(some.by_limit.x))
    limits.xaxis.set_minor_locator(NullLocator())
    limits.set_xticklabels([f"{x:g}" for x in some.by_limit.x])
    _label(sizes, "√area of the object (pixels)", "average recall of 1000 proposals (%)")
    # An octave's point stands between the ticks of its ends.
    edges = some.by_size.x[1:]
    sizes.set_xticks(np.arange(len(edges)) + 0.5, [f"{x:g}" for x in edges])
    _label(ious, "IoU", "recall of 1000 proposals (%)")
    limits.set_ylim(bottom=0)
    figure.suptitle(title + ("; bands from the lowest to the highest seed" if several else ""), fontsize=12)
    figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
    figure.savefig(path)


def _line(
    axes: Axes, x: np.ndarray, curves: Sequence[Curve], style: tuple[str, str, str], label: str | None = None
) -> None:
    values = 100 * np.array([curve.recall for curve in curves])
    colour, marker, line = style
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # where there is no object, all are NaN
        mean, low, high = (f(values, axis=0) for f in (np.nanmean, np.nanmin, np.nanmax))
    axes.plot(
        x, mean, label=label, color=colour, marker=marker, linestyle=line, linewidth=1.6, markersize=4.5
    )
    if len(curves) > 1:
        axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)


def _label(axes: Axes, x: str, y: str) -> None:
    axes.set_xlabel(x)
    axes.set_title(y, fontsize=10, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelleft=True)
    axes.grid(axis="y", color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)


def same_axes(one: Curves, other: Curves) -> bool:
    """Whether two runs' curves are over the same limits, sizes and thresholds."""
    return all(
        len(a.x) == len(b.x) and all(map(math.isclose, a.x, b.x)) for a, b in zip(one, other, strict=True)
    )
