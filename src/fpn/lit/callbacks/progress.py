"""How far a run is and how fast: a bar on a terminal, lines elsewhere."""

import logging
import math
import sys
import time
from abc import abstractmethod
from datetime import timedelta
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich import get_console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from fpn.console import say
from fpn.lit.callbacks.best_checkpoint import BestCheckpoint
from fpn.types import Batch

PER_SECOND = 5
"""How often the bar is drawn anew."""


class Throughput(Callback):
    """Logs `train/images_per_second`, of all processes together, over the steps since it was last logged."""

    def __init__(self) -> None:
        self.images, self.since, self.step = 0, 0.0, 0  # since 0: the clock stands

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin anew."""
        self.images, self.since, self.step = 0, 0.0, trainer.global_step

    def on_train_batch_start(self, *_: Any) -> None:
        """Start the clock, if it stands."""
        if not self.since:
            self.since = time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop it: a validation is not counted, nor what is drawn and saved after it."""
        self.images, self.since = 0, 0.0

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


class _Progress(ProgressBar):
    """What both kinds of showing it share: the time that is left, and the batches of what scores."""

    def disable(self) -> None:
        """Nothing: other processes than the first show none anyway."""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._first, self._start = trainer.global_step, time.perf_counter()

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, *_: Any, **__: Any
    ) -> None:
        """Show it in the first process, unless it is Lightning's trial before a training."""
        if trainer.is_global_zero and not trainer.sanity_checking:
            batches = trainer.num_test_batches if trainer.testing else trainer.num_val_batches
            self.show_batches("test" if trainer.testing else "validation", batch_idx + 1, sum(batches))

    on_test_batch_end = on_validation_batch_end

    @abstractmethod
    def show_batches(self, what: str, done: int, total: float) -> None:
        """After each batch of a validation or test, of a total that is inf where it is not known."""

    def left(self, trainer: Trainer) -> str:
        """The time of the rest of a training, its validations included, as "0:12:33 left".

        Empty of one whose end is not known, or of which nothing has been done.
        """
        done, steps = trainer.global_step - self._first, _steps(trainer)
        if done < 1 or steps == math.inf:
            return ""
        seconds = (time.perf_counter() - self._start) / done * (steps - trainer.global_step)
        return f"{timedelta(seconds=round(seconds))} left"


class Bar(_Progress):
    """One line on a terminal, at the bottom of what is printed meanwhile.

    Of a training it shows the step, the time left of the whole run, the loss, images a second and the best
    score so far; in a validation or test, the batch.
    """

    def __init__(self) -> None:
        super().__init__()
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._drawn = -math.inf

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Draw it; what is printed from now on appears above."""
        super().setup(trainer, pl_module, stage)
        if not trainer.is_global_zero or self._progress is not None:
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
        _log_to_stderr()

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        """Draw it, unless that was done just now."""
        if self._due():
            self._draw_training(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training."""
        if trainer.training and not trainer.sanity_checking:
            self._draw_training(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last step, and leave it as it stands."""
        self._draw_training(trainer)
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the terminal to what is told of it."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Of a validation or test by itself too."""
        self._stop()

    def show_batches(self, what: str, done: int, total: float) -> None:
        """Draw it, unless that was done just now."""
        if self._due() or done == total:
            self._show(what, done, total)

    def _draw_training(self, trainer: Trainer) -> None:
        known, told = trainer.callback_metrics, [self.left(trainer)]
        if (loss := known.get("train/loss")) is not None:
            told.append(f"loss {float(loss):.3g}")
        if (speed := known.get("train/images_per_second")) is not None:
            told.append(f"{float(speed):.3g} img/s")
        for callback in trainer.checkpoint_callbacks:
            if isinstance(callback, BestCheckpoint) and (best := callback.told()):
                told.append(f"best {best}")
        self._show("step", trainer.global_step, _steps(trainer), "  ".join(filter(None, told)))

    def _show(self, what: str, done: int, total: float, told: str = "") -> None:
        if self._progress is None:
            return
        self._drawn = time.perf_counter()
        description = f"{what} {done:,}/{int(total):,}" if math.isfinite(total) else f"{what} {done:,}"
        self._progress.update(self._task, description=description, completed=done, told=told)
        self._progress.tasks[0].total = total if math.isfinite(total) else None
        self._progress.refresh()

    def _due(self) -> bool:
        return time.perf_counter() - self._drawn >= 1 / PER_SECOND

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = None
            _log_to_stderr()


class PlainProgress(_Progress):
    """A line of losses and remaining time every few steps, where there is no terminal to draw a bar on."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Print the first step, and then at the trainer's own interval, of which 0 is never."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = step == self._first + 1 or (interval and step % interval == 0)
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        steps = _steps(trainer)
        of = "" if steps == math.inf else f" of {int(steps):,} ({self.left(trainer)})"
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
        values = "  ".join(f"{key.removeprefix('train/')} {value:.3g}" for key, value in losses.items())
        say(f"epoch {trainer.current_epoch + 1}, step {step:,}{of}: {values}")

    def show_batches(self, what: str, done: int, total: float) -> None:
        """Print a line for each tenth."""
        if done % max(int(total) // 10, 1) == 0:
            say(f"{what}: {done} of {total} batches")


def _steps(trainer: Trainer) -> float:
    """Of a whole training, by all of its limits; inf where none is known."""
    steps = trainer.estimated_stepping_batches
    return steps if steps >= max(trainer.global_step, 0) else math.inf


def _log_to_stderr() -> None:
    """Have what Lightning logs appear above the bar too: rich puts a stream of its own there for a time."""
    for handler in logging.getLogger("lightning.pytorch").handlers:
        if type(handler) is logging.StreamHandler:
            handler.setStream(sys.stderr)
