"""Averages of weights, in a few launches however many weights there are."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch import Tensor

from fpn.lightning_private import average_with, begin_averages, count_averages_here


class EMA(EMAWeightAveraging):
    """Lightning's moving average of the weights, which takes a launch for each of them.

    After n updates, (1 + n) / (10 + n) of the average is kept where that is less than `decay`, so that a
    short run does not remember how it began. So does TensorFlow's `ExponentialMovingAverage`, with which
    EfficientDet was trained.

    Args:
        decay: share of the average that is kept at each update.
        **kwargs: as of Lightning's `EMAWeightAveraging`.
    """

    def __init__(self, decay: float = 0.999, **kwargs: Any) -> None:
        super().__init__(decay=decay, **kwargs)
        self.decay = decay
        average_with(self, self._average)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As Lightning's, where the module will train: it is not there yet."""
        begin_averages(self, trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)
        count_averages_here(self)

    def _average(self, averages: list[Tensor], weights: list[Tensor], updates: Tensor) -> None:
        if not averages[0].is_floating_point():  # as a BatchNorm's number of batches
            torch._foreach_copy_(averages, weights)
            return
        kept = ((1 + updates) / (10 + updates)).clamp(max=self.decay)
        changes = torch._foreach_sub(weights, averages)
        torch._foreach_mul_(changes, 1 - kept)
        torch._foreach_add_(averages, changes)
