"""The terminal, or the files that standard output and standard error are sent to."""

import errno
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from rich.console import Console

from fpn.errors import InputError


def say(line: str) -> None:
    """Print a line as it is: not wrapped, and with its square brackets, which a path or a name may have."""
    Console().print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def mistakes(program: str) -> Iterator[None]:
    """End the program with one line and exit status 2 where a mistake of its user's comes through."""
    try:
        yield
    except (InputError, OSError) as error:
        line = str(error) if isinstance(error, InputError) else refused(error)
        if line is None:
            raise
        print(f"{program}: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def refused(error: OSError) -> str | None:
    """What the system refused, in one line; None where it names no file and the disk is not full."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"a file cannot be written: {error.strerror}"
    return None


def leave_terminal() -> None:
    """Send output that does not go to a file nowhere: after SIGHUP, to write to a terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # of an output that is closed
            if not stat.S_ISREG(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
