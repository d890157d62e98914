"""`fpn ablate` runs the rows of the paper's tables, `fpn report` sets the results beside the paper's."""

import argparse
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpn.console import say
from fpn.errors import InputError
from fpn.study import pool, slurm
from fpn.study.rows import FAMILIES, SCALES, TABLES, plan
from fpn.study.tasks import Task
from fpn.words import spelled_out

_ABLATE = """Run the rows of the paper's tables, here or on a SLURM cluster.

Each run has a folder OUT/TABLE/ROW/..., with log.txt, run.json, and at the end scores.json. The
same command again passes over what is finished and goes on with what was interrupted.
`fpn report OUT` sets the results beside the paper's.

examples:
  every row of three tables, on data that the project draws itself
    fpn ablate table1 table2 table3 --data shapes
  some rows, three times each, beside one of your own; only say what would be done
    fpn ablate table1 --rows c d ./c_panet.yaml --import panet --seeds 0 1 2 --dry-run
  the necks that came after FPN, on images drawn here
    fpn ablate necks --data framed
  what later work changes of the detector and its training, here two of them
    fpn ablate recipes --data shapes --rows plain cascade
  8 GPUs for each run, COCO elsewhere than in datasets/coco
    fpn ablate table3 --devices_per_run 8 -- --data.root /data/coco
  on a SLURM cluster, a job for each training, which starts when what it needs is there
    fpn ablate table1 --seeds 0 1 2 --slurm partition=gpu time=24:00:00
"""
_REPORT = """Set the paper's numbers beside those of our runs: write OUT/report.md and figures beside it.

Each table, family and data set is a section of its own. Several seeds of a row are averaged; runs
that are not finished yet are named as such.

examples:
  what `fpn ablate` has run
    fpn report runs/study
  the paper's other rows too, and the tables to W&B
    fpn report runs/study --all --wandb
"""


def ablate(arguments: Sequence[str]) -> int:
    """Run the rows of the paper's tables, here or on a SLURM cluster.

    Args:
        arguments: what follows `fpn ablate`.

    Returns:
        The exit status.

    Raises:
        InputError: what was asked for makes no sense, or was begun with other settings.
    """
    end = list(arguments).index("--") if "--" in arguments else len(arguments)
    options, given = _ablate_parser().parse_args(arguments[:end]), spelled_out(arguments[end + 1 :])
    if options.devices_per_run < 0 or (options.jobs is not None and options.jobs < 1):
        raise InputError("--jobs must be at least 1 and --devices_per_run at least 0")
    names = ("tables", "rows", "seeds", "family", "data", "out", "wandb", "devices_per_run")
    tasks = plan(**{name: getattr(options, name) for name in names}, given=given)
    if options.task is not None:
        tasks = [task for task in tasks if task.name == options.task]
        if not tasks:
            raise InputError(f"no task {options.task!r} among these rows; --dry-run lists them")
    if not options.dry_run:
        Path(options.out).mkdir(parents=True, exist_ok=True)
    if options.slurm is not None:

        def command(task: Task) -> list[str]:
            words = ["ablate", *_again(options), "--task", task.name, *(["--", *given] if given else [])]
            return [*pool.PROGRAM, *words]

        if given and (fits := [step for task in tasks for step in task.steps if step.name == "fit"]):
            pool.check(fits[0], pool.PROGRAM)
        how = options.slurm, options.devices_per_run, options.jobs, options.dry_run
        return slurm.submit(tasks, command, *how)
    if options.dry_run:
        pool.describe(tasks)
        return 0
    if options.task and options.devices_per_run and "SLURM_JOB_ID" in os.environ:
        pool.refuse_without_gpus()
    status = pool.run(tasks, pool.places(options.jobs, options.devices_per_run))
    if options.wandb and options.task is None and status in (0, 1):
        _to_wandb([options.out], options.out, options.tables)
    return status


def report(arguments: Sequence[str]) -> int:
    """Set the paper's numbers beside those of our runs.

    Args:
        arguments: what follows `fpn report`.

    Returns:
        The exit status, 0.

    Raises:
        InputError: there are no runs, or they cannot be read.
    """
    from fpn.study.report import write_report
    from fpn.study.results import read_runs, write_csv

    parser = _parser("report", _REPORT)
    add = parser.add_argument
    add("runs", nargs="+", metavar="RUNS", help="a folder with run.json files at any depth, or one of --csv")
    add("--out", default="report", help="the folder to write to (default: %(default)s)")
    add("--csv", metavar="FOLDER", help="write the numbers of the runs into CSV files there, and no report")
    add("--all", action="store_true", help="show the paper's rows that were not run too")
    add("--wandb", action="store_true", help="log the tables to W&B too, a run for each table of the paper")
    options = parser.parse_args(arguments)
    if options.csv is not None:
        write_csv(read_runs(options.runs), Path(options.csv))
    else:
        write_report(options.runs, options.out, options.all)
    if options.wandb:
        _to_wandb(options.runs, options.out)
    return 0


def _to_wandb(folders: Sequence[str], out: str, tables: Sequence[str] = ()) -> None:
    """Log the tables of the report, those named or all, in W&B runs whose files lie in `out`."""
    from fpn.lit.wandb import log_tables
    from fpn.study.results import read_runs
    from fpn.study.sections import sections_of

    Path(out).mkdir(parents=True, exist_ok=True)
    logged: dict[str, dict[str, Any]] = {}
    for section in sections_of(read_runs(folders)):
        if (not tables or section.table in tables) and any(row.finished for row in section.rows):
            name = re.sub(r"[^\w.]+", "_", f"{section.family} {section.data}")
            logged.setdefault(section.table, {})[f"report/{name}"] = section.numbers()
    for table, content in logged.items():
        log_tables(content, f"{table} report", table, out)
        say(f"{table}: logged to W&B, in the run {table} report: {', '.join(content)}")


def _parser(command: str, text: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(
        prog=f"fpn {command}",
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def _ablate_parser() -> argparse.ArgumentParser:
    parser = _parser("ablate", _ABLATE)
    parser.usage = "%(prog)s TABLE [TABLE ...] [options] [-- arguments of `fpn fit`]"
    add = parser.add_argument
    add("tables", nargs="+", metavar="TABLE", help=f"which of the experiments: {', '.join(TABLES)}")
    own = "a configuration file of your own is a row too, named by its first comment line"
    add("--rows", nargs="+", default=[], metavar="ROW", help=f"only these of one table; {own}")
    add("--seeds", nargs="+", type=int, default=[0], metavar="N", help="a run for each; by default 0")
    names = ", ".join(list(SCALES)[1:])
    add("--data", default="coco", metavar="DATA", help=f"coco (the default), {names}, or FILE.yaml")
    add("--family", default="paper", choices=FAMILIES, help="which recipe; by default the paper's")
    add("--out", default="runs/study", metavar="OUT", help="folder of the study; by default %(default)s")
    default = "by default as many as the visible GPUs suffice for, on the CPU one; with --slurm all"
    add("--jobs", type=int, metavar="N", help=f"runs at a time; {default}")
    add("--devices_per_run", type=int, default=1, metavar="K", help="GPUs of each run, 0 for none; default 1")
    add(
        "--wandb", action="store_true", help="a W&B dashboard of each run, and at the end the report's tables"
    )
    options = "partition=gpu time=24:00:00 ..."
    add("--slurm", nargs="*", metavar="KEY=VALUE", help=f"submit jobs, with options of sbatch ({options})")
    add("--task", metavar="NAME", help="only this task, as a job does; what it needs must be finished")
    add("--import", metavar="MODULE", help="import a module of your own, here and in every step")
    add("--dry-run", action="store_true", help="print what would be done, the full commands, and do nothing")
    return parser


def _again(options: argparse.Namespace) -> list[str]:
    """The words of a command that plans the same tasks, but for `--` and what follows it."""
    words = [*options.tables, "--seeds", *map(str, options.seeds), "--jobs", "1"]
    words += ["--rows", *options.rows] if options.rows else []
    for name in ("data", "family", "out", "devices_per_run"):
        words += [f"--{name}", str(getattr(options, name))]
    return words + (["--wandb"] if options.wandb else [])
