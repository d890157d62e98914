"""A task's log: what its steps print, and what of it is told while they run and when they fail."""

import os
import re
import shlex
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

_PROGRESS = re.compile(r"epoch \d+, step |validated \d|tested \d|step [\d,]+: ")
_LOSSES = re.compile(r"^(epoch .*?): .*\b(loss \S+).*$")


class Log:
    """A file to which steps are appended, each under a heading of when, where and what was run.

    Args:
        path: of the file, which need not be there.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._start = 0  # of the last step, in bytes

    def begin(self, command: Sequence[str]) -> BinaryIO:
        """Write the heading of a step, of which `news` and `complaint` tell from now on.

        Returns:
            The file, to be closed by the caller; what is printed belongs after its end.
        """
        at = time.strftime("%Y-%m-%d %H:%M:%S")
        file = self.path.open("ab")
        file.write(f"\n[{at}, {socket.gethostname()}]\n$ {shlex.join(command)}\n".encode())
        file.flush()
        self._start = file.tell()
        return file

    def news(self) -> str:
        """The step's last line of progress, of its losses only the sum; empty without one."""
        lines = (line for line in reversed(self._lines(8192)) if _PROGRESS.match(line))
        line = " ".join(next(lines, "").split())
        return _LOSSES.sub(r"\1: \2", line)

    def complaint(self) -> str:
        """What the step gives as the reason of its failure: its last line with "fpn: ", or else the last."""
        lines = [line for line in self._lines(1 << 20) if line]
        ours = [line for line in lines if line.startswith("fpn: ")]
        return next(iter((ours or lines)[-1:]), "nothing was printed")

    def _lines(self, size: int) -> list[str]:
        """The step's, of the last `size` bytes."""
        try:
            with self.path.open("rb") as file:
                end = file.seek(0, os.SEEK_END)
                file.seek(max(self._start, end - size))
                text = file.read().decode(errors="replace")
        except OSError:
            return []  # no log yet; and a look at it must not end what it tells of
        return [line.strip() for line in re.split("[\r\n]", text)]
