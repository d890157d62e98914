"""What a dashboard shows besides numbers: tables and curves as data, wherever they are drawn.

Symbols: K categories.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from fpn.evaluation.scoring import IOU_50, IOU_75

Cell = str | float | None


class TablePanel(NamedTuple):
    """A table."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Cell]]


class CurvesPanel(NamedTuple):
    """Curves over the same places."""

    name: str
    title: str
    x_name: str
    y_name: str
    x: Sequence[float]
    lines: Mapping[str, Sequence[float]]
    """By name, as long as `x`."""


Panel = TablePanel | CurvesPanel

_IOUS = {"50": "IoU .50", "75": "IoU .75", "50_95": "IoU .50:.95"}
"""By the ending of a panel's name."""


def category_panel(scores: Mapping[str, Mapping[str, float]]) -> TablePanel:
    """The AP numbers of each category, from 0 to 1; None where there is no such object.

    Args:
        scores: `BoxScores.categories`.
    """
    names = list(next(iter(scores.values()), ()))
    rows = [
        (category, *(None if math.isnan(its[name]) else its[name] for name in names))
        for category, its in scores.items()
    ]
    return TablePanel("categories", ("category", *names), rows)


def precision_panels(precision: np.ndarray, categories: Sequence[str]) -> list[CurvesPanel]:
    """Precision over recall 0:.01:1 at IoU .50, at .75, and as the mean of those of .50:.05:.95.

    The mean over a curve's points is the AP. A category without objects has no curve.

    Args:
        precision: `BoxScores.precision`, (10, 101, K).
        categories: the K names.

    Returns:
        `pr`, the means over the categories at the three, and of each of the three one by category.
    """
    there = precision[0, 0] > -1
    names = [name for name, is_there in zip(categories, there, strict=True) if is_there]
    recall = np.linspace(0, 1, precision.shape[1]).round(2).tolist()
    known = precision[..., there]
    # (101, K) of each.
    curves = {"50": known[IOU_50], "75": known[IOU_75], "50_95": known.mean(axis=0)}
    overall = {_IOUS[end]: of.mean(axis=1).tolist() for end, of in curves.items() if names}
    panels = [CurvesPanel("pr", "Precision over recall", "recall", "precision", recall, overall)]
    for end, of in curves.items():
        title, lines = (
            f"{panels[0].title} by category, {_IOUS[end]}",
            dict(zip(names, of.T.tolist(), strict=True)),
        )
        panels.append(panels[0]._replace(name=f"pr_{end}_by_category", title=title, lines=lines))
    return panels
