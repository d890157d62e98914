"""Run the rows of the paper's tables, here or as a SLURM array job.

The same command again goes on where it was.
"""

import argparse
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from fpn.console import mistakes
from fpn.study import runner, slurm
from fpn.study.places import check_room, places
from fpn.study.rows import FAMILIES, TABLES, plan

EXAMPLES = """
examples:
  every row, on data that the project draws itself
    python scripts/ablate.py table1 --data shapes
  three tables one after the other
    python scripts/ablate.py table1 table2 table3 --data shapes
  some rows, three times each; only say what would be done
    python scripts/ablate.py table1 --rows c d e --seeds 0 1 2 --dry-run
  8 GPUs for each run, COCO elsewhere than in datasets/coco
    python scripts/ablate.py table3 --devices_per_run 8 -- --data.root /data/coco
  a SLURM array job, an index for each row and seed
    python scripts/ablate.py table1 --seeds 0 1 2 --slurm partition=gpu time=24:00:00

Each run has a folder OUT/TABLE/ROW/..., with log.txt, run.json, and at the end scores.json. What is finished
is not run again, what was interrupted goes on from its last checkpoint, and several of these commands may
work on one OUT. `python scripts/report.py OUT` sets the results beside the paper's.
"""


def main() -> int:
    """Parse, plan, run."""
    words, given = split(sys.argv[1:])
    options = parser().parse_args(words)
    with mistakes("ablate.py"):
        return ablate(options, given)


def split(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """What is meant for this command, and what follows `--`."""
    end = words.index("--") if "--" in words else len(words)
    return list(words[:end]), list(words[end + 1 :])


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(
        usage="%(prog)s TABLE [TABLE ...] [options] [-- arguments of `fpn fit`]",
        description=__doc__,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = options.add_argument
    add("tables", nargs="+", metavar="TABLE", help=f"which of the paper's experiments: {', '.join(TABLES)}")
    add("--rows", nargs="+", default=[], metavar="ROW", help="only these rows of one table; by default all")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="a run for each; by default 0")
    add("--data", default="coco", metavar="DATA", help="coco (the default), shapes, framed, or FILE.yaml")
    add("--family", default="paper", choices=FAMILIES, help="which recipe; by default the paper's")
    add("--out", default="runs/study", metavar="OUT", help="folder of the study; by default %(default)s")
    add(
        "--jobs",
        type=int,
        metavar="N",
        help="runs at a time; by default as many as the visible GPUs suffice for, "
        "on the CPU one; with --slurm all",
    )
    add(
        "--devices_per_run",
        type=int,
        default=1,
        metavar="K",
        help="GPUs of each run, 0 for none; by default 1",
    )
    add("--wandb", action="store_true", help="a W&B dashboard of each training")
    add(
        "--slurm",
        nargs="*",
        metavar="KEY=VALUE",
        help="submit as an array job, with these options of sbatch (partition=gpu time=24:00:00 ...)",
    )
    add(
        "--dry-run",
        action="store_true",
        help="print what would be done, with the full commands, and do nothing",
    )
    return options


def ablate(options: argparse.Namespace, given: Sequence[str]) -> int:
    """Do as the options say; the exit status."""
    tasks = plan(
        options.tables,
        rows=options.rows,
        seeds=options.seeds,
        family=options.family,
        data=options.data,
        out=options.out,
        wandb=options.wandb,
        given=given,
    )
    if options.slurm is not None:
        check_room(options.jobs, options.devices_per_run)
        runs = dict.fromkeys(
            (table, row, seed)
            for seed in options.seeds
            for table in options.tables
            for row in options.rows or TABLES[table]
        )
        return submit(options, [command(options, *run, given) for run in runs])
    if options.dry_run:
        runner.describe(tasks, options.out)
        return 0
    return runner.run(tasks, options.out, places(options.jobs, options.devices_per_run))


def command(options: argparse.Namespace, table: str, row: str, seed: int, given: Sequence[str]) -> list[str]:
    """This command for one row and seed."""
    words = [
        sys.executable,
        str(Path(__file__).resolve()),
        table,
        "--rows",
        row,
        "--seeds",
        str(seed),
    ]
    for name in ("data", "family", "out", "devices_per_run"):
        words += [f"--{name}", str(getattr(options, name))]
    words += ["--jobs", "1"] + (["--wandb"] if options.wandb else [])
    return words + (["--", *given] if given else [])


def submit(options: argparse.Namespace, commands: Sequence[Sequence[str]]) -> int:
    """Make the array job of some commands, and submit or, on a dry run, print it."""
    folder, name = Path(options.out) / "slurm", "-".join(options.tables)
    text = slurm.script(name, commands, folder, options.slurm, options.devices_per_run, at_once=options.jobs)
    if options.dry_run:
        print(text)
        return 0
    path = folder / f"{name}-{datetime.now():%Y%m%d-%H%M%S}.sh"
    print(f"{slurm.submit(text, path)}: {len(commands)} runs by {path}; their output goes to {folder}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
