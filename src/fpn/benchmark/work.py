"""What a side does, and the process in which it does it."""

import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from fpn.allocator import keep_freed_memory
from fpn.errors import InputError
from fpn.study.timing import status_mb


class BenchmarkError(RuntimeError):
    """The comparison cannot be made: the message is a line that says why."""


class Work(NamedTuple):
    """What a side does; both take what `Side.run` and `Side.outputs` are given."""

    run: Callable[..., object]
    """One repetition, which is timed."""
    outputs: Callable[..., Any]
    """What the work yields, tensors and plain values, to be compared with another side's."""


class Setup(NamedTuple):
    """How a side's process begins."""

    name: str
    prepare: Callable[[], Work]
    """Runs in the process; can be pickled."""
    keeps_memory: bool
    """Call `keep_freed_memory` first, as our command line does."""


class Memory(NamedTuple):
    """MB of a side: of its process, or of its tensors on a GPU; NaN where the system does not tell."""

    before: float
    """Once it was prepared."""
    peak: float


def serve(connection: Connection, setup: Setup, device: str, threads: int | None) -> None:
    """What runs in a side's process: prepare the work, then do it until nobody asks."""
    kept = setup.keeps_memory and keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)
    on_gpu = torch.device(device).type == "cuda"

    def memory() -> float:
        return torch.cuda.memory_allocated(device) / 2**20 if on_gpu else status_mb("VmRSS")

    def peak() -> float:
        return torch.cuda.max_memory_allocated(device) / 2**20 if on_gpu else status_mb("VmHWM")

    def run(*point: Any) -> float:
        start = time.perf_counter()
        work.run(*point)
        if on_gpu:
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    def outputs(file: str, *point: Any) -> None:
        # A GPU convolves in TF32 by default, which moves results further than the two sides differ.
        torch.backends.cudnn.allow_tf32, usual = False, torch.backends.cudnn.allow_tf32
        torch.save(work.outputs(*point), file)
        torch.backends.cudnn.allow_tf32 = usual
        if on_gpu:
            torch.cuda.reset_peak_memory_stats(device)

    def flops(*point: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            work.run(*point)
        return counter.get_total_flops()

    answers: dict[str, Callable[..., Any]] = {"run": run, "outputs": outputs, "flops": flops}
    try:
        work = setup.prepare()
        before = memory()
        answers["memory"] = lambda: (before, peak())
        connection.send(kept)
        while True:
            name, *arguments = connection.recv()
            connection.send(answers[name](*arguments))
    except (EOFError, KeyboardInterrupt):
        return
    except InputError as error:
        connection.send(error)
    except Exception as error:
        traceback.print_exc()
        connection.send(
            BenchmarkError(f"{setup.name}: {type(error).__name__}: {' '.join(str(error).split())}")
        )
