"""What accompanies a run: the best checkpoint, the speed, the tables of scores and the files of a test."""

import json
import math
import signal
import threading
import time
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from rich.console import Console

from fpn.evaluation.tables import box_table, category_table, proposal_table
from fpn.lit.module import DetectionModule
from fpn.types import Batch


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by validation AP, or AR@1000 of a proposal network, as best.ckpt."""

    def __init__(self) -> None:
        super().__init__(filename="best", mode="max", enable_version_counter=False)

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the score to watch from the module."""
        if isinstance(pl_module, DetectionModule):
            self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(Callback):
    """Keeps the newest checkpoint, from which a run is resumed, as last.ckpt.

    Lightning's own `save_last` is only written when the best one is.

    Args:
        every_n_steps: it is written after so many steps, after every epoch that ends in a validation, when
            training ends, and when the process is asked to end by SIGTERM, as clusters do.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        self.every_n_steps = every_n_steps
        self.path = Path()
        self.saved = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder, which all processes have to do together."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Write, every so many steps; at an epoch's end, whether it is counted as done is not settled yet."""
        due = (batch_idx + 1) % (self.every_n_steps * trainer.accumulate_grad_batches) == 0
        if due and not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            self._save(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write, if training was asked to end: `EndOnSigterm` has it end in all processes at one step."""
        if not isinstance(exception, SIGTERMException) or trainer.state.fn != TrainerFn.FITTING:
            return
        if trainer.validating:
            # To Lightning, a validation that stops in the midst of its first batch has to be run again.
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            trackers: tuple[Any, Any] = (progress.total, progress.current)
            for tracker in trackers:
                tracker.ready = tracker.started = 1
                tracker.processed = tracker.completed = 0
        self._save(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless epochs are so short that not all are validated."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or trainer.received_sigterm or epoch == trainer.max_epochs
        if last or epoch % (trainer.check_val_every_n_epoch or 1) == 0:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # Once: after an epoch's end, Lightning counts the next as begun.
        if trainer.global_step != self.saved:
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved = trainer.global_step


class EndOnSigterm(Callback):
    """Ends training after the same step in all processes, whichever of them got a SIGTERM.

    Lightning's own handler broadcasts from within the signal, where other processes may be in the midst of
    another exchange, and each process ends where it is: together they hang.

    Args:
        every_n_steps: several processes ask each other so often, and at the end of every epoch.
    """

    def __init__(self, every_n_steps: int = 8) -> None:
        self.every_n_steps = every_n_steps
        self.asked = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the place of Lightning's handler, which it takes away itself at the end."""
        self.asked = False
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._ask)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """End between two steps of the optimiser; what ends an epoch or the run is validated first."""
        last = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        done = 0 < trainer.max_steps <= trainer.global_step
        if last or done or (batch_idx + 1) % trainer.accumulate_grad_batches:
            return
        if trainer.world_size == 1 or trainer.global_step % self.every_n_steps == 0:
            self._end_if_asked(trainer)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """End at once, where no other process waits for this one's boxes."""
        if trainer.world_size == 1 and not trainer.sanity_checking:
            self._end_if_asked(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End, unless the run does anyway."""
        if not trainer.should_stop:
            self._end_if_asked(trainer)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self.asked = True

    def _end_if_asked(self, trainer: Trainer) -> None:
        if trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            # From here on as if Lightning's handler had been called: it ends when it has logged the step.
            trainer._signal_connector.received_sigterm = True


class Throughput(Callback):
    """Logs `train/images_per_second`, of all processes together, over the steps since it was last logged."""

    def __init__(self) -> None:
        self.images, self.since = 0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; validation is not counted."""
        self.images, self.since = 0, time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start it again."""
        self.images, self.since = 0, time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Count the batch; log at the trainer's own interval."""
        self.images += len(batch.images) * trainer.world_size
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            now = time.perf_counter()
            pl_module.log("train/images_per_second", self.images / (now - self.since), prog_bar=True)
            self.images, self.since = 0, now


class Bar(RichProgressBar):
    """Lightning's progress bar, with the number of epochs that the steps amount to."""

    def _get_train_description(self, current_epoch: int) -> str:
        epochs = self.trainer.max_steps / max(float(self.trainer.num_training_batches), 1)
        return f"Epoch {current_epoch + 1}" + (f" of {math.ceil(epochs)}" if epochs > 0 else "")


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
        """Print the first step, and then at the trainer's own interval."""
        step, interval = trainer.global_step, trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = step % interval == 0 or step == self.first_step + 1
        if not due or (batch_idx + 1) % trainer.accumulate_grad_batches or not trainer.is_global_zero:
            return
        seconds = time.perf_counter() - self.start
        line = f"epoch {trainer.current_epoch + 1}, step {step:,}"
        if trainer.max_steps > 0:
            left = seconds / max(step - self.first_step, 1) * (trainer.max_steps - step)
            line += f" of {trainer.max_steps:,} ({timedelta(seconds=round(left))} left)"
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
        values = "  ".join(f"{key.removeprefix('train/')} {value:.3g}" for key, value in losses.items())
        _say(f"{line}: {values}")

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
            _say(f"{done} {batch_idx + 1} of {int(sum(batches))} batches")


class Scores(Callback):
    """Prints scores after every validation, and all tables after a test.

    A test writes to the run's folder `scores.json` (all numbers, and AP by category), `curves.json`
    (recall of the proposals by their number, the objects' size and the IoU) and, as COCO results,
    `detections.json`, or `proposals.json` of a proposal network.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line: the main scores."""
        if trainer.sanity_checking or not isinstance(pl_module, DetectionModule):
            return
        scores = pl_module.scores("val")
        if trainer.is_global_zero:
            names = ["AP", "AP50", "AP_small", "AP_medium", "AP_large", "proposal_AR@100", "proposal_AR@1000"]
            line = "  ".join(f"{n} {100 * scores[f'val/{n}']:.1f}" for n in names if f"val/{n}" in scores)
            _say(f"step {trainer.global_step:,}: {line}")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """All tables, and the files."""
        if not isinstance(pl_module, DetectionModule):
            return
        scores = pl_module.scores("test")
        folder = Path(trainer.log_dir or trainer.default_root_dir)
        if not trainer.is_global_zero:
            return
        console = Console()
        report: dict[str, Any] = {key.removeprefix("test/"): value for key, value in scores.items()}
        name, results = "proposals.json", pl_module.recall.results
        if pl_module.ap is not None:
            name, results = "detections.json", pl_module.ap.results
            boxes = {key: value for key, value in report.items() if not key.startswith("proposal_")}
            console.print(category_table(pl_module.ap.by_category), box_table(boxes))
            report["by_category"] = pl_module.ap.by_category
        prefix = "proposal_"
        console.print(
            proposal_table({k.removeprefix(prefix): v for k, v in report.items() if k.startswith(prefix)})
        )
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(report, indent=2))
        (folder / "curves.json").write_text(json.dumps(pl_module.recall.curves(), indent=2))
        (folder / name).write_text(json.dumps(results()))
        if sum(trainer.num_test_batches) < len(trainer.test_dataloaders or ()):
            _say("only a part of the images was scored, as trainer.limit_test_batches says")
        _say(f"written to {folder}: scores.json, curves.json, {name}")


class Published(Callback):
    """Prints published scores beside those of a test.

    Args:
        source: who published them, and what they were measured on.
        scores: in percent, by their names in scores.json, as AP or proposal_AR@1000.
    """

    def __init__(self, source: str, scores: dict[str, float]) -> None:
        self.source, self.published = source, scores

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """A line for each of them, below the tables of the test."""
        if stage != "test" or not isinstance(pl_module, DetectionModule):
            return
        ours = pl_module.scores("test")
        for name, published in self.published.items():
            score = ours.get(f"test/{name}")
            # No error, which would cost the test's own tables and files.
            known = ", ".join(key.removeprefix("test/") for key in ours)
            found = f"{100 * score:.1f}" if score is not None else f"no such score among {known}"
            if trainer.is_global_zero:
                _say(f"{name}: {found}; published {published:.1f} ({self.source})")


def _say(line: str) -> None:
    Console().print(line, highlight=False, soft_wrap=True)
