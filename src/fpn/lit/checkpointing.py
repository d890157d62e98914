"""What saves a run: checkpoints that are whole or not there, the best one and the last."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.exceptions import SIGTERMException

from fpn.checkpoints import save_whole
from fpn.errors import InputError
from fpn.files import replacing
from fpn.lit.module import DetectionModule, StepError
from fpn.types import Batch
from fpn.weights import read_checkpoint


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the one it replaces, whose name it takes once it is whole and on the disk.

    Lightning's own takes the way through the system's folder for temporary files. From another file system
    it is copied over the old checkpoint, of which a process killed meanwhile, or a full disk, leaves nothing.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """As Lightning's.

        Raises:
            OSError: the file, which it names, cannot be written; what was there before still is.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        save_whole(checkpoint, Path(path))

    def load_checkpoint(self, path: str | Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        """As Lightning's.

        Raises:
            InputError: it is one that nobody has asked for.
        """
        if Path(path).name.startswith("hpc_ckpt_"):
            raise InputError(
                f"{path}: Lightning goes on with a file of this name in any SLURM job started in its folder; "
                "move it away, or to go on with it, give it another name and that as --ckpt_path"
            )
        return super().load_checkpoint(path, *arguments, **named)


class BestCheckpoint(ModelCheckpoint):
    """Keeps the best checkpoint by validation AP, or AR@1000 of a proposal network, as best.ckpt.

    A run that goes on in a folder of its own takes the best checkpoint so far along.
    """

    def __init__(self) -> None:
        super().__init__(filename="best", mode="max", enable_version_counter=False)
        self._before: dict[str, Any] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Take the score to watch from the module."""
        if isinstance(pl_module, DetectionModule):
            self.monitor = pl_module.monitor
        super().setup(trainer, pl_module, stage)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Remember what the checkpoint tells of the best one; Lightning forgets it in another folder."""
        self._before = state_dict

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the best checkpoint so far along."""
        super().on_train_start(trainer, pl_module)
        score = self._before.get("best_model_score")
        if score is None:
            return
        path = self.format_checkpoint_name({})
        # Only the first process need see the other folder.
        taken = trainer.is_global_zero and self._take_along(float(score), Path(path), trainer.ckpt_path)
        if trainer.strategy.broadcast(taken):
            self.best_model_path = self.kth_best_model_path = path
            self.best_model_score = self.current_score = self.kth_value = score
            self.best_k_models = {path: score}
        else:
            rank_zero_info(
                f"{self._before['best_model_path']} is not what it was when {trainer.ckpt_path} was written: "
                "the best checkpoint is chosen anew from here"
            )

    def _take_along(self, score: float, path: Path, ckpt_path: str | Path | None) -> bool:
        """Copy the best checkpoint here, unless a better one, from after the stop, has taken its place."""
        places = [Path(self._before["best_model_path"]), Path(str(ckpt_path)).with_name(path.name)]
        for place in places:
            try:
                kept = read_checkpoint(place)["callbacks"][self.state_key]["best_model_score"]
            except (InputError, KeyError):
                continue
            if float(kept) == score:
                if place.resolve() != path.resolve():
                    with replacing(path) as part:
                        shutil.copyfile(place, part)
                return True
        return False


class LastCheckpoint(Checkpoint):
    """Keeps the newest checkpoint, from which a run is resumed, as last.ckpt.

    Lightning's own `save_last` is only written when the best one is. This one is written after the best one,
    and tells of it.

    Args:
        every_n_steps: it is written after so many steps, after every epoch that ends in a validation, when
            training ends, when the process is asked to end by a signal, as clusters do, and when a step or
            a validation cannot be done, from before it. With several processes, only what all of
            them know of ends in a checkpoint.

    Raises:
        InputError: every_n_steps is below 1.
    """

    def __init__(self, every_n_steps: int = 1000) -> None:
        if every_n_steps < 1:
            raise InputError(f"LastCheckpoint: every_n_steps is {every_n_steps}, but must be at least 1")
        self.every_n_steps = every_n_steps
        self.path = Path()
        """Without a name until training begins."""
        self.saved = -1
        self._due = False
        self._validating = False

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on the weights may be averages: this is called after callbacks that put them in place …"""
        self._validating = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """… and this after they have taken them out."""
        self._validating = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder, which all processes have to do together."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """See whether it is time."""
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._due = stepped and trainer.global_step % self.every_n_steps == 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Write if it is time: only now are the last step's losses logged and its validation done."""
        if self._due:
            with _between_steps(trainer):
                self._save(trainer)
        self._due = False

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write, if all processes end training at one step."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run or not self.path.name:  # type: ignore[attr-defined]
            return
        if self._validating:
            for callback in trainer.callbacks:  # type: ignore[attr-defined]
                if isinstance(callback, WeightAveraging):
                    callback.on_validation_epoch_end(trainer, pl_module)
        if trainer.validating:
            # To Lightning, a validation that stops in the midst of its first batch has to be run again.
            progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
            trackers: tuple[Any, Any] = (progress.total, progress.current)
            for tracker in trackers:
                tracker.ready = tracker.started = 1
                tracker.processed = tracker.completed = 0
        if isinstance(exception, SIGTERMException):
            self._save(trainer)
        elif isinstance(exception, StepError if trainer.world_size > 1 else InputError):
            try:
                with nullcontext() if trainer.validating else _between_steps(trainer) as within:
                    if within and isinstance(pl_module, DetectionModule):
                        pl_module.forget_step()
                    self._save(trainer)
                what = "validation" if trainer.validating else "step"
                note = f"{self.path} is from before this {what}: a fit goes on with --ckpt_path of it"
            except StepError as error:
                newest = max(self.path.parent.glob("*.ckpt"), key=_written, default=trainer.ckpt_path)
                note = "" if str(error) == str(exception) else f"and {error}; "
                note += (
                    f"{newest} is the newest checkpoint from before"
                    if newest
                    else "no checkpoint is from before"
                )
            exception.add_note(note)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless epochs are so short that not all are validated."""
        epoch = trainer.current_epoch + 1
        last = trainer.should_stop or trainer.received_sigterm or epoch == trainer.max_epochs
        if last or epoch % (trainer.check_val_every_n_epoch or 1) == 0:
            self._save(trainer)

    def _save(self, trainer: Trainer) -> None:
        # Once: after an epoch's end, Lightning counts the next as begun.
        if trainer.global_step != self.saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved = trainer.global_step


@contextmanager
def _between_steps(trainer: Trainer) -> Iterator[bool]:
    """Have checkpoints tell that the step under way has not begun, nor the batches that it accumulates.

    Yields:
        Whether there is one.
    """
    progress = trainer.fit_loop.epoch_loop.batch_progress
    kept = progress.state_dict()
    trackers: tuple[Any, Any] = (progress.total, progress.current)
    at_end = progress.is_last_batch and trackers[1].ready == trackers[1].processed
    begun = 0 if at_end else trackers[1].processed % trainer.accumulate_grad_batches
    within = begun > 0 or trackers[1].started > trackers[1].processed
    for tracker in trackers:
        tracker.ready = tracker.started = tracker.processed = tracker.completed = tracker.processed - begun
    progress.is_last_batch = at_end
    try:
        yield within
    finally:
        progress.load_state_dict(kept)


def _written(path: Path) -> float:
    return path.stat().st_mtime
