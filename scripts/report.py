"""`python scripts/report.py` is `fpn report`: set the results beside the paper's."""

import sys

from fpn.lit.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])
