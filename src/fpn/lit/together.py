"""What several processes have to do at one step: end, and know of each other's faults."""

from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from fpn.errors import InputError


class StepError(InputError):
    """What ends a run in all its processes at one step; the first of them tells it."""


def first_process() -> bool:
    """Whether this is the first of them, which speaks for all; before a trainer knows, too."""
    return getattr(rank_zero_only, "rank", 0) == 0


def total(trainer: Trainer, number: Tensor | int) -> int:
    """The sum of a number over all processes, which all have to ask for."""
    if trainer.world_size == 1:
        return int(number)
    own = torch.as_tensor(number, device=trainer.strategy.root_device).long()
    return int(trainer.strategy.reduce(own, reduce_op="sum"))


def gathered(trainer: Trainer, value: Any) -> list[Any]:
    """What each process has, which all have to ask for."""
    if trainer.world_size == 1:
        return [value]
    values: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(values, value)
    return values
