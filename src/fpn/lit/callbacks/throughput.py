"""How fast training is."""

import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fpn.types import Batch


class Throughput(Callback):
    """Logs `train/images_per_second`, of all processes together, over the steps since it was last logged."""

    def __init__(self) -> None:
        self.images, self.since, self.step = 0, 0.0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; validation is not counted."""
        self.images, self.since, self.step = 0, time.perf_counter(), trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again."""
        self.images, self.since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; log at the trainer's own interval, of which 0 is never."""
        self.images += len(batch.images) * trainer.world_size
        interval = trainer.log_every_n_steps  # type: ignore[attr-defined]
        # Of the batches whose gradients are accumulated, the last makes the step.
        if interval and trainer.global_step != self.step and trainer.global_step % interval == 0:
            now = time.perf_counter()
            pl_module.log("train/images_per_second", self.images / (now - self.since), prog_bar=True)
            self.images, self.since, self.step = 0, now, trainer.global_step
