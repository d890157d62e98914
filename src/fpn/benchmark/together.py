"""Training by several processes together: a part of `scaling`."""

import time
from collections.abc import Sequence
from pathlib import Path

import torch
import torch.distributed
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from fpn.allocator import keep_freed_memory
from fpn.benchmark import train
from fpn.benchmark.comparison import Run
from fpn.benchmark.images import ASPECT
from fpn.benchmark.plots import Line, Panel
from fpn.data.transforms import Sample


def over_processes(
    run: Run, weights: Path, files: list[Path], processes: Sequence[int], small_side: int, folder: Path
) -> Panel:
    """Images that processes train on in a second, by both."""
    lines = []
    for name in (run.peer, "ours"):
        speeds = []
        for number in processes:
            meeting, result = folder / f"{name}{number}", folder / f"{name}{number}.pt"
            given = (number, name == "ours", weights, files, small_side, run.rounds, str(meeting), result)
            torch.multiprocessing.spawn(learn, given, number)
            speeds.append([number / seconds for seconds in torch.load(result, weights_only=True)])
        lines.append(Line(name, list(processes), speeds))
    title = "Training on 1 image and thread a process"
    return Panel(title, "processes", "images / s", lines, logarithmic=False)


class Losses(nn.Module):
    """The losses of a model as its forward pass, which DistributedDataParallel wants."""

    def __init__(self, model: nn.Module, losses: train.Losses) -> None:
        super().__init__()
        self.model, self.losses = model, losses

    def forward(self, samples: Sequence[Sample]) -> dict[str, Tensor]:
        """As `train.steps` calls it."""
        return self.losses(samples)


def learn(
    rank: int,
    processes: int,
    ours: bool,
    weights: Path,
    files: list[Path],
    small_side: int,
    rounds: int,
    meeting: str,
    result: Path,
) -> None:
    """One of the processes that train together; the first writes the seconds of each step."""
    if ours:
        keep_freed_memory()
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", f"file://{meeting}", rank=rank, world_size=processes)
    learner = train.our_losses if ours else train.their_losses
    model, losses, sample_all = learner(weights, small_side, round(ASPECT * small_side), "cpu")
    together = DistributedDataParallel(Losses(model, losses))
    work = train.steps(model, together, sample_all, files, "fp32", "cpu")
    seconds = []
    for _ in range(rounds + 1):
        torch.distributed.barrier()
        start = time.perf_counter()
        work.run()
        torch.distributed.barrier()
        seconds.append(time.perf_counter() - start)
    if rank == 0:
        torch.save(seconds[1:], result)
    torch.distributed.destroy_process_group()
