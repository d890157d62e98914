"""`python scripts/ablate.py` is `fpn ablate`: run the rows of the paper's tables."""

import sys

from fpn.console import mistakes
from fpn.study.commands import ablate

if __name__ == "__main__":
    with mistakes("ablate.py"):
        sys.exit(ablate(sys.argv[1:]))
