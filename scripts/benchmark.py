"""Ours against torchvision on this machine: the same outputs first, then how long each takes, in turns.

    python scripts/benchmark.py infer                              # also train, roi, data, score, scaling
    python scripts/benchmark.py infer --images val2017 --number 8 --json infer.json
    python scripts/benchmark.py train --device cuda --precision bf16 --batch 8
    python scripts/benchmark.py scaling --plot scaling.png

Prints Markdown: median, least and greatest time, ratio, share of the machine's measured peak, and memory.
Exit status 1: the outputs disagree, which a line tells in place of times; 2: bad arguments.
"""

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import auto_cli

from fpn.benchmark.data import data
from fpn.benchmark.infer import infer
from fpn.benchmark.report import markdown
from fpn.benchmark.roi import roi
from fpn.benchmark.scaling import scaling
from fpn.benchmark.score import score
from fpn.benchmark.train import train
from fpn.benchmark.work import BenchmarkError
from fpn.console import mistakes


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark that the arguments name, print it, and write it to the JSON file they name."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mistakes("benchmark.py"):
        try:
            report = auto_cli([infer, train, roi, data, score, scaling], args=given, as_positional=False)
        except BenchmarkError as error:
            print(f"benchmark.py: {error}", file=sys.stderr)
            sys.exit(1)
        content = {"command": shlex.join(["python", "scripts/benchmark.py", *given])} | report.as_dict()
        print(markdown(content))
        if report.json is not None:
            Path(report.json).write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
