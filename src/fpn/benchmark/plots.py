"""Cost over a growing amount of work: panels of lines, and the same as tables."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from fpn.benchmark.report import Table
from fpn.study.plots import COLOURS, MARKERS


@dataclass
class Line:
    """A side's cost."""

    name: str
    x: list[int]
    values: list[list[float]]
    """Of each repetition, at each x."""

    def medians(self) -> list[float]:
        """At each x."""
        return [statistics.median(values) for values in self.values]


@dataclass
class Panel:
    """The costs of several sides over the same kind of work."""

    title: str
    x: str
    y: str
    lines: Sequence[Line]
    logarithmic: bool = True
    """Both axes; otherwise neither, and costs begin at 0."""

    def table(self) -> Table:
        """Median, least and greatest of each line at each x that any of them has."""
        columns = [self.x]
        columns += [f"{one.name}{part}" for one in self.lines for part in (f", {self.y}", ", min", ", max")]
        rows: list[list[Any]] = []
        for x in sorted({x for one in self.lines for x in one.x}):
            row: list[Any] = [x]
            for one in self.lines:
                values = one.values[one.x.index(x)] if x in one.x else []
                row += [f(values) if values else None for f in (statistics.median, min, max)]
            rows.append(row)
        return Table(self.title, columns, rows)


def draw(panels: Sequence[Panel], path: Path) -> None:
    """Write a PNG of four panels; on logarithmic axes slope 1 is cost in proportion to work."""
    figure = Figure(figsize=(12, 8.4), dpi=140, layout=ConstrainedLayoutEngine(w_pad=0.15, h_pad=0.12))
    FigureCanvasAgg(figure)
    names = list(dict.fromkeys(one.name for panel in panels for one in panel.lines))
    handles: dict[str, Line2D] = {}
    for axes, panel in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for one in panel.lines:
            number = names.index(one.name)
            colour, marker = COLOURS[number], MARKERS[number]
            low, high = ([f(values) for values in one.values] for f in (min, max))
            (shown,) = axes.plot(one.x, one.medians(), color=colour, marker=marker, linewidth=2, markersize=7)
            handles.setdefault(one.name, shown)
            axes.fill_between(one.x, low, high, color=colour, alpha=0.18, linewidth=0)
        _style(axes, panel)
    figure.legend(
        list(handles.values()),
        list(handles),
        loc="outside lower center",
        ncols=len(handles),
        frameon=False,
        fontsize=13,
    )
    figure.savefig(path)


def _style(axes: Axes, panel: Panel) -> None:
    axes.set_title(panel.title, fontsize=13, loc="left")
    axes.set_xlabel(panel.x, fontsize=12)
    axes.set_ylabel(panel.y, fontsize=12)
    ticks = sorted({x for one in panel.lines for x in one.x})
    if panel.logarithmic:
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_minor_locator(NullLocator())
    else:
        axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(FixedLocator(ticks))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda y, _: f"{y:g}"))
    axes.tick_params(labelsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="0.9", linewidth=0.8)
    axes.set_axisbelow(True)
