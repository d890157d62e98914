"""The command line in processes of their own, without the wait for what they import.

A server that has imported it, and done nothing besides, forks them. They know nothing of the suite and its
modules.
"""

import multiprocessing
import os
import runpy
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["fpn.lit.lightning_cli", "fpn.lit.predict", "fpn.study.commands"])


class Started:
    """`fpn`, or a script, under way; stopped at the end of a `with`.

    Args:
        words: the command and its options, or the script's arguments.
        folder: the working directory; by default the suite's.
        environment: variables besides those of the suite.
        script: a file to run in the place of `fpn`.
        output: a file that all is written to; by default one of its own.
    """

    def __init__(
        self,
        words: Sequence[str],
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        script: Path | str | None = None,
        output: str | None = None,
    ) -> None:
        self._own = output is None
        if output is None:
            file, output = tempfile.mkstemp()
            os.close(file)
        self._output = output
        variables = {**os.environ, **(environment or {})}
        program = None if script is None else str(script)
        given = (program, list(words), str(folder or Path.cwd()), variables, self._output)
        self.process = _SERVER.Process(target=_run, args=given)
        self.process.start()

    def __enter__(self) -> "Started":
        return self

    def __exit__(self, *error: object) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self.process.kill()  # should it not have come so far
        self.process.join()
        if self._own:
            Path(self._output).unlink()

    @property
    def pid(self) -> int:
        """Of the process, and of the group of all that it starts."""
        assert self.process.pid is not None
        return self.process.pid

    def said(self) -> str:
        """All that was printed up to now."""
        return Path(self._output).read_text()

    def wait_for(self, text: str, seconds: float = 120) -> None:
        """Until that has been printed."""
        end = time.monotonic() + seconds
        while text not in self.said():
            assert self.process.is_alive(), self.said()
            assert time.monotonic() < end, self.said()
            time.sleep(0.005)

    def status(self, seconds: float = 200) -> int:
        """That with which it ended, for which this waits; of a signal that killed it, less than 0."""
        self.process.join(seconds)
        assert self.process.exitcode is not None, f"still running:\n{self.said()}"
        return self.process.exitcode


def run(
    words: Sequence[str],
    folder: Path | None = None,
    status: int = 0,
    environment: Mapping[str, str] | None = None,
) -> str:
    """What `fpn` prints before it ends with this status; the arguments are those of `Started`."""
    with Started(words, folder, environment) as started:
        assert started.status() == status, started.said()
        return started.said()


@contextmanager
def pair(
    words: Sequence[str], environment: Mapping[str, str] | None = None, script: Path | str | None = None
) -> Iterator[list[Started]]:
    """Two processes of one run, as torchrun or srun start them; `fpn` is told of it."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = {"MASTER_ADDR": "localhost", "MASTER_PORT": str(free.getsockname()[1])}
    if script is None:
        words = [*words, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    given = {**(environment or {}), **meeting}
    first, second = (Started(words, None, given | {"LOCAL_RANK": str(rank)}, script) for rank in range(2))
    with first, second:
        yield [first, second]


def together(
    words: Sequence[str],
    status: int = 0,
    environment: Mapping[str, str] | None = None,
    script: Path | str | None = None,
) -> list[str]:
    """What the two processes of a `pair` print before both end with this status."""
    with pair(words, environment, script) as both:
        found = [one.status() for one in both]
        said = [one.said() for one in both]
        assert found == [status] * 2, "\n".join(said)
        return said


def _run(script: str | None, words: list[str], folder: str, environment: dict[str, str], output: str) -> None:
    os.setsid()  # so that one signal reaches all that it starts
    written, nothing = os.open(output, os.O_WRONLY | os.O_APPEND), os.open(os.devnull, os.O_RDONLY)
    for number, file in enumerate((nothing, written, written)):
        os.dup2(file, number)
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(folder)
    tests = str(Path(__file__).parent)
    sys.path[:] = [entry for entry in sys.path if entry not in ("", tests)]
    sys.argv = [script or "fpn", *words]
    if script is not None:
        sys.path.insert(0, str(Path(script).parent))
        runpy.run_path(script, run_name="__main__")
    else:
        from fpn.lit.cli import main

        main()
