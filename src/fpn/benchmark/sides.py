"""Processes that repeat a piece of work on request, one at a time.

Each side of a comparison is a process of its own, since neither the allocator nor the peak of memory can be
told apart within one. All are alive at once and take turns, so that what else the machine does meets all.
"""

import contextlib
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fpn.benchmark.work import BenchmarkError, Memory, Setup, serve


@dataclass
class Side:
    """A running side, seen from the process that asks."""

    name: str
    kept: bool
    """Whether its allocator could be set."""
    process: Any
    connection: Any

    def run(self, *point: Any) -> float:
        """Repeat the work once; its seconds."""
        return float(self._ask("run", *point))

    def outputs(self, folder: Path, *point: Any) -> Any:
        """What the work yields, passed through a file so that the side's peak of memory is its work's."""
        file = folder / f"{self.name}.pt"
        self._ask("outputs", str(file), *point)
        return torch.load(file, weights_only=True)

    def flops(self, *point: Any) -> int:
        """Floating-point operations of a repetition, of its convolutions and matrix products."""
        return int(self._ask("flops", *point))

    def memory(self) -> Memory:
        """So far."""
        return Memory(*self._ask("memory"))

    def _ask(self, *request: Any) -> Any:
        with self._alive():
            self.connection.send(request)
            answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer

    def ready(self) -> None:
        """Wait until it is prepared."""
        with self._alive():
            answer = self.connection.recv()
        if isinstance(answer, Exception):
            raise answer
        self.kept = answer

    @contextlib.contextmanager
    def _alive(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, ConnectionError):
            self.process.join(5)
            raise BenchmarkError(
                f"the process of {self.name!r} ended with status {self.process.exitcode}; is memory short?"
            ) from None


@contextlib.contextmanager
def started(setups: Sequence[Setup], device: str = "cpu", threads: int | None = None) -> Iterator[list[Side]]:
    """The sides, prepared and waiting; they end with the context.

    Args:
        setups: what they are.
        device: where their work runs, as cpu or cuda.
        threads: of PyTorch in each; its default if None.

    Raises:
        InputError: a side's preparation says so.
        BenchmarkError: a side cannot be prepared.
    """
    context = multiprocessing.get_context("spawn")
    sides: list[Side] = []
    try:
        for setup in setups:
            here, there = context.Pipe()
            process = context.Process(target=serve, args=(there, setup, device, threads), daemon=True)
            process.start()
            there.close()
            sides.append(Side(setup.name, False, process, here))
        for side in sides:
            side.ready()
        yield sides
    finally:
        for side in sides:
            side.connection.close()
            side.process.terminate()
            side.process.join()


def take_turns(
    sides: Sequence[Side], rounds: int, points: Sequence[Any] = (), told: Callable[[], object] = lambda: None
) -> dict[tuple[Any, ...], list[float]]:
    """The seconds of `rounds` repetitions of each side, by (name,) or (name, point).

    Each round asks every side once for each point; the order of the sides turns about from round to round.

    Args:
        sides: at least one.
        rounds: how many.
        points: where the work is repeated; none where there is but one.
        told: called after every repetition.
    """
    seconds: dict[tuple[Any, ...], list[float]] = {}
    for number in range(rounds):
        for point in [(point,) for point in points] if points else [()]:
            for side in sides if number % 2 == 0 else reversed(sides):
                seconds.setdefault((side.name, *point), []).append(side.run(*point))
                told()
    return seconds


def ratio(peer: Sequence[float], ours: Sequence[float]) -> float:
    """How many times faster ours is, by the medians."""
    return statistics.median(peer) / statistics.median(ours)
