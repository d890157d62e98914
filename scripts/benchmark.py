"""Ours against torchvision on this machine: the same outputs first, then how long each takes, in turns.

    python scripts/benchmark.py infer                       # also train, roi, data, score, waits, …
    python scripts/benchmark.py infer --images val2017 --number 8 --json infer.json
    python scripts/benchmark.py train --device cuda --precision bf16 --batch 8

Prints Markdown: median, least and greatest time, memory, and how many times faster ours is.
Exit status 1: the outputs disagree, which a line tells in place of times; 2: bad arguments.
"""

import shlex
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from jsonargparse import auto_cli

from benchmarks.comparison import DisagreementError
from benchmarks.export import export
from benchmarks.infer import infer
from benchmarks.parts import data, roi, score
from benchmarks.scaling import scaling
from benchmarks.train import train
from benchmarks.waits import waits
from fpn.console import mistakes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the arguments name, and print what it finds."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mistakes("benchmark.py"):
        try:
            run = auto_cli(
                [infer, train, roi, data, score, scaling, waits, export], args=given, as_positional=False
            )
        except DisagreementError as error:
            sys.exit(f"benchmark.py: the outputs disagree, so no times are given: {error}")
        except BrokenProcessPool:
            sys.exit("benchmark.py: the process of a side ended; is memory short?")
        print(run.report(shlex.join(["python", "scripts/benchmark.py", *given])))


if __name__ == "__main__":
    main()
