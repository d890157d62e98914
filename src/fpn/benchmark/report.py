"""What was measured, as a dictionary for JSON; and that dictionary as Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fpn.benchmark.sides import ratio
from fpn.benchmark.work import Memory

PARTS = ("report", "machine", "settings", "agreement", "notes", "cases", "tables")


@dataclass
class Measured:
    """A side of a case: seconds a unit of each repetition that counts."""

    side: str
    seconds: list[float]
    memory: Memory


@dataclass
class Case:
    """One piece of work, done by the peer and, last, by us."""

    title: str
    unit: str
    """What the seconds are of, as image."""
    sides: list[Measured]
    gflop: float | None = None
    """Of a unit."""
    peak_gflops: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """With medians, speeds and ratios; None is what is not known."""
        return {
            "title": self.title,
            "unit": self.unit,
            "gflop": self.gflop,
            "peak_gflops": self.peak_gflops,
            "sides": [self._side(one) for one in self.sides],
        }

    def _side(self, one: Measured) -> dict[str, Any]:
        seconds = statistics.median(one.seconds)
        speed = None if self.gflop is None else self.gflop / seconds
        return {
            "side": one.side,
            "seconds": seconds,
            "seconds_min": min(one.seconds),
            "seconds_max": max(one.seconds),
            "per_second": 1 / seconds,
            "gflops": speed,
            "share_of_peak": speed / self.peak_gflops if speed and self.peak_gflops else None,
            "memory_before_mb": _known(one.memory.before),
            "memory_peak_mb": _known(one.memory.peak),
            "ratio": ratio(one.seconds, self.sides[-1].seconds),
            "all_seconds": one.seconds,
        }


@dataclass
class Table:
    """Numbers over a growing amount of work."""

    title: str
    columns: list[str]
    rows: list[list[Any]]


@dataclass
class Report:
    """All of a run of the benchmark."""

    name: str
    machine: Mapping[str, str]
    settings: Mapping[str, Any]
    agreement: list[str]
    """What the outputs have in common, a line for each comparison."""
    json: str | None = None
    """File to write it to."""
    notes: list[str] = field(default_factory=list)
    cases: list[Case] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """For JSON; `markdown` shows the same."""
        values = (
            self.name,
            dict(self.machine),
            dict(self.settings),
            self.agreement,
            self.notes,
            [case.as_dict() for case in self.cases],
            [vars(table) for table in self.tables],
        )
        return dict(zip(PARTS, values, strict=True))


def markdown(report: Mapping[str, Any]) -> str:
    """A report's dictionary, with the `command` that made it, as text for people."""
    blocks = [f"## {report['report']}", f"`{report['command']}`"]
    for case in report["cases"]:
        blocks += [f"**{case['title']}**", _case(case)]
        if case["gflop"] and case["peak_gflops"]:
            blocks.append(
                f"GFLOP / {case['unit']}: {_number(case['gflop'])}, of the peer's convolutions and matrix"
                f" products. Peak: {_number(case['peak_gflops'])} GFLOP/s, of `torch.mm` on this machine."
            )
    for table in report["tables"]:
        rows = [[_number(value) for value in row] for row in table["rows"]]
        blocks += [f"**{table['title']}**", _table(table["columns"], rows)]
    lines = [f"- Outputs agree: {line}" for line in report["agreement"]]
    lines += [f"- {line}" for line in report["notes"]]
    for part in ("settings", "machine"):
        shown = ", ".join(f"{k} {v}" for k, v in report[part].items() if v is not None)
        lines.append(f"- {part.capitalize()}: {shown}")
    return "\n\n".join([*blocks, "\n".join(lines)])


def _case(case: Mapping[str, Any]) -> str:
    unit, sides = case["unit"], case["sides"]
    columns = {
        "side": lambda s: s["side"],
        f"s / {unit}": lambda s: _number(s["seconds"]),
        "min – max": lambda s: f"{_number(s['seconds_min'])} – {_number(s['seconds_max'])}",
        f"{unit}s / s": lambda s: _number(s["per_second"]),
        "GFLOP/s": lambda s: _number(s["gflops"]),
        "of peak": lambda s: "" if s["share_of_peak"] is None else f"{100 * s['share_of_peak']:.0f} %",
        "MB before": lambda s: _number(s["memory_before_mb"]),
        "MB at peak": lambda s: _number(s["memory_peak_mb"]),
        "its time / ours": lambda s: f"{s['ratio']:.2f}",
    }
    rows = [[show(side) for show in columns.values()] for side in sides]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    return _table([list(columns)[i] for i in kept], [[row[i] for i in kept] for row in rows])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---", *["--:"] * (len(columns) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _number(value: Any) -> str:
    """Three digits that count, at least; nothing for None."""
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) or abs(value) >= 100:
        return f"{value:,.0f}"
    decimals = 2 - math.floor(math.log10(abs(value))) if value else 0
    return f"{value:.{min(decimals, 7)}f}"


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
