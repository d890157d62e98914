"""The numbers of `scoring` as tables for a terminal of 80 columns: percentages with one decimal.

'–' is a number without ground truth; an empty cell is one that the COCO protocol does not have.
"""

import math
from collections.abc import Iterator, Mapping

from rich.table import Table
from rich.text import Text

from fpn.evaluation.scoring import AREAS

OF_CATEGORY = {name: name for name in ("AP", "AP50", "AP75")} | {f"AP{area}": area[1:] for area in AREAS[1:]}
"""A category's numbers, and what heads them."""


def box_table(scores: Mapping[str, float]) -> Table:
    """COCO's twelve numbers, `BoxScores.overall`, by kind and area."""
    table = _by_area("Boxes (%)")
    for row in box_rows(scores):
        table.add_row(*row)
    return table


def box_rows(scores: Mapping[str, float]) -> Iterator[list[str]]:
    """COCO's twelve numbers: the name of a kind, and in percent those of all areas, small, medium, large."""
    for name in ("AP", "AP50", "AP75", "AR@1", "AR@10", "AR@100"):
        # COCO's AR by area is at 100 detections and its key has no limit.
        prefix = "AR" if name == "AR@100" else name
        yield [name, *(percent(scores.get(f"{prefix}{area}" if area else name)) for area in AREAS)]


def proposal_table(scores: Mapping[str, float]) -> Table:
    """Average recall of proposals, `evaluate_proposals`, by limit and area."""
    table = _by_area("Proposals, class-agnostic (%)")
    for name in (key for key in scores if "_" not in key):
        table.add_row(name, *(percent(scores.get(f"{name}{area}")) for area in AREAS))
    return table


def category_table(scores: Mapping[str, Mapping[str, float]]) -> Table:
    """AP of each category, `BoxScores.categories`, in the order given."""
    table = Table(title="AP by category (%)")
    table.add_column("category", overflow="fold")
    for heading in OF_CATEGORY.values():
        table.add_column(heading, justify="right", no_wrap=True, min_width=4)
    for category, row in scores.items():
        # A Text, because a name in square brackets would be read as markup.
        table.add_row(Text(category), *(percent(row[key]) for key in OF_CATEGORY))
    return table


def _by_area(title: str) -> Table:
    table = Table(title=title)
    table.add_column("")
    for area in AREAS:
        table.add_column(area.removeprefix("_") or "all", justify="right", no_wrap=True)
    return table


def percent(value: float | None) -> str:
    """A number from 0 to 1 with one decimal; empty for None."""
    if value is None:
        return ""
    return "–" if math.isnan(value) else f"{100 * value:.1f}"
