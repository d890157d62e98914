"""A run of the benchmark: the sides agree first, then they are timed in turns."""

import math
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from fpn.benchmark.machine import check_device, described, peak_gflops
from fpn.benchmark.report import Case, Measured, Report
from fpn.benchmark.sides import Side, started, take_turns
from fpn.benchmark.work import BenchmarkError, Setup, Work
from fpn.errors import InputError, positive

Precision = Literal["fp32", "bf16"]
Check = Callable[[Any, Any], str]
"""Compares the peer's outputs and ours: a line on how closely they agree, or DisagreementError."""

SYSTEM_ALLOCATOR = "The allocator could not be set here: all sides have the system's"
TF32 = "fp32 convolves in TF32 on the GPU, torch's default; the outputs were compared without"


class DisagreementError(BenchmarkError):
    """The sides do not yield the same; the message says what differs."""

    def __init__(self, message: str) -> None:
        super().__init__(f"the outputs disagree, so no times are given: {message}")


@dataclass(kw_only=True)
class Run:
    """What all comparisons have in common.

    Args:
        device: cpu or cuda.
        threads: of PyTorch in each process; null for its default.
        rounds: repetitions of each side that count, after one that does not.
        peer: whom to compare with.
        json: file to write all numbers to.

    Raises:
        InputError: no such device, or a number that is not positive.
    """

    device: str = "cpu"
    threads: int | None = None
    rounds: int = 5
    peer: Literal["torchvision"] = "torchvision"
    json: str | None = None

    agreement: list[str] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        check_device(self.device)
        if self.device != "cpu":
            self.notes.append(TF32)
        positive(rounds=self.rounds, threads=self.threads)
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise InputError(f"json {self.json}: there is no such folder to write to")

    def compare(
        self,
        title: str,
        theirs: Callable[[], Work],
        ours: Callable[[], Work],
        check: Check,
        number: int,
        unit: str = "image",
        precision: Precision | None = None,
    ) -> Case:
        """See that the outputs agree, then time both.

        Args:
            title: what the work is.
            theirs: prepares the peer's work, in a process of its own; can be pickled.
            ours: the same of ours.
            check: of the outputs.
            number: units of work in a repetition.
            unit: what the seconds are of.
            precision: of the work's matrix products, for its share of the peak; None for work without any.
        """
        peak = peak_gflops(self.device, precision, self.threads) if precision else None
        with self.sides(title, theirs, ours) as (sides, told):
            self.check(title, sides, check)
            take_turns(sides, 1, told=told)
            seconds = take_turns(sides, self.rounds, told=told)
            measured = [Measured(s.name, [t / number for t in seconds[(s.name,)]], s.memory()) for s in sides]
            # Last, since counting takes memory of its own.
            gflop = sides[0].flops() / number / 1e9 if precision else None
            told()
        return Case(title, unit, measured, gflop, peak)

    def check(self, title: str, sides: Sequence[Side], check: Check, *point: Any) -> None:
        """Compare what each of the peer's sides yields with what ours does, and note how it agrees."""
        with tempfile.TemporaryDirectory() as folder:
            *theirs, ours = (side.outputs(Path(folder), *point) for side in sides)
        lines = [check(one, ours) for one in theirs]
        self.agreement.append(f"{title}: {lines[0]}")

    @contextmanager
    def sides(
        self,
        title: str,
        theirs: Callable[[], Work],
        ours: Callable[[], Work],
        name: str | None = None,
        allocators: bool = True,
        steps: int | None = None,
    ) -> Iterator[tuple[list[Side], Callable[[], object]]]:
        """The running sides, ours last, and what to call after each step of what is done with them.

        Args:
            title: of the progress.
            theirs: as of `compare`.
            ours: as of `compare`.
            name: of the peer, where it is not the one of `peer`.
            allocators: on a CPU, the peer runs with our allocator's setting too, as a third side.
            steps: of the progress; None for those of `compare`.
        """
        name = name or self.peer
        setups = [Setup(name, theirs, keeps_memory=False), Setup("ours", ours, keeps_memory=True)]
        if allocators and self.device == "cpu":
            setups.insert(1, Setup(f"{name}, same allocator", theirs, keeps_memory=True))
        with started(setups, self.device, self.threads) as sides:
            if self.device == "cpu" and not sides[-1].kept:
                sides = [sides[0], sides[-1]]
                if SYSTEM_ALLOCATOR not in self.notes:
                    self.notes.append(SYSTEM_ALLOCATOR)
            columns = (TextColumn("{task.description}"), MofNCompleteColumn(), TimeElapsedColumn())
            console = Console(stderr=True)
            with Progress(*columns, console=console, disable=not sys.stderr.isatty()) as progress:
                steps = steps or len(sides) * (self.rounds + 1) + 1
                task = progress.add_task(title, total=steps)
                yield sides, lambda: progress.advance(task)

    def report(self, name: str, settings: dict[str, Any], **parts: Any) -> Report:
        """All of it; `parts` are the cases and tables."""
        machine = described(self.device, self.threads)
        settings = {"device": self.device, "rounds": self.rounds} | settings
        return Report(name, machine, settings, self.agreement, self.json, self.notes, **parts)


def equally_far(what: str, differences: dict[str, float], limit: float) -> str:
    """The line of a check: the largest of some differences, which none may exceed."""
    worst = max(
        differences, key=lambda name: math.inf if math.isnan(differences[name]) else differences[name]
    )
    if not differences[worst] <= limit:
        raise DisagreementError(f"{what} differ by {differences[worst]:.1e} ({worst}), more than {limit:g}")
    return f"{what} differ by {differences[worst]:.1e} at most ({worst}; {limit:g} is allowed)"
