"""Measure what a reader of the paper asks next, of the detectors of a study.

Of each run of a feature pyramid with an RPN: the aliasing of its merged maps, before and after the 3×3; how
its finest map and its boxes change when the picture moves by 1 to 8 pixels; how alike its levels are.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from fpn.analysis.answers import answers
from fpn.console import mistakes
from fpn.errors import InputError
from fpn.files import replacing
from fpn.study.results import Run, read_runs


def main() -> None:
    """Measure, write, print; a user's mistake ends in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="example: python scripts/questions.py runs/framed --data datasets/framed "
        "--rows c c_no_smoothing d",
    )
    parser.add_argument("runs", metavar="RUNS", help="folder of a study")
    parser.add_argument("--data", required=True, help="a data set in COCO's layout, whose val2017 is read")
    parser.add_argument(
        "--rows",
        nargs="+",
        default=["c", "c_no_smoothing", "d"],
        help="rows of Table 1 with P2 to P5 (default: %(default)s)",
    )
    parser.add_argument("--images", type=int, default=32, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--out", default="questions.json", help="the file to write (default: %(default)s)")
    given = parser.parse_args()
    with mistakes("questions.py"):
        told = measured(given.runs, Path(given.data), given.rows, given.images, Path(given.out))
    table = Table(title="P2 when the picture moves by 4 pixels, and how alike P2 and P3 are")
    for name in ("data", "row", "seed", "P2 changes", "boxes lost", "an octave alike", "objectness alike"):
        table.add_column(name)
    for one in told:
        drift, like = one["drifts"]["4"], one["likeness"]["2-3"]
        numbers = (drift["map"], drift["lost"], like["octave"], like["objectness"])
        cells = ["-" if x is None else f"{x:.3f}" for x in numbers]
        table.add_row(one["data"], one["row"], str(one["seed"]), *cells)
    Console().print(table)
    print(f"written to {given.out}")


def measured(runs: str, data: Path, rows: Sequence[str], images: int, out: Path) -> list[dict[str, Any]]:
    """What is found of each finished run, written to a file as it is found.

    Raises:
        InputError: there is no finished run of a row, runs are of several data sets, one is no feature
            pyramid on P2 to P5 or of other categories than the data, or the file to write is a folder.
    """
    if out.is_dir():
        raise InputError(f"{out} is a folder: give a file to write, as --out {out / 'questions.json'}")
    found = [r for r in read_runs([runs]) if r.table == "table1" and r.row in rows and r.scores is not None]
    if missing := set(rows) - {run.row for run in found}:
        raise InputError(f"{runs} has no finished run of table1, row {', '.join(sorted(missing))}")
    if len(sets := {run.data for run in found}) > 1:
        raise InputError(f"{runs} has runs on {' and on '.join(sorted(sets))}: give one study's")
    out.parent.mkdir(parents=True, exist_ok=True)
    told = []
    for run in found:
        told.append(_about(run) | answers(run.folder / "last.ckpt", data, images))
        with replacing(out) as file:  # after each: what goes wrong later loses none of them
            file.write_text(json.dumps(told, indent=1, allow_nan=False))
    return told


def _about(run: Run) -> dict[str, str | int]:
    return {"data": run.data, "family": run.family, "row": run.row, "name": run.name, "seed": run.seed}


if __name__ == "__main__":
    main()
