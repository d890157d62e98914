"""`python scripts/report.py RUNS...`: the paper's numbers beside those of our runs, and curves of recall."""

import argparse

from fpn.console import mistakes
from fpn.study.report import write_report


def main() -> None:
    """Write the report; a user's mistake ends in one line and exit status 2."""
    parser = argparse.ArgumentParser(
        description="Set the paper's numbers beside those of our runs: write OUT/report.md and figures "
        "beside it, and print the main columns.",
        epilog="Each table, family and data set is a section of its own; several seeds of a row are "
        "averaged; runs that are not finished yet are named as such. "
        "Example: python scripts/report.py runs/study",
    )
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUNS",
        help="a folder; every folder in it with a run.json, at any depth, is a run, finished if it has a "
        "scores.json",
    )
    parser.add_argument("--out", default="report", help="the folder to write to (default: %(default)s)")
    given = parser.parse_args()
    with mistakes("report.py"):
        write_report(given.runs, given.out)


if __name__ == "__main__":
    main()
