"""What tells of a run: the speed, the progress, the tables of scores and the files of a test."""

import math
import time
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar, RichProgressBar
from rich.console import Console

from fpn.console import say
from fpn.data.results import write_results
from fpn.evaluation.tables import box_table, category_table, proposal_table
from fpn.files import replacing, strict_json
from fpn.lit.module import DetectionModule
from fpn.stage_times import Stage, StageTimes
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


class Bar(RichProgressBar):
    """Lightning's progress bar, with the number of epochs that the steps amount to."""

    def _get_train_description(self, current_epoch: int) -> str:
        # The batches that an epoch ends with make a step, be they fewer than the others'.
        steps = math.ceil(self.trainer.num_training_batches / self.trainer.accumulate_grad_batches)
        epochs = self.trainer.max_steps / max(steps, 1)
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


class Scores(Callback):
    """Prints scores after every validation, and all tables after a test.

    A test writes to the run's folder `scores.json` (all numbers, and AP by category), `curves.json`
    (recall of the proposals by their number, the objects' size and the IoU; null in both where there is
    no such object) and, as COCO results,
    `detections.json`, or `proposals.json` of a proposal network. Each is there when it is whole. With
    trainer.fast_dev_run nothing is written.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line: the main scores."""
        if trainer.sanity_checking or not isinstance(pl_module, DetectionModule):
            return
        scores = pl_module.scores("val")
        if trainer.is_global_zero:
            names = ["AP", "AP50", "AP_small", "AP_medium", "AP_large", "proposal_AR@100", "proposal_AR@1000"]
            line = "  ".join(f"{n} {100 * scores[f'val/{n}']:.1f}" for n in names if f"val/{n}" in scores)
            say(f"step {trainer.global_step:,}: {line}")

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
        if trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        write_results(folder / name, results())
        _write(folder / "curves.json", strict_json(pl_module.recall.curves()))
        _write(folder / "scores.json", strict_json(report))
        if sum(trainer.num_test_batches) < len(trainer.test_dataloaders or ()):
            say("only a part of the images was scored, as trainer.limit_test_batches says")
        say(f"written to {folder}: scores.json, curves.json, {name}")


class PrintStageTimes(Callback):
    """Prints how much time each stage of a validation or test took, in the first process.

    To the results belong collecting and scoring them, and what a test writes.
    """

    def __init__(self) -> None:
        self.times: StageTimes | None = None
        self._clock = ExitStack()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._start(pl_module)

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """The next batch is waited for."""
        self._begin("load")

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """There is none; scoring begins."""
        self._begin("results")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print."""
        self._print(trainer)

    # A test is timed as a validation is.
    on_test_start = on_validation_start
    on_test_batch_end = on_validation_batch_end
    on_test_epoch_end = on_validation_epoch_end
    on_test_end = on_validation_end

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the detector as it was."""
        self._clock.close()

    def _start(self, pl_module: LightningModule) -> None:
        if isinstance(pl_module, DetectionModule):
            self.times = self._clock.enter_context(StageTimes(pl_module.finder))

    def _begin(self, stage: Stage) -> None:
        if self.times is not None:
            self.times.begin(stage)

    def _print(self, trainer: Trainer) -> None:
        self._clock.close()
        if self.times is not None and trainer.is_global_zero:
            of = f" of the first of {trainer.world_size} processes" if trainer.world_size > 1 else ""
            Console().print(self.times.table(of))


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
                say(f"{name}: {found}; published {published:.1f} ({self.source})")


def _write(path: Path, text: str) -> None:
    with replacing(path) as part:
        part.write_text(text)
