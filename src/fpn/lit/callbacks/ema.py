"""Averages of weights, in a few launches however many weights there are."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fpn.lightning_private import average_on, average_with


class EMA(EMAWeightAveraging):
    """Lightning's moving average of the weights, which takes a launch for each of them.

    Args:
        decay: share of the average that is kept at each update.
        **kwargs: as of Lightning's `EMAWeightAveraging`.
    """

    def __init__(self, decay: float = 0.999, **kwargs: Any) -> None:
        super().__init__(decay=decay, **kwargs)
        average_with(self, get_ema_multi_avg_fn(decay))

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """As Lightning's, where the module will train: it is not there yet."""
        average_on(self, trainer.strategy.root_device)
        super().setup(trainer, pl_module, stage)
