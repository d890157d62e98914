"""How far a run is: a bar on a terminal, lines elsewhere."""

import logging
import math
import sys
import time
from abc import abstractmethod
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, Literal, TextIO

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fpn.console import say
from fpn.lit.callbacks.best_checkpoint import BestCheckpoint
from fpn.types import Batch

Scoring = Literal["validation", "test"]
Batches = Sequence[int | float]
"""How many there are, by data loader; inf where that is not known."""

PER_SECOND = 5
"""How often the bar is drawn anew."""


class Clock:
    """The time that is left of a whole run, its validations included."""

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.first, self.start = trainer, trainer.global_step, time.perf_counter()

    def left(self) -> str:
        """As 0:12:33; empty of a run whose end is not known, or of which nothing has been done."""
        done, steps = self.trainer.global_step - self.first, self.trainer.max_steps
        if done < 1 or steps < 1:
            return ""
        seconds = (time.perf_counter() - self.start) / done * (steps - self.trainer.global_step)
        return str(timedelta(seconds=round(seconds)))


class _Progress(ProgressBar):
    """What both kinds of showing it share: the clock of a training, and the batches of what scores."""

    def __init__(self) -> None:
        super().__init__()
        self._clock: Clock | None = None

    @abstractmethod
    def show_batches(self, trainer: Trainer, what: Scoring, done: int, batches: Batches) -> None:
        """After each batch.

        Args:
            trainer: that runs.
            what: is under way.
            done: batches.
            batches: how many there are.
        """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._clock = Clock(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show it, unless it is Lightning's trial before a training."""
        if not trainer.sanity_checking:
            self.show_batches(trainer, "validation", batch_idx + 1, trainer.num_val_batches)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Show it."""
        self.show_batches(trainer, "test", batch_idx + 1, trainer.num_test_batches)


class Bar(_Progress):
    """One line on a terminal, at the bottom of what is printed meanwhile.

    Of a training it shows the step, the time left of the whole run, the loss, images a second and the best
    score so far; in a validation or test, the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown = True
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = -math.inf

    def disable(self) -> None:
        """As other processes than the first have it."""
        self.shown = False

    def enable(self) -> None:
        """Show it again."""
        self.shown = True

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw it; what is printed from now on appears above."""
        super().setup(trainer, pl_module, stage)
        if not self.shown or self._progress is not None:
            return
        # It is drawn by hooks alone: a thread that draws may hold a lock while a loading process is forked.
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=None),
            TextColumn("{task.fields[told]}"),
            console=get_console(),
            auto_refresh=False,
            expand=True,
        )
        for column in self._progress.columns:
            column.get_table_column().no_wrap = True  # type: ignore[union-attr]
        self._task = self._progress.add_task("", total=None, told="")
        self._progress.start()
        self._log_to(sys.stderr)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Draw it, unless that was done just now."""
        self._draw_training(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training."""
        if trainer.training and not trainer.sanity_checking:
            self._draw_training(trainer, at_once=True)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last step, and leave it as it stands."""
        self._draw_training(trainer, at_once=True)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal to what is told of it."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Of a validation or test by itself too."""
        self._stop()

    def _draw_training(self, trainer: Trainer, at_once: bool = False) -> None:
        if self._progress is None or not (at_once or self._due()):
            return
        step, steps = trainer.global_step, trainer.max_steps
        left = self._clock.left() if self._clock else ""
        known = trainer.callback_metrics
        told = [f"{left} left"] if left else []
        if (loss := known.get("train/loss")) is not None:
            told.append(f"loss {float(loss):.3g}")
        if (speed := known.get("train/images_per_second")) is not None:
            told.append(f"{float(speed):.3g} img/s")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint) and (best := callback.told()):
                told.append(f"best {best}")
        of = f"/{steps:,}" if steps > 0 else ""
        self._show(f"step {step:,}{of}", step, steps if steps > 0 else None, "  ".join(told))

    def show_batches(self, trainer: Trainer, what: Scoring, done: int, batches: Batches) -> None:
        """Draw it, unless that was done just now."""
        total, doing = sum(batches), {"validation": "validating", "test": "testing"}[what]
        if self._progress is not None and (self._due() or done == total):
            self._show(f"{doing} {done:,}/{int(total):,}" if math.isfinite(total) else doing, done, total)

    def _show(self, description: str, done: int, total: float | None, told: str = "") -> None:
        assert self._progress is not None
        self._drawn = time.perf_counter()
        self._progress.update(self._task, description=description, completed=done, told=told)
        self._progress.tasks[0].total = total if total is not None and math.isfinite(total) else None
        self._progress.refresh()

    def _log_to(self, stream: TextIO) -> None:
        """Have what Lightning logs appear above the bar too: rich has put a stream of its own there."""
        for handler in logging.getLogger("lightning.pytorch").handlers:
            if type(handler) is logging.StreamHandler:
                handler.setStream(stream)

    def _due(self) -> bool:
        return time.perf_counter() - self._drawn >= 1 / PER_SECOND

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            self._log_to(sys.stderr)


class PlainProgress(_Progress):
    """A line of losses and remaining time every few steps, where there is no terminal to draw a bar on."""

    def disable(self) -> None:
        """Other processes than the first print nothing anyway."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Print the first step, and then at the trainer's own interval, of which 0 is never."""
        assert self._clock is not None
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = step == self._clock.first + 1 or (interval and step % interval == 0)
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        line = f"epoch {trainer.current_epoch + 1}, step {step:,}"
        if trainer.max_steps > 0:
            line += f" of {trainer.max_steps:,} ({self._clock.left()} left)"
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
        values = "  ".join(f"{key.removeprefix('train/')} {value:.3g}" for key, value in losses.items())
        say(f"{line}: {values}")

    def show_batches(self, trainer: Trainer, what: Scoring, done: int, batches: Batches) -> None:
        """Print a line for each tenth."""
        total, told = int(sum(batches)), {"validation": "validated", "test": "tested"}[what]
        if trainer.is_global_zero and done % max(total // 10, 1) == 0:
            say(f"{told} {done} of {total} batches")
