"""The report of a study: the paper's numbers beside ours, how their order agrees, curves of recall."""

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fpn.console import say
from fpn.study.paper import paper_table
from fpn.study.plots import draw_curves
from fpn.study.results import read_runs
from fpn.study.sections import Compared, Section, is_percentage, sections_of, written

LEGEND = """\
AP and AR are in percent. Ours are means over the finished seeds, n of them, ± the standard deviation
of the sample; differences are taken before rounding. A difference from another row is taken seed by seed,
± half of its 95 % confidence interval by Student's t; where either row has other seeds too, n is of those
that both have. The paper's numbers are of COCO: for other data, or where something is altered,
the report shows how far the rows are from one of them, in the paper and in ours.

- `-`: the paper has no such number, or there is nothing to subtract
- no run: there is no folder of this row
- unfinished: none of the row's runs has a scores.json
- not scored: scores.json lacks the number
- no object: the data have no object of the kind"""


def write_report(folders: Sequence[str | Path], out: str | Path = "report", all_rows: bool = False) -> Path:
    """Writes OUT/report.md and figures beside it, prints the tables in brief; gives the file's path.

    Args:
        folders: searched for runs, folders with a run.json, at any depth.
        out: the folder to write to; made if it is missing.
        all_rows: whether the paper's rows that were not run are shown too.

    Raises:
        InputError: runs cannot be read, are of no known table, or are there twice.
    """
    sections = sections_of(read_runs(folders))
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    parts = ["# Report", LEGEND]
    console = Console()
    for number, section in enumerate(sections):
        figure = _draw(section, folder, taken=[_slug(other) for other in sections[:number]])
        shown = [row for row in section.rows if row.runs or all_rows]
        parts += _markdown(section, shown, figure)
        console.print(_brief(section, shown))
        for line in (section.settings, *_remarks(section, shown)):
            say(line)
        console.print()
    path = folder / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    say(f"written to {path}")
    return path


def _markdown(section: Section, shown: Sequence[Compared], figure: Path | None) -> list[str]:
    """The blocks of a section, for GitHub; `figure` lies beside the report."""
    layout = section.layout
    papers = f" The paper's: {paper_table(section.table).title}." if layout.papers else ""
    blocks = [f"## {_escaped(section.heading)}", _escaped(section.settings + papers)]
    lines = [["row", "name", "", "n", *(_escaped(_title(column)) for column in section.columns)]]
    lines.append(["---"] * 4 + ["--:"] * len(section.columns))
    for row in shown:
        heads = [[row.key, row.name], *([["", ""]] * 3)]
        lines += [
            [*map(_escaped, (*head, *line))] for head, line in zip(heads, _lines(section, row), strict=False)
        ]
    blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
    if remarks := _remarks(section, shown):
        blocks.append("\n".join(f"- {_escaped(line)}" for line in remarks))
    if figure is None and layout.ranked:
        blocks.append("No curves: no finished run has a curves.json.")
    elif figure is not None:
        blocks.append(f"![Recall of proposals, {_escaped(section.heading)}]({figure.name})")
    return blocks


def _lines(section: Section, row: Compared) -> list[list[str]]:
    """The cells of a row from the third on: the paper's, ours, and how far apart they are.

    That is ours from the paper's, on COCO; and where something is altered, on other data, or in a table that
    it has not, each from its own reference row.
    """
    columns, key = section.columns, section.layout.reference
    ours = ["ours", row.seeds, *(_ours(section, row, column) for column in columns)]
    lines = [["paper", "", *(_number(row.paper.get(column), column) for column in columns)]]
    lines = [*(lines if row.paper else []), ours]
    apart: dict[str, list[str]] = {}
    if section.on_coco and section.layout.papers:
        means = section.means(row)
        apart["ours - paper"] = [_difference(means.get(c), row.paper.get(c)) for c in columns]
    as_the_papers = section.data == "coco" and section.layout.papers
    other = next((one for one in section.rows if one.key == key != row.key), None)
    if other is not None and not as_the_papers:
        apart |= {
            f"paper - paper ({key})": [_difference(row.paper.get(c), other.paper.get(c)) for c in columns],
            f"ours - ours ({key})": [section.apart(row, other, c) for c in columns],
        }
    for label, differences in apart.items():
        cells = [d if is_percentage(c) else "" for c, d in zip(columns, differences, strict=True)]
        if not {"", "-"}.issuperset(cells):
            lines.append([label, "", *cells])
    return lines


def _ours(section: Section, row: Compared, column: str) -> str:
    if not row.runs:
        return "no run"
    values, known = section.values(row, column), section.known(row, column)
    if column == "anchors":  # a property of the network, the same for all seeds
        return _number(known[0] if known else None, column)
    if not row.finished:
        return "unfinished"
    if not known:
        return "no object" if values else "not scored"
    text = _number(mean(known), column)
    if len(known) > 1:
        text += f" ± {_number(stdev(known), column)}"
    return text if len(known) == len(row.finished) else f"{text} (n = {len(known)})"


def _number(value: float | None, column: str) -> str:
    return "-" if value is None else written(value, column)


def _difference(value: float | None, other: float | None) -> str:
    if value is None or other is None:
        return "-"
    return f"{round(value - other, 1) + 0.0:+.1f}"  # adding zero turns -0.0 into 0.0


def _remarks(section: Section, shown: Sequence[Compared]) -> list[str]:
    """Which rows are not shown, and whether their order agrees with the paper's, by each ranked column."""
    left_out = ", ".join(f"{row.key} ({row.name})" for row in section.rows if row not in shown)
    lines = [f"Not run: {left_out}."] if left_out else []
    for column in section.layout.ranked:
        order = section.order(column)
        if order.rows < 2:
            continue
        tau = "undefined, as all rows are equal" if math.isnan(order.tau) else f"{order.tau:.2f}"
        inverted, tied = ("inverted against the paper", "<"), ("equal in ours alone", "=")
        pairs = []
        for (what, sign), found in ((inverted, order.inverted), (tied, order.tied)):
            if found:
                pairs.append(f"{what}: {', '.join(f'{one} {sign} {other}' for one, other in found)}")
        ending = "; ".join(pairs) or "no pair inverted"
        lines.append(f"Order by {column}, {order.rows} rows: Kendall's tau {tau}; {ending}.")
    return lines


def _brief(section: Section, shown: Sequence[Compared]) -> Table:
    """For a terminal: the ranked columns, or the first two where none is."""
    table = Table(title=Text(section.heading))
    table.add_column("row", overflow="fold")
    table.add_column("n")
    columns = section.layout.ranked or section.columns[:2]
    sides = ("paper", "ours") if section.layout.papers else ("ours",)
    for column in columns:
        for side in sides:
            table.add_column(f"{_title(column)}\n{side}", justify="right")
    for row in shown:
        cells = []
        for column in columns:
            cells += [_number(row.paper.get(column), column)] if section.layout.papers else []
            cells.append(_ours(section, row, column))
        name = f"{row.key}  {row.name}" if len(row.key) == 1 else row.name  # the letter is the paper's
        # Texts, because a name in square brackets would be read as markup.
        table.add_row(*map(Text, (name, row.seeds, *cells)))
    return table


def _draw(section: Section, folder: Path, taken: Sequence[str]) -> Path | None:
    """The section's figure, None where no run has curves."""
    names = [row.name for row in section.rows]
    curves = {}
    for row in section.rows:
        name = row.name if names.count(row.name) == 1 else f"{row.name} ({row.key})"
        curves[name] = [run.curves for run in row.finished if run.curves]
    if not any(curves.values()):
        return None
    slug = _slug(section)
    path = folder / f"{slug}{f'_{taken.count(slug) + 1}' if slug in taken else ''}.png"
    draw_curves(curves, section.heading, path)
    return path


def _slug(section: Section) -> str:
    """A file's name, which several sections may share, and not too long for one."""
    return f"{section.table}_{re.sub(r'[^a-z0-9]+', '_', section.data_name.lower())}"[:60]


def _title(column: str) -> str:
    titles = {"seconds": "seconds per image", "peak_memory_mb": "peak memory (MB)"}
    return titles.get(column, column.replace("_", " "))


def _escaped(text: str) -> str:
    """Text that Markdown takes for nothing else, on one line."""
    return re.sub(r"([\\|*<>`\[\]_~&])", r"\\\1", " ".join(text.split()))
