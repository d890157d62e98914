"""The paper's tables as data, from `paper_results.yaml` beside this file."""

from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple

import yaml

from fpn.errors import InputError


class PaperRow(NamedTuple):
    """A row of a table."""

    name: str
    values: dict[str, float | None]
    """By column; None where the paper gives no number."""


class PaperTable(NamedTuple):
    """A table: AP and AR in percent, times in seconds per image."""

    title: str
    columns: tuple[str, ...]
    rows: dict[str, PaperRow]
    """By the paper's letters, or a short key where it has none, in the paper's order."""


def table(name: str) -> PaperTable:
    """One of the paper's tables: table1 … table6, or running_time.

    Raises InputError for any other name.
    """
    tables = _tables()
    if name not in tables:
        raise InputError(f"the paper has no table {name!r}; use one of {', '.join(tables)}")
    return tables[name]


@cache
def _tables() -> dict[str, PaperTable]:
    content = yaml.safe_load(files("fpn.study").joinpath("paper_results.yaml").read_text(encoding="utf-8"))
    return {name: _table(**entry) for name, entry in content.items()}


def _table(title: str, columns: list[str], rows: dict[str, Any]) -> PaperTable:
    return PaperTable(title, tuple(columns), {key: _row(columns, **entry) for key, entry in rows.items()})


def _row(columns: list[str], name: str, values: list[float | None]) -> PaperRow:
    return PaperRow(name, dict(zip(columns, values, strict=True)))
