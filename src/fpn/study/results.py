"""Runs as their folders tell: run.json what they are, scores.json and curves.json what came out.

Many runs also fit into four CSV files, which a folder of results keeps: runs.csv has a row a run;
by_limit.csv, by_size.csv and by_iou.csv a row a point.
"""

import csv
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fpn.errors import InputError
from fpn.files import replacing

Curves = Mapping[str, Mapping[str, Sequence[float]]]
"""Recall of a run's proposals, from 0 to 1, as `fpn test` writes it to curves.json.

by_limit has AR over `limits`, numbers of proposals. by_size has AR@100 and AR@1000 over octaves of objects'
√area, `from` and `to` pixels, with the number of `objects`. by_iou has recall@100 and recall@1000 over IoU
`thresholds`. NaN stands where there is no object.
"""
_CURVES = ("by_limit", "by_size", "by_iou")


class Run(NamedTuple):
    """One row of one table, trained from one seed."""

    folder: Path
    """Of a run that was read from CSV files, the name it has there."""
    table: str
    row: str
    name: str
    seed: int
    family: str
    data: str
    anchors: int | None
    """How many anchors an image of 800 × 1000 pixels has, None where it is not known."""
    setting: str
    """The machine, of times; else empty."""
    scores: dict[str, float] | None
    """The numbers of scores.json, NaN where there is no object; None for an unfinished run."""
    curves: Curves | None


_ABOUT = ("run", "table", "row", "name", "seed", "family", "data", "anchors", "setting")


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """All runs in these folders and below them, by path.

    Args:
        folders: each with a runs.csv, as `write_csv` makes it, or with a run.json at any depth.

    Raises:
        InputError: a folder is missing or holds no run, a file cannot be read or lacks something, or two
            runs are of the same row and seed.
    """
    found: dict[Path, Run] = {}
    seen: dict[tuple[str, str, str, str, int], Path] = {}
    # What was read from CSV files has the name of a folder that may be there too, with another run.
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give folders of runs")
        if (folder / "runs.csv").is_file():
            found |= {folder.resolve() / run.folder: run for run in _from_csv(folder)}
            continue
        paths = sorted(folder.rglob("run.json"))
        if not paths:
            raise InputError(f"{folder}: no run.json in it or below it; give folders of runs")
        for path in paths:
            found.setdefault(path.parent.resolve(), _from_folder(path.parent))
    for path, run in found.items():
        key = (run.table, run.row, run.family, run.data, run.seed)
        if seen.setdefault(key, path) != path:
            raise InputError(
                f"{seen[key]} and {path}: both are {run.table}, row {run.row}, seed {run.seed} "
                f"({run.family}, {run.data}); leave one of them out"
            )
    return list(found.values())


def write_csv(runs: Iterable[Run], folder: Path) -> None:
    """Write what is known of some runs into the four CSV files of a folder.

    Raises:
        InputError: it is a folder of runs, which these files would hide from `read_runs`.
    """
    if folder.is_dir() and next(folder.rglob("run.json"), None) is not None:
        raise InputError(f"--csv {folder}: it has runs, which its CSV files would hide; give another folder")
    runs = list(runs)
    names = sorted({name for run in runs for name in run.scores or {}})
    rows = [dict(zip(_ABOUT, run[:-2], strict=True)) | (run.scores or {}) for run in runs]
    _write(folder / "runs.csv", (*_ABOUT, *names), rows)
    for curve in _CURVES:
        points = [
            {"run": run.folder} | dict(zip(run.curves[curve], point, strict=True))
            for run in runs
            if run.curves is not None
            for point in zip(*run.curves[curve].values(), strict=True)
        ]
        _write(folder / f"{curve}.csv", list(points[0]) if points else ("run",), points)


def _from_folder(folder: Path) -> Run:
    about = _object(folder / "run.json")
    scores, curves = folder / "scores.json", folder / "curves.json"
    told = _object(scores) if scores.exists() else None
    numbers = None if told is None else {k: v for k, v in told.items() if isinstance(v, int | float)}
    try:
        return Run(
            folder,
            **{key: about[key] for key in ("table", "row", "name", "seed", "family", "data")},
            anchors=about.get("anchors"),
            setting=about.get("setting", ""),
            scores=numbers,
            curves=_object(curves) if curves.exists() else None,
        )
    except KeyError as error:
        raise InputError(f"{folder / 'run.json'}: {error} is missing; every run.json needs it") from None


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise InputError(f"{path}: not JSON ({error}); remove it or run again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object is expected; remove it or run again")
    numbers: dict[str, Any] = _with_nan(content)
    return numbers


def _with_nan(content: Any) -> Any:
    """With NaN for null, which JSON has in its place."""
    if isinstance(content, dict):
        return {key: _with_nan(value) for key, value in content.items()}
    if isinstance(content, list):
        return [_with_nan(value) for value in content]
    return math.nan if content is None else content


def _from_csv(folder: Path) -> Iterator[Run]:
    curves: dict[str, dict[str, dict[str, list[float]]]] = {}
    for curve in _CURVES:
        for point in _read(folder / f"{curve}.csv"):
            columns = curves.setdefault(point.pop("run"), {}).setdefault(curve, {})
            for name, value in point.items():
                columns.setdefault(name, []).append(int(value) if value.isdigit() else float(value))
    for row in _read(folder / "runs.csv"):
        run, table, key, name, seed, family, data, anchors, setting = (row.pop(column) for column in _ABOUT)
        scores = {name: float(value) for name, value in row.items() if value}
        number = int(anchors) if anchors else None
        about = (Path(run), table, key, name, int(seed), family, data, number, setting)
        yield Run(*about, scores or None, curves.get(run))


def _read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def _write(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, object]]) -> None:
    with replacing(path) as new, new.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
