"""Sides that do the same work: they agree first, then they are timed in turns, and a table tells.

Each side is a process of its own, since neither the allocator nor the peak of memory can be told apart
within one. All are alive at once and take turns, so that what else the machine does meets all.
(torch.utils.benchmark warms up before each measurement and knows no turns: too long for a minute's work.)
"""

import json
import math
import multiprocessing
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torchvision
from jsonargparse.typing import PositiveInt
from rich.console import Console

from benchmarks.timing import status_mb
from fpn.allocator import keep_freed_memory
from fpn.devices import device_named
from fpn.errors import InputError

Work = Callable[..., Any]
"""A repetition: called with False it is timed, with True it returns what is compared; the point follows."""
Points = Mapping[str, tuple[int, ...]]
"""What repetitions are asked for, by what tables call it."""
Check = Callable[[Any, Any], str]
"""Compares the peer's outputs and ours: a line on how closely they agree, or DisagreementError."""

SAME_ALLOCATOR = ", same allocator"
TF32 = "fp32 convolves in TF32 on the GPU, torch's default; the outputs were compared without"


class DisagreementError(RuntimeError):
    """The sides do not yield the same; the message says what differs."""


@dataclass(kw_only=True)
class Run:
    """What all comparisons have in common, and what they found.

    Args:
        device: cpu or cuda.
        threads: of PyTorch in each process; null for its default.
        rounds: repetitions of each side that count, after one that does not.
        json: file to write all numbers to.

    Raises:
        InputError: no such device, or no folder to write to.
    """

    device: str = "cpu"
    threads: PositiveInt | None = None
    rounds: PositiveInt = 5
    json: str | None = None

    agreement: list[str] = field(default_factory=list, init=False)
    notes: list[str] = field(default_factory=list, init=False)
    rows: list[dict[str, Any]] = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        if device_named(self.device).type not in ("cpu", "cuda"):
            raise InputError(f"device {self.device}: only cpu and cuda are measured")
        if self.device != "cpu":
            self.notes.append(TF32)
        if self.json is not None and not Path(self.json).absolute().parent.is_dir():
            raise InputError(f"json {self.json}: there is no such folder to write to")

    def compare(
        self,
        title: str,
        prepare: Mapping[str, Callable[[], Work]],
        check: Check,
        *,
        number: int = 1,
        unit: str = "image",
        points: Points | None = None,
        allocators: bool = True,
        warm_up: bool = True,
    ) -> None:
        """See that the outputs agree, then time all sides and add their rows.

        Args:
            title: what the work is.
            prepare: makes the work of the peer, by its name, and of "ours", last; can be pickled.
            check: of the outputs, at the first of the points.
            number: units of work in a repetition.
            unit: what the seconds are of.
            points: what repetitions are asked for.
            allocators: on a CPU, the peer runs with our allocator's setting too, as a third side.
            warm_up: a repetition of each side that does not count comes first.
        """
        points = points or {"": ()}
        prepare = dict(prepare)
        if allocators and self.device == "cpu":
            (peer, theirs), ours = prepare.items()
            prepare = dict([(peer, theirs), (peer + SAME_ALLOCATOR, theirs), ours])
        with started(prepare, self.device, self.threads) as sides, Console(stderr=True).status(title):
            point = next(iter(points.values()))
            *others, own = (one.submit(_outputs, side, *point).result() for side, one in sides.items())
            for side, other in zip(sides, others, strict=False):
                line = check(other, own)
                if not side.endswith(SAME_ALLOCATOR):
                    self.agreement.append(f"{title}{f', {side}' * (len(others) > 2)}: {line}")
            if warm_up:
                take_turns(sides, 1, points)
            seconds = take_turns(sides, self.rounds, points)
            memory = {side: process.submit(_memory, side).result() for side, process in sides.items()}
        for name in points:
            times = {side: [t / number for t in seconds[side, name]] for side in sides}
            median = {side: statistics.median(values) for side, values in times.items()}
            for side, values in times.items():
                row = {"work": title + name, "side": side, "unit": unit, "seconds": values, **memory[side]}
                self.rows.append(row | {"median": median[side], "ratio": median[side] / median["ours"]})

    def report(self, command: str) -> str:
        """All of it as Markdown; written to the JSON file too, if there is one."""
        content: dict[str, Any] = {"command": command, "machine": described(self.device, self.threads)}
        content |= {"agreement": self.agreement, "notes": self.notes, "rows": self.rows}
        if self.json is not None:
            Path(self.json).write_text(json.dumps(content, indent=2) + "\n")
        return markdown(content)


@contextmanager
def started(
    prepare: Mapping[str, Callable[[], Work]], device: str, threads: int | None
) -> Iterator[Mapping[str, Executor]]:
    """The sides' processes, prepared and waiting; they end with the context.

    All but the peer keep freed memory, where that can be set, as our command line does.
    """
    with ExitStack() as stack:
        context = multiprocessing.get_context("spawn")
        sides = {side: stack.enter_context(ProcessPoolExecutor(1, context)) for side in prepare}
        begun = [one.submit(_begin, side, prepare[side], device, threads) for side, one in sides.items()]
        for one in begun:
            one.result()
        yield sides


def take_turns(
    sides: Mapping[str, Executor], rounds: int, points: Points
) -> dict[tuple[str, str], list[float]]:
    """The seconds of `rounds` repetitions of each side, by names of side and point.

    Each round asks every side once for each point; the order of the sides turns about from round to round.
    """
    seconds: dict[tuple[str, str], list[float]] = {(side, name): [] for side in sides for name in points}
    for turn in range(rounds):
        for name, point in points.items():
            for side in sides if turn % 2 == 0 else reversed(list(sides)):
                seconds[side, name].append(sides[side].submit(_seconds, side, *point).result())
    return seconds


def markdown(content: dict[str, Any]) -> str:
    """What a report has, for people."""
    columns = ["work", "side", "seconds", "min – max", "MB before", "MB at peak", "its time / ours"]
    lines = []
    for row in content["rows"]:
        median, low, high = map(shown, (row["median"], min(row["seconds"]), max(row["seconds"])))
        memory = [f"{row[key]:,.0f}" for key in ("mb_before", "mb_peak")]
        cells = [row["work"], row["side"], f"{median} / {row['unit']}", f"{low} – {high}", *memory]
        lines.append([*cells, f"{row['ratio']:.2f}"])
    told = [f"Outputs agree: {line}" for line in content["agreement"]] + content["notes"]
    told.append(f"Machine: {', '.join(f'{key} {value}' for key, value in content['machine'].items())}")
    table = markdown_table(columns, lines, numbers=range(2, 7))
    return "\n\n".join((f"`{content['command']}`", table, "\n".join(f"- {line}" for line in told)))


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: Sequence[int]) -> str:
    """A table, some columns of which are numbers."""
    rule = ["--:" if i in numbers else "---" for i in range(len(columns))]
    return "\n".join(f"| {' | '.join(line)} |" for line in (columns, rule, *rows))


def shown(seconds: float) -> str:
    """Three digits that count, at least."""
    return f"{seconds:,.{max(0, 2 - math.floor(math.log10(max(seconds, 1e-6))))}f}"


def equally_far(what: str, differences: dict[str, float], limit: float) -> str:
    """The line of a check: the largest of some differences, which none may exceed."""
    far = {name: math.inf if math.isnan(value) else value for name, value in differences.items()}
    worst = max(far, key=far.__getitem__)
    if far[worst] > limit:
        raise DisagreementError(f"{what} differ by {differences[worst]:.1e} ({worst}), more than {limit:g}")
    return f"{what} differ by {far[worst]:.1e} at most ({worst}; {limit:g} is allowed)"


def described(device: str, threads: int | None) -> dict[str, str]:
    """Hardware and versions, by name."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = names[0] if names else platform.processor() or platform.machine()
    machine = {
        "CPU": f"{cpu}, {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()})",
        "threads": str(threads or torch.get_num_threads()),
        "Python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
    }
    if torch.device(device).type == "cuda":
        machine["GPU"] = f"{torch.cuda.get_device_name(device)}, CUDA {torch.version.cuda}"
    return machine


_work: dict[str, tuple[Work, bool, float]] = {}
"""In a side's process, by its name: what it does, whether on a GPU, and MB before."""


def _begin(side: str, prepare: Callable[[], Work], device: str, threads: int | None) -> None:
    if side.endswith((SAME_ALLOCATOR, "ours")):
        keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    work, on_gpu = prepare(), torch.device(device).type == "cuda"
    _work[side] = (work, on_gpu, torch.cuda.memory_allocated() / 2**20 if on_gpu else status_mb("VmRSS"))


def _seconds(side: str, *point: int) -> float:
    work, on_gpu, _ = _work[side]
    start = time.perf_counter()
    work(False, *point)
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - start


def _outputs(side: str, *point: int) -> Any:
    # A GPU convolves in TF32 by default, which moves results further than the two sides differ.
    torch.backends.cudnn.allow_tf32, usual = False, torch.backends.cudnn.allow_tf32
    work, on_gpu, _ = _work[side]
    found = work(True, *point)
    torch.backends.cudnn.allow_tf32 = usual
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
    return found


def _memory(side: str) -> dict[str, float]:
    """MB of a side's process, or of its tensors on a GPU: once it was prepared, and the peak so far."""
    _, on_gpu, before = _work[side]
    peak = torch.cuda.max_memory_allocated() / 2**20 if on_gpu else status_mb("VmHWM")
    return {"mb_before": before, "mb_peak": peak}
