"""`python scripts/ablate.py` is `fpn ablate`: run the rows of the paper's tables."""

import sys

from fpn.lit.cli import main

if __name__ == "__main__":
    main(["ablate", *sys.argv[1:]])
