"""A schedule that the trainer does not let come to its end is told."""

import math
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import rank_zero_warn


class ToldIfCutShort(Callback):
    """Warns of a training that ends before its schedule, at a learning rate that is not the last."""

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Compare the trainer's own limits with the schedule."""
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits = (trainer.max_steps, (trainer.max_epochs or -1) * steps)
        planned = pl_module.schedule.at(pl_module.images_per_step).steps
        end = min((limit for limit in limits if limit > 0), default=planned)
        if end < planned and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"training ends after {end:,} of the schedule's {planned:,} steps, with the learning "
                "rate it has there: for a shorter training set model.schedule.length (or steps and "
                "milestones) rather than trainer.max_epochs or max_steps"
            )
