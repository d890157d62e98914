"""The curves of a report, for the page and for papers: told apart without colour too."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fpn.evaluation.diagnosis import OfObjects, ProposalDiagnosis
from fpn.evaluation.matching import IOUS, RECALLS
from fpn.evaluation.scoring import BoxScores
from fpn.files import replacing
from fpn.palette import LINES

Panel = Callable[[Axes], None]

_COLOURS = (*LINES, "#888888")
_MARKERS = ("o", "s", "^", "D", "v", "P", "X")
_LINES = ("-", "--", "-.", ":")
_INK = "#010203"
"""Of letters and axes; a page puts its own in its place."""
_WIDTH, _HEIGHT = 5.4, 3.9
"""Of a panel, in inches."""
_POINTS = 150
"""Of a curve over training, beyond which neighbours are averaged."""


def precision_by_iou(scores: BoxScores, axes: Axes) -> None:
    """Precision over recall at each IoU, the mean of all categories that have objects."""
    there = scores.precision[0, 0] > -1
    for t, (iou, curve) in enumerate(zip(IOUS, scores.precision[..., there], strict=True)):
        colour = colormaps["viridis"](0.3 + 0.55 * t / len(IOUS))
        label = f"IoU {iou:.2f}: AP {100 * curve.mean():.1f}" if there.any() else f"IoU {iou:.2f}"
        mean = 100 * curve.mean(axis=1) if there.any() else np.full(len(RECALLS), np.nan)
        axes.plot(100 * RECALLS, mean, color=colour, linestyle=_LINES[t % len(_LINES)], label=label)
    _label(axes, "precision over recall, mean of categories (%)", "recall (%)")


def precision_by_category(scores: BoxScores, axes: Axes) -> None:
    """Precision over recall at an IoU of .5: of many categories, seven from the best to the worst."""
    known = [(one["AP50"], k, name) for k, (name, one) in enumerate(scores.categories.items())]
    known = sorted((one for one in known if one[0] == one[0]), reverse=True)
    places = np.linspace(0, len(known) - 1, min(len(known), len(_COLOURS))).round().astype(int)
    shown = [known[place] for place in places]
    for number, (average, k, name) in enumerate(shown):
        _line(axes, number, 100 * RECALLS, scores.precision[0, :, k], f"{100 * average:.1f} {name}", 10)
    few = "" if len(shown) == len(known) else ", from the best to the worst"
    _label(axes, f"by category at IoU .5{few} (%)", "recall (%)")


def recall_by_limit(found: ProposalDiagnosis, axes: Axes) -> None:
    """Average recall over the number of proposals."""
    axes.set_xscale("log")
    _line(axes, 0, found.limits, found.average, "average recall", 1)
    axes.set_xticks(found.limits, [str(limit) for limit in found.limits])
    axes.minorticks_off()
    _label(axes, "average recall (%)", "proposals per image")


def recall_by_iou(found: ProposalDiagnosis, axes: Axes) -> None:
    """Recall over the IoU from which an object counts as found."""
    for number, (limit, recall) in enumerate(found.by_iou.items()):
        _line(axes, number, IOUS, recall, f"{limit} proposals", 1)
    _label(axes, "recall (%)", "IoU")


def by_objects(groups: Sequence[OfObjects], title: str, axes: Axes) -> None:
    """Scores by the size of objects and by their level."""
    for number, score in enumerate(groups[0].scores):
        for by in dict.fromkeys(group.by for group in groups):
            own = [(place, group) for place, group in enumerate(groups) if group.by == by]
            label = score if by == groups[0].by else ""
            _line(axes, number, [p for p, _ in own], [g.scores[score] for _, g in own], label, 1)
    axes.set_xticks(range(len(groups)), [group.name for group in groups], rotation=30)
    _label(axes, title, " | ".join(dict.fromkeys(_BY[group.by] for group in groups)))


_BY = {"image": "size in the image", "input": "at the input", "level": "level"}


def training(path: Path) -> list[Panel]:
    """The losses and the scores over a run's steps, of those that its metrics.csv has."""
    columns: dict[str, list[tuple[float, float]]] = defaultdict(list)
    with path.open(newline="") as file:
        for row in csv.DictReader(file):
            for name, value in row.items():
                if value and row.get("step") and name.startswith(("train/", "val/")):
                    columns[name].append((float(row["step"]), float(value)))
    losses = {
        k.removeprefix("train/"): v for k, v in columns.items() if k[:6] == "train/" and "images" not in k
    }
    if "val/loss" in columns:
        losses["loss in validation"] = columns["val/loss"]
    wanted = ("val/AP", "val/AP50", "val/AP75", "val/proposal_AR@100", "val/proposal_AR@1000")
    scores = {name.removeprefix("val/"): columns[name] for name in wanted if name in columns}
    told = ((losses, "losses", 1), (scores, "validation (%)", 100))
    return [partial(_history, *curves) for curves in told if curves[0]]


def _history(
    curves: Mapping[str, Sequence[tuple[float, float]]], title: str, factor: float, axes: Axes
) -> None:
    for number, (name, points) in enumerate(curves.items()):
        parts = np.array_split(np.array(points), min(len(points), _POINTS))
        steps, values = np.array([part.mean(axis=0) for part in parts]).T
        _line(axes, number, steps, factor / 100 * values, name, max(len(parts) // 8, 1))
    _label(axes, title, "step", top=None)


def svg(panel: Panel) -> str:
    """A panel as an element of a page, in the page's own letters and ink."""
    file = io.StringIO()
    with rc_context({"svg.fonttype": "none", "font.family": "sans-serif"}):
        FigureCanvasSVG(_figure([panel])).print_svg(file)
    text = file.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", text, flags=re.S)
    text = re.sub(r"(<g) id=\"[^\"]*\"", r"\1", text)  # the same in every figure
    text = re.sub(r"\s*\n\s*", "\n", text)
    return text.replace(_INK, "currentColor").replace("<svg ", '<svg role="img" ', 1)


def write_png(panels: Sequence[Panel], path: Path) -> None:
    """All of them in one picture."""
    figure = _figure(panels)
    figure.set_facecolor("white")
    figure.set_dpi(130)
    with replacing(path) as part:
        FigureCanvasAgg(figure).print_png(part)


def _figure(panels: Sequence[Panel]) -> Figure:
    columns = min(len(panels), 3)
    rows = -(-len(panels) // columns)
    inked: Any = ("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color")
    with rc_context({**dict.fromkeys(inked, _INK), "text.parse_math": False}):
        figure = Figure(figsize=(columns * _WIDTH, rows * _HEIGHT), facecolor="none")
        for number, panel in enumerate(panels):
            row, column = divmod(number, columns)
            # Room for ticks and labels, in inches: a layout engine would take longer than all the rest.
            left, bottom = column * _WIDTH + 0.5, (rows - 1 - row) * _HEIGHT + 0.75
            sides = (_WIDTH - 0.65) / columns / _WIDTH, (_HEIGHT - 1.1) / rows / _HEIGHT
            panel(figure.add_axes((left / columns / _WIDTH, bottom / rows / _HEIGHT, *sides)))
        return figure


def _line(
    axes: Axes,
    number: int,
    x: Sequence[float] | np.ndarray,
    y: Sequence[float | None] | np.ndarray,
    label: str,
    every: int,
) -> None:
    values = 100 * np.array(y, dtype=np.float64)  # NaN for None
    round_, place = divmod(number, len(_COLOURS))
    style: Any = {"color": _COLOURS[place], "marker": _MARKERS[number % len(_MARKERS)]}
    style |= {"markevery": every, "markersize": 4, "linewidth": 1.5}
    axes.plot(x, values, label=label or None, linestyle=_LINES[(round_ or place) % len(_LINES)], **style)


def _label(axes: Axes, title: str, below: str, top: float | None = 102) -> None:
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel(below)
    axes.set_ylim(bottom=0, top=top)
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#888888", alpha=0.25, linewidth=0.6)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=7.5, framealpha=0, handlelength=3)
