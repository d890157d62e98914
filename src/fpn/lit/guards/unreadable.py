"""Training images that cannot be read are told, and end the run where they are too many."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from fpn.errors import InputError
from fpn.lit.together import StepError, gathered, total
from fpn.types import Batch


class ToldIfUnreadable(Callback):
    """Has the data module count, over all processes, the images in whose places others were put."""

    def __init__(self) -> None:
        self._lines: tuple[str, ...] = ()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember what the batch says of them."""
        self._lines = batch.unreadable

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Tell of them. Only now: at the start of a batch, processes would wait for each other's last step.

        Raises:
            StepError: they are more than data.max_unreadable allows for.
        """
        if total(trainer, len(self._lines)):
            lines = [line for own in gathered(trainer, self._lines) for line in own]
            try:
                pl_module.data.note_unreadable(lines)
            except InputError as error:
                raise StepError(str(error)) from None
