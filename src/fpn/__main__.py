"""`python -m fpn` is `fpn`."""

from fpn.lit.cli import main

if __name__ == "__main__":
    main()
