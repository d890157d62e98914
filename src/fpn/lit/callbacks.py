"""What accompanies a run: the best checkpoint, the speed, the tables of scores and the files of a test."""

import json
import math
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, ProgressBar, RichProgressBar
from rich.console import Console

from fpn.evaluation.tables import box_table, category_table, proposal_table
from fpn.lit.module import DetectionModule
from fpn.types import Batch


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by validation AP, or AR@1000 of a proposal network, as best.ckpt."""

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the score to watch from the module, unless the user named one."""
        if self.monitor is None and isinstance(pl_module, DetectionModule):
            self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)


class LastCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint, from which a run is resumed, as last.ckpt.

    One callback for both would not do: Lightning's `save_last` is only written when the best one is.
    """

    def __init__(self) -> None:
        super().__init__(filename="last", save_on_train_epoch_end=True, enable_version_counter=False)


class Throughput(Callback):
    """Logs `train/images_per_second`, of all processes together, over the steps since it was last logged."""

    def __init__(self) -> None:
        self.images, self.since = 0, 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock; validation is not counted."""
        self.images, self.since = 0, time.perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """As at the start of an epoch."""
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
        """Print at the trainer's own interval."""
        step = trainer.global_step
        if step % trainer.log_every_n_steps or not trainer.is_global_zero:  # type: ignore[attr-defined]
            return
        seconds = time.perf_counter() - self.start
        line = f"epoch {trainer.current_epoch}, step {step:,}"
        if trainer.max_steps > 0:
            left = seconds / max(step - self.first_step, 1) * (trainer.max_steps - step)
            line += f" of {trainer.max_steps:,} ({timedelta(seconds=round(left))} left)"
        losses = {key: value for key, value in trainer.callback_metrics.items() if key.startswith("train/")}
        values = "  ".join(f"{key.removeprefix('train/')} {value:.3g}" for key, value in losses.items())
        Console().print(f"{line}: {values}", highlight=False, soft_wrap=True)


class Scores(Callback):
    """Prints scores after every validation, and all tables after a test.

    A test writes to the run's folder `scores.json` (all numbers, and AP by category), `detections.json` and
    `proposals.json` (COCO results).
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """One line: the main scores."""
        if trainer.sanity_checking or not isinstance(pl_module, DetectionModule):
            return
        scores = pl_module.scores("val")
        if trainer.is_global_zero:
            names = ["AP", "AP50", "AP_small", "AP_medium", "AP_large", "proposal_AR@100", "proposal_AR@1000"]
            line = "  ".join(f"{n} {100 * scores[f'val/{n}']:.1f}" for n in names if f"val/{n}" in scores)
            Console().print(f"step {trainer.global_step:,}: {line}", highlight=False, soft_wrap=True)

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
        results = {"proposals.json": pl_module.recall.results()}
        if pl_module.ap is not None:
            boxes = {key: value for key, value in report.items() if not key.startswith("proposal_")}
            console.print(category_table(pl_module.ap.by_category), box_table(boxes))
            report["by_category"] = pl_module.ap.by_category
            results["detections.json"] = pl_module.ap.results()
        proposals = {
            key.removeprefix("proposal_"): value for key, value in scores_of_proposals(report).items()
        }
        console.print(proposal_table(proposals))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.json").write_text(json.dumps(report, indent=2))
        for name, entries in results.items():
            (folder / name).write_text(json.dumps(entries))
        console.print(f"written to {folder}: scores.json, {', '.join(results)}", highlight=False)


def scores_of_proposals(report: dict[str, Any]) -> dict[str, float]:
    """The part of a report that is about proposals."""
    return {key: value for key, value in report.items() if key.startswith("proposal_")}
