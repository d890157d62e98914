"""The sections of a report: a table of one family on one data set each, never mixed."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import PurePath
from statistics import mean, stdev
from typing import NamedTuple

from fpn.errors import InputError
from fpn.study.paper import paper_table
from fpn.study.results import Run


class Order(NamedTuple):
    """How the order of some rows agrees with the paper's."""

    rows: int
    """How many there are to compare."""
    tau: float
    """Kendall's tau-b, in [-1, 1]: 1 for the same order, less where rows are equal in one side alone;
    NaN with fewer than two rows, or where all rows of a side are equal."""
    inverted: tuple[tuple[str, str], ...]
    """Pairs (better, worse) by the paper of which ours has the first below the second."""
    tied: tuple[tuple[str, str], ...]
    """Pairs (better, worse) by the paper that are equal in ours."""


def compare_order(paper: Mapping[str, float], ours: Mapping[str, float]) -> Order:
    """Compares the rows that both have, by one number of each, the higher the better."""
    rows = [row for row in paper if row in ours]
    pairs = [(x, y) if paper[x] >= paper[y] else (y, x) for x, y in combinations(rows, 2)]
    ranked = [(x, y) for x, y in pairs if paper[x] != paper[y]]
    inverted = tuple((x, y) for x, y in ranked if ours[x] < ours[y])
    tied = tuple((x, y) for x, y in ranked if ours[x] == ours[y])
    untied = len(ranked) * sum(ours[x] != ours[y] for x, y in pairs)
    agreeing = len(ranked) - len(tied) - 2 * len(inverted)
    return Order(len(rows), agreeing / math.sqrt(untied) if untied else math.nan, inverted, tied)


class Layout(NamedTuple):
    """What a section shows."""

    heading: str
    columns: tuple[str, ...]
    """By their names in the paper, or in scores.json where the paper has none; AR@N as curves.json has N."""
    ranked: tuple[str, ...] = ()
    """The columns by which the order of the rows is compared."""
    reference: str = ""
    """The row whose distance from the others is shown on other data than the paper's."""
    prefix: str = ""
    """What scores.json puts before the columns' names."""
    papers: bool = True
    """Whether the paper has such a table."""


SIZES = ("small", "medium", "large")
BOXES = ("AP50", "AP", *(f"AP_{size}" for size in SIZES))
PROPOSALS = tuple(f"proposal_AR@100{size}" for size in ("", *(f"_{size}" for size in SIZES)))
COST = ("seconds", "peak_memory_mb")
LAYOUTS = {
    "table1": Layout(
        "Table 1",
        ("anchors", "AR@10", "AR@100", "AR@100_small", "AR@1000", *(f"AR@1000_{size}" for size in SIZES)),
        ("AR@1000", "AR@100"),
        "c",
        "proposal_",
    ),
    "table2": Layout("Table 2", BOXES, ("AP",), "c"),
    "table3": Layout("Table 3", BOXES, ("AP",), "c"),
    "table4": Layout("Table 4", BOXES),
    "table5": Layout("Table 5", BOXES[:2], ("AP",), "resnet50_unshared"),
    "necks": Layout("Necks", (*BOXES, *PROPOSALS), reference="fpn", papers=False),
    "recipes": Layout("Recipes", (*BOXES, *PROPOSALS), reference="plain", papers=False),
    "fig1": Layout("Figure 1", COST, papers=False),
    "fig1_proposals": Layout("Figure 1, proposals alone", COST, papers=False),
    "running_time": Layout("Running time", COST),
    "neck_times": Layout("Necks, time and memory", COST, papers=False),
}
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
"""Student's t that is passed one time in forty, of 1 to 9 degrees of freedom. The last stands for more too,
of which it is a little less."""
_ALTERED = ", with --"
"""What run.json has between the data and each setting that was given besides the row's own."""
_PLAIN = {"anchors": "{:,.0f}", "seconds": "{:.3f}", "peak_memory_mb": "{:,.0f}"}
_COCO = re.compile(r"(proposal_)?A[PR](\d\d)?(@\d+)?(_(small|medium|large))?$")


def is_percentage(column: str) -> bool:
    """Whether it is one of COCO's numbers."""
    return _COCO.match(column) is not None


def written(value: float, column: str) -> str:
    """A column's number; those of metrics of the user's own with four digits."""
    return ("{:.1f}" if is_percentage(column) else _PLAIN.get(column, "{:.4g}")).format(value)


class Compared(NamedTuple):
    """A row of a section: the paper's numbers and our runs."""

    key: str
    name: str
    paper: Mapping[str, float | None]
    """By column, in the units of the paper; empty for a row that the paper does not have."""
    runs: Sequence[Run]

    @property
    def finished(self) -> list[Run]:
        """The runs that have scores."""
        return [run for run in self.runs if run.scores is not None]

    @property
    def seeds(self) -> str:
        """How many seeds are finished, and how many are not."""
        open_ = len(self.runs) - len(self.finished)
        return f"{len(self.finished)}" + (f" ({open_} unfinished)" if open_ else "")


class Section(NamedTuple):
    """A table of one family on one data set."""

    table: str
    family: str
    data: str
    rows: Sequence[Compared]
    """In the paper's order, then those that the paper does not have, by key."""

    @property
    def layout(self) -> Layout:
        """What is shown of it."""
        return LAYOUTS[self.table]

    @property
    def data_name(self) -> str:
        """The data, without folders and without what is altered."""
        return PurePath(self.data.split(_ALTERED)[0]).name

    @property
    def on_coco(self) -> bool:
        """Whether the data are the paper's, whatever is altered."""
        return self.data.split(_ALTERED)[0] == "coco"

    @property
    def heading(self) -> str:
        """Table and data, and what is not as usual, in short."""
        words = [] if self.family == "paper" else [f"{self.family} recipe"]
        for altered in self.data.split(_ALTERED)[1:]:
            name, _, value = altered.partition(" ")
            words.append(f"{name.rpartition('.')[2]} {value if len(value) < 9 else '…'}")
        return ", ".join([f"{self.layout.heading} on {self.data_name}", *words])

    @property
    def settings(self) -> str:
        """How its runs were made, in a sentence."""
        if self.layout.columns == COST:
            made = {run.setting or self.data for row in self.rows for run in row.runs}
            return f"Measured on {' and on '.join(sorted(made))}."
        recipe = "paper's" if self.family == "paper" else self.family
        return f"Runs on {self.data}, by the {recipe} recipe."

    @property
    def columns(self) -> tuple[str, ...]:
        """What is shown of it; where something is trained, numbers of metrics of the user's own too."""
        if self.layout.columns == COST:
            return COST
        names = {name for row in self.rows for run in row.finished for name in run.scores or {}}
        own = {name for name in names if not is_percentage(name)}
        return (*self.layout.columns, *sorted(own))

    def values(self, row: Compared, column: str) -> dict[int, float]:
        """The column's numbers by seed, in its own unit, of the runs that have it; NaN for no object."""
        if column == "anchors":
            return {run.seed: float(run.anchors) for run in row.runs if run.anchors is not None}
        key, factor = (self.layout.prefix + column, 100) if is_percentage(column) else (column, 1)
        # Recall of another number of proposals than scores.json has, under the name that it would have there.
        curves = [run.curves["by_limit"].values() if run.curves else ((), ()) for run in row.finished]
        more = [{f"proposal_AR@{limit:g}": r for limit, r in zip(*curve, strict=True)} for curve in curves]
        scores = [one | (run.scores or {}) for one, run in zip(more, row.finished, strict=True)]
        return {
            run.seed: factor * its[key] for run, its in zip(row.finished, scores, strict=True) if key in its
        }

    def known(self, row: Compared, column: str) -> list[float]:
        """The same without NaN."""
        return [value for value in self.values(row, column).values() if not math.isnan(value)]

    def apart(self, row: Compared, other: Compared, column: str) -> str:
        """How far two rows are apart, seed by seed: the mean and half of its 95 % interval by Student's t.

        Of how many seeds it is stands behind where either has others too.
        """
        one, two = self.values(row, column), self.values(other, column)
        apart = [one[seed] - two[seed] for seed in one.keys() & two.keys()]
        apart = [value for value in apart if not math.isnan(value)]
        if not apart:
            return "-"
        text = f"{round(mean(apart), 1) + 0.0:+.1f}"  # adding zero turns -0.0 into 0.0
        if len(apart) > 1:
            margin = _T[min(len(apart), len(_T) + 1) - 2] * stdev(apart) / math.sqrt(len(apart))
            text += f" ± {margin:.1f}"
        return text + ("" if len(apart) == len(one) == len(two) else f" (n = {len(apart)})")

    def means(self, row: Compared) -> dict[str, float]:
        """The means over the runs, of the columns that have any."""
        return {column: mean(known) for column in self.columns if (known := self.known(row, column))}

    def numbers(self) -> tuple[list[str], list[list[str | float | None]]]:
        """Columns and rows of what is shown, as numbers, the paper's beside ours: mean and sd over n seeds.

        None stands where there is no number.
        """
        sides = ("paper", "ours", "sd") if self.layout.papers else ("ours", "sd")
        titles = ["row", "name", "n", *(f"{column} {side}" for column in self.columns for side in sides)]
        rows: list[list[str | float | None]] = []
        for row in self.rows:
            cells: list[str | float | None] = [row.key, row.name, len(row.finished)]
            for column in self.columns:
                known = self.known(row, column)
                cells += [row.paper.get(column)] if self.layout.papers else []
                cells += [mean(known) if known else None, stdev(known) if len(known) > 1 else None]
            rows.append(cells)
        return titles, rows

    def order(self, column: str) -> Order:
        """How the rows' order by a column agrees with the paper's."""
        theirs = {row.key: row.paper.get(column) for row in self.rows}
        ours = {row.key: means[column] for row in self.rows if column in (means := self.means(row))}
        return compare_order({key: x for key, x in theirs.items() if x is not None}, ours)


def sections_of(runs: Iterable[Run]) -> list[Section]:
    """The runs by table, the paper's family and COCO first.

    Raises InputError for a table that no section is laid out for.
    """
    groups: dict[tuple[str, str, str], list[Run]] = {}
    for run in runs:
        if run.table not in LAYOUTS:
            raise InputError(
                f"{run.folder}: its table {run.table!r} is unknown; there are {', '.join(LAYOUTS)}"
            )
        groups.setdefault((run.table, run.family, run.data), []).append(run)

    def place(key: tuple[str, str, str]) -> tuple[int, bool, str, bool, str]:
        table, family, data = key
        return list(LAYOUTS).index(table), family != "paper", family, data != "coco", data

    return [Section(*key, _rows(key[0], groups[key])) for key in sorted(groups, key=place)]


def _rows(table: str, runs: Sequence[Run]) -> list[Compared]:
    known = paper_table(table).rows if LAYOUTS[table].papers else {}
    of_row = {
        key: sorted((r for r in runs if r.row == key), key=lambda r: r.seed) for key in {r.row for r in runs}
    }
    rows = [Compared(key, row.name, row.values, of_row.get(key, [])) for key, row in known.items()]
    return rows + [
        Compared(key, of_row[key][0].name, {}, of_row[key]) for key in sorted(of_row.keys() - known.keys())
    ]
