"""Averages of weights, in a few launches however many weights there are."""

from typing import Any

from lightning.pytorch.callbacks import EMAWeightAveraging
from torch.optim.swa_utils import get_ema_multi_avg_fn

from fpn.lightning_private import average_with


class EMA(EMAWeightAveraging):
    """Lightning's moving average of the weights, which takes a launch for each of them.

    Args:
        decay: share of the average that is kept at each update.
        **kwargs: as of Lightning's `EMAWeightAveraging`.
    """

    def __init__(self, decay: float = 0.999, **kwargs: Any) -> None:
        super().__init__(decay=decay, **kwargs)
        average_with(self, get_ema_multi_avg_fn(decay))
