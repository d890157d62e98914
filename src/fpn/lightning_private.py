"""All that is used of Lightning's inner parts, each with its reason.

pyproject.toml allows the versions that this was tried with. Lightning promises none of it to the next.
"""

import logging
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

import torch
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder, WeightAveraging
from lightning.pytorch.loggers import Logger, WandbLogger
from lightning.pytorch.loops import _FitLoop, _TrainingEpochLoop
from lightning.pytorch.plugins import TorchSyncBatchNorm
from lightning.pytorch.utilities.exceptions import _TunerExitException


def batches_begun(trainer: Trainer) -> int:
    """Batches of all epochs before the one under way: no public counter goes on where a run goes on."""
    return trainer.fit_loop.epoch_loop.total_batch_idx


def batches_of_epoch(trainer: Trainer) -> int:
    """Batches begun of the epoch under way: a run that goes on has some of them behind it."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.ready


def shards_again(trainer: Trainer) -> bool:
    """Whether Lightning would put a sampler of its own in the place of one that shards already."""
    return trainer._accelerator_connector.use_distributed_sampler and trainer.world_size > 1


def in_last_batch(trainer: Trainer) -> bool:
    """Whether the batch under way ends the epoch, which hooks are not told."""
    return trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def limit_steps(trainer: Trainer, steps: int) -> None:
    """End training after so many steps: how many they are is known only when the processes are."""
    trainer.fit_loop.epoch_loop.max_steps = steps


def at_last_step(trainer: Trainer) -> bool:
    """Whether training ends with the batch under way, as far as that is known before the epoch's end."""
    fit, epoch = trainer.fit_loop, trainer.fit_loop.epoch_loop
    if 0 < epoch.max_steps <= trainer.global_step or (trainer.should_stop and fit._can_stop_early):
        return True
    begun: Any = fit.epoch_progress.current
    ends_epoch = epoch.batch_progress.current.ready > 0 and epoch._num_ready_batches_reached()
    return ends_epoch and 0 < (fit.max_epochs or -1) <= begun.processed + 1


class _Epoch(_TrainingEpochLoop):
    """Has the last step validated, which an interval alone may pass over."""

    def _should_check_val_fx(self, data_fetcher: Any) -> bool:
        last = self.trainer.enable_validation and at_last_step(self.trainer)
        return last or super()._should_check_val_fx(data_fetcher)


class _Fit(_FitLoop):
    """Goes on with the validation of the last step, where that was interrupted."""

    @property
    def done(self) -> bool:
        validation = self.epoch_loop.val_loop
        validation.update_restart_stage()
        return not (self.restarting and validation.restarted_mid_evaluation) and super().done


def validate_last_step(trainer: Trainer) -> None:
    """Have the last step of a fit validated, whatever interval of validations is given."""
    trainer.fit_loop.__class__, trainer.fit_loop.epoch_loop.__class__ = _Fit, _Epoch


def log_by_steps(trainer: Trainer) -> None:
    """Have the loggers count as the optimiser does; in a run that goes on they may be one ahead."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def logged_step(trainer: Trainer) -> int:
    """The step that Lightning's loggers are at."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def averaging(trainer: Trainer) -> list[WeightAveraging]:
    """The callbacks that average weights."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [callback for callback in callbacks if isinstance(callback, WeightAveraging)]


def average_with(callback: WeightAveraging, average: Callable[..., None]) -> None:
    """Have a callback average all weights by one function, in place of one after the other."""
    callback._kwargs = {key: value for key, value in callback._kwargs.items() if key != "avg_fn"}
    callback._kwargs["multi_avg_fn"] = average


def begin_averages(callback: WeightAveraging, device: torch.device) -> None:
    """Have a callback forget those of an earlier run, and keep its own on a device, unless it was given one.

    Lightning's would put that run's average into what is tested next, and the test of a checkpoint would be
    of what was trained.
    """
    callback._average_model, callback._latest_update_step = None, 0
    callback._device = callback._device or device


def count_averages_here(callback: WeightAveraging) -> None:
    """Have a callback's updates counted on the CPU: asked for their number, a GPU is waited for."""
    if callback._average_model is not None:
        callback._average_model.n_averaged = torch.zeros((), dtype=torch.long)


def average_from(trainer: Trainer, module: LightningModule) -> None:
    """Have averages of weights that have not begun be these weights.

    The callbacks have copied them before they were loaded, or trained, and would validate and save them so.
    """
    for callback in averaging(trainer):
        average = callback._average_model
        if average is not None and not average.n_averaged:
            average.module.load_state_dict(module.state_dict())


def find_learning_rate(finder: LearningRateFinder, trainer: Trainer, module: LightningModule) -> float | None:
    """What it suggests; it is kept from setting an attribute of the module's to it."""
    finder._update_attr = False
    finder.lr_find(trainer, module)
    return None if finder.optimal_lr is None else finder.optimal_lr.suggestion()


def end_finding() -> None:
    """End a fit that was begun to find something, as Lightning's tuner does."""
    raise _TunerExitException


def failed_in(error: BaseException) -> Callback | Logger | None:
    """The callback or logger that Lightning called and that raised this; None of anything else."""
    found: Callback | Logger | None = None
    for frame, _ in traceback.walk_tb(error.__traceback__):
        caller = frame.f_locals.get("self")
        if frame.f_globals["__name__"] == "lightning.pytorch.trainer.call":
            found = frame.f_locals.get("callback")  # the innermost: a tuner trains within its own hook
        elif found is None and isinstance(caller, Logger):
            found = caller
    return found


def keep_out_of_queue(trainer: Trainer) -> None:
    """Keep Lightning from putting a SLURM job back in the queue: that is left to the job's script."""
    environment = trainer._accelerator_connector.cluster_environment
    if isinstance(environment, SLURMEnvironment):
        environment.auto_requeue = False


def end_as_if_asked(trainer: Trainer) -> None:
    """Go on as if Lightning's own handler of SIGTERM had been called: it ends when the step is logged."""
    trainer._signal_connector.received_sigterm = True


def take_over_processes(trainer: Trainer) -> list[Popen[bytes]]:
    """The processes that this one has started, which Lightning's own observer looks after no more."""
    launcher: Any = trainer.strategy.launcher
    started: list[Popen[bytes]] = list(getattr(launcher, "procs", None) or ())
    if started:
        launcher.procs.clear()  # the list that the observer has
        launcher.procs = started
    return started


def forget_validation(trainer: Trainer) -> None:
    """Have checkpoints tell that the validation under way has not begun, for only then it is run again."""
    progress = trainer.fit_loop.epoch_loop.val_loop.batch_progress
    trackers: tuple[Any, Any] = (progress.total, progress.current)
    for tracker in trackers:
        tracker.ready = tracker.started = 1
        tracker.processed = tracker.completed = 0


@contextmanager
def between_steps(trainer: Trainer) -> Iterator[bool]:
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


def synchronise_by(trainer: Trainer, sync: TorchSyncBatchNorm) -> None:
    """Where SyncBatchNorm is asked for, have it put in by this."""
    strategy: Any = trainer.strategy
    if type(getattr(strategy, "_layer_sync", None)) is TorchSyncBatchNorm:
        strategy._layer_sync = sync


def leave_out_anonymous(logger: WandbLogger) -> None:
    """Have W&B not be told of a setting that it has no more, of which it warns at every start."""
    logger._wandb_init.pop("anonymous", None)


def quiet() -> None:
    """Keep Lightning's advertising and its known false alarms off the terminal."""
    rank_zero = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    rank_zero.addFilter(_is_no_tip)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*sync_dist=True.*")  # scores are of all processes as they are
    warnings.filterwarnings("ignore", message=".*The dirpath has changed.*")
    warnings.filterwarnings("ignore", message=".*in eval mode at the start.*")  # as what is frozen is
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "💡" not in record.getMessage()
