"""How far a run is: a bar on a terminal, lines elsewhere."""

import math
import time
from datetime import timedelta
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar

from fpn.console import say
from fpn.lightning_private import DescribedBar
from fpn.types import Batch


class Bar(DescribedBar):
    """Lightning's progress bar, with the number of epochs that the steps amount to."""

    def describe(self, epoch: int) -> str:
        """As "Epoch 3 of 12"."""
        # The batches that an epoch ends with make a step, be they fewer than the others'.
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        epochs = self.trainer.max_steps / max(steps, 1)
        return super().describe(epoch) + (f" of {math.ceil(epochs)}" if epochs > 0 else "")


class PlainProgress(ProgressBar):
    """A line of losses and remaining time every few steps, where there is no terminal to draw a bar on."""

    def __init__(self) -> None:
        super().__init__()
        self.start = 0.0
        self.first_step = 0

    def disable(self) -> None:
        """Other processes than the first print nothing anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self.start, self.first_step = time.perf_counter(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Print the first step, and then at the trainer's own interval, of which 0 is never."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = step == self.first_step + 1 or (interval and step % interval == 0)
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self.start
        line = f"epoch {trainer.current_epoch + 1}, step {step:,}"
        if trainer.max_steps > 0:
            left = seconds / max(step - self.first_step, 1) * (trainer.max_steps - step)
            line += f" of {trainer.max_steps:,} ({timedelta(seconds=round(left))} left)"
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
        values = "  ".join(f"{key.removeprefix('train/')} {value:.3g}" for key, value in losses.items())
        say(f"{line}: {values}")

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print a line for each tenth of a validation."""
        if not trainer.sanity_checking:
            self._tenths(trainer, "validated", batch_idx, trainer.num_val_batches)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Print a line for each tenth of a test."""
        self._tenths(trainer, "tested", batch_idx, trainer.num_test_batches)

    def _tenths(self, trainer: Trainer, done: str, batch_idx: int, batches: list[int | float]) -> None:
        tenth = max(int(sum(batches)) // 10, 1)
        if trainer.is_global_zero and (batch_idx + 1) % tenth == 0:
            say(f"{done} {batch_idx + 1} of {int(sum(batches))} batches")
