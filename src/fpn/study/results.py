"""Runs as their folders tell: run.json what they are, scores.json and curves.json what came out."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeGuard

from fpn.errors import InputError


class Curve(NamedTuple):
    """Recall, in [0, 1], over something; NaN where there is no object."""

    x: tuple[float, ...]
    recall: tuple[float, ...]


class Curves(NamedTuple):
    """Recall of a run's proposals, as `fpn test` writes it to curves.json."""

    by_limit: Curve
    """Average recall over the number of proposals."""
    by_size: Curve
    """Average recall of 1000 proposals over octaves of objects' size, x their lower ends in pixels."""
    by_iou: Curve
    """Recall of 1000 proposals over IoU thresholds."""


class Run(NamedTuple):
    """One row of one table, trained from one seed."""

    folder: Path
    table: str
    row: str
    name: str
    seed: int
    family: str
    data: str
    anchors: int | None
    """How many anchors an image of 800 × 1000 pixels has, None where run.json does not say."""
    scores: dict[str, float] | None
    """The numbers of scores.json, NaN where there is no object; None for an unfinished run."""
    curves: Curves | None


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """All runs in these folders and below them, by path.

    Raises:
        InputError: a folder is missing or holds no run, a file cannot be read or lacks something, or two
            runs are of the same row and seed.
    """
    found: dict[Path, Run] = {}
    for folder in map(Path, folders):
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; give folders of runs")
        paths = sorted(folder.rglob("run.json"))
        if not paths:
            raise InputError(f"{folder}: no run.json in it or below it; give folders of runs")
        for path in paths:
            found.setdefault(path.resolve(), _run(path))
    runs = list(found.values())
    _refuse_doubles(runs)
    return runs


def _refuse_doubles(runs: Iterable[Run]) -> None:
    seen: dict[tuple[str, str, str, str, int], Path] = {}
    for run in runs:
        key = (run.table, run.row, run.family, run.data, run.seed)
        if key in seen:
            raise InputError(
                f"{seen[key]} and {run.folder}: both are {run.table}, row {run.row}, seed {run.seed} "
                f"({run.family}, {run.data}); leave one of them out"
            )
        seen[key] = run.folder


def _run(path: Path) -> Run:
    about, folder = _object(path), path.parent
    scores, curves = folder / "scores.json", folder / "curves.json"
    anchors = about.get("anchors")
    if anchors is not None and not _is_int(anchors):
        raise InputError(f"{path}: 'anchors' must be an integer; correct it or leave it out")
    text = {key: _text(about, key, path) for key in ("table", "row", "name", "family", "data")}
    return Run(
        folder,
        seed=_seed(about, path),
        anchors=anchors,
        scores=_scores(scores) if scores.exists() else None,
        curves=_curves(curves) if curves.exists() else None,
        **text,
    )


def _object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the file") from None
    except (ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(f"{path}: not JSON ({reason}); remove it or run again") from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: a JSON object is expected; remove it or run again")
    return content


def _text(about: Mapping[str, Any], key: str, path: Path) -> str:
    value = about.get(key)
    if not isinstance(value, str) or not value:
        raise InputError(f"{path}: {key!r} is missing or no text; every run.json needs it")
    return value


def _seed(about: Mapping[str, Any], path: Path) -> int:
    value = about.get("seed")
    if not _is_int(value):
        raise InputError(f"{path}: 'seed' is missing or no integer; every run.json needs it")
    return value


def _scores(path: Path) -> dict[str, float]:
    content = _object(path)
    content.pop("by_category", None)
    scores = {key: math.nan if value is None else value for key, value in content.items()}
    for key, value in scores.items():
        if not _is_number(value):
            raise InputError(f"{path}: {key!r} is no number; test the run again")
    return {key: float(value) for key, value in scores.items()}


def _curves(path: Path) -> Curves:
    content = _object(path)
    return Curves(
        _curve(content, "by_limit", "limits", "AR", path),
        _curve(content, "by_size", "from", "AR@1000", path),
        _curve(content, "by_iou", "thresholds", "recall@1000", path),
    )


def _curve(content: Mapping[str, Any], name: str, x: str, recall: str, path: Path) -> Curve:
    part = content.get(name)
    across, up = (part.get(key) if isinstance(part, dict) else None for key in (x, recall))
    if isinstance(across, list) and isinstance(up, list) and len(across) == len(up):
        values = [math.nan if value is None else value for value in up]
        if all(map(_is_number, [*across, *values])):
            return Curve(tuple(map(float, across)), tuple(map(float, values)))
    raise InputError(
        f"{path}: {name!r} must hold the lists {x!r} and {recall!r}, equally long; test the run again"
    )


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    """Whether this is a number or NaN."""
    return isinstance(value, int | float) and not isinstance(value, bool) and not math.isinf(value)
