"""Measure what a reader of the paper asks next, of the detectors of a study.

Of each run of a feature pyramid with an RPN: the aliasing of its merged maps, before and after the 3×3; how
its finest map and its boxes change when the picture moves by 1 to 8 pixels; how alike its levels are.
"""

import argparse
import json
import sys
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fpn.analysis.answers import answers
from fpn.errors import InputError
from fpn.study.results import Run, read_runs


def main() -> int:
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
        "--rows", nargs="+", default=["c", "c_no_smoothing", "d"], help="of Table 1 (default: %(default)s)"
    )
    parser.add_argument("--images", type=int, default=32, metavar="N", help="how many (default: %(default)s)")
    parser.add_argument("--out", default="questions.json", help="the file to write (default: %(default)s)")
    given = parser.parse_args()
    try:
        runs = [r for r in read_runs([given.runs]) if r.table == "table1" and r.row in given.rows]
        if not runs:
            raise InputError(f"{given.runs} has no run of table1, rows {', '.join(given.rows)}")
        told = [
            _about(run) | answers(run.folder / "last.ckpt", Path(given.data), given.images) for run in runs
        ]
    except InputError as error:
        print(f"questions.py: {error}", file=sys.stderr)
        return 2
    Path(given.out).write_text(json.dumps(told, indent=1))
    table = Table(title="Aliasing of P2, and the likeness of P2 and P3")
    for name in ("row", "seed", "above 1/4\nbefore", "after", "block edges\nbefore", "after"):
        table.add_column(name)
    for name in ("P2 moved\nby 4 px", "boxes lost", "an octave\nalike", "objectness"):
        table.add_column(name)
    for one in told:
        above, edges = one["above_quarter"]["2"], one["block_edges"]["2"]
        drift, like = one["drifts"]["4"], one["likeness"]["2-3"]
        numbers = (
            above["nearest"],
            above["smoothed"],
            edges["nearest"],
            edges["smoothed"],
            drift["map"],
            drift["lost"],
            like["octave"],
            like["objectness"],
        )
        table.add_row(one["row"], str(one["seed"]), *(f"{x:.3f}" for x in numbers))
    Console().print(table)
    print(f"written to {given.out}")
    return 0


def _about(run: Run) -> dict[str, str | int]:
    return {"row": run.row, "name": run.name, "seed": run.seed}


if __name__ == "__main__":
    sys.exit(main())
