"""What a person sees of a command: it runs on a terminal, whose screen is read at the end."""

import fcntl
import os
import pty
import struct
import termios
import threading
from collections.abc import Sequence
from contextlib import suppress

import pyte
from processes import Started


def screen(words: Sequence[str], columns: int, status: int = 0) -> list[str]:
    """The lines of a terminal so wide when `fpn` has ended so; those that scrolled away too."""
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 60, columns, 0, 0))
    terminal = pyte.HistoryScreen(columns, 60, history=10_000)
    stream = pyte.ByteStream(terminal)

    def read() -> None:
        with suppress(OSError):  # at the end of all who write
            while content := os.read(ours, 4096):
                stream.feed(content)

    reader = threading.Thread(target=read)
    variables = {"TERM": "xterm-256color", "COLUMNS": "", "LINES": ""}
    with Started(words, environment=variables, output=os.ttyname(its)) as started:
        reader.start()
        ended = started.status()
        os.close(its)
        reader.join(10)
    os.close(ours)
    above = ["".join(line[k].data for k in range(columns)) for line in terminal.history.top]
    lines = [line.rstrip() for line in [*above, *terminal.display]]
    assert ended == status, "\n".join(lines)
    return lines
