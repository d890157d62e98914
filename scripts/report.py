"""`python scripts/report.py` is `fpn report`: set the results beside the paper's."""

import sys

from fpn.console import mistakes
from fpn.study.commands import report

if __name__ == "__main__":
    with mistakes("report.py"):
        sys.exit(report(sys.argv[1:]))
