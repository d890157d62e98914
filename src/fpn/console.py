"""The terminal, or the files that standard output and standard error are sent to."""

import os
import stat
from contextlib import suppress

from rich.console import Console


def say(line: str) -> None:
    """Print a line as it is: not wrapped, and with its square brackets, which a path or a name may have."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


def leave_terminal() -> None:
    """Send output that does not go to a file nowhere: after SIGHUP, to write to a terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # of an output that is closed
            if not stat.S_ISREG(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
