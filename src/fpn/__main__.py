"""`python -m fpn` is `fpn`."""

from fpn.lit.cli import main

main()
