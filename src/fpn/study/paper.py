"""The paper's tables as data, from `paper_results.yaml` beside this file."""

from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import yaml


class PaperRow(NamedTuple):
    """A row of a table."""

    name: str
    values: dict[str, float | None]
    """By column; None where the paper gives no number."""


class PaperTable(NamedTuple):
    """A table: AP and AR in percent, times in seconds per image."""

    title: str
    rows: dict[str, PaperRow]
    """By the paper's letters, or a short key where it has none, in the paper's order."""


@cache
def paper_table(name: str) -> PaperTable:
    """One of the paper's tables: table1 … table5, or running_time."""
    path = Path(__file__).with_name("paper_results.yaml")
    tables: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    title, columns, rows = (tables[name][key] for key in ("title", "columns", "rows"))
    values = {
        key: PaperRow(row["name"], dict(zip(columns, row["values"], strict=True)))
        for key, row in rows.items()
    }
    return PaperTable(title, values)
