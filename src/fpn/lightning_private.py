"""All that is used of Lightning's inner parts, each with its reason.

pyproject.toml allows the versions that this was tried with. Lightning promises none of it to the next.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from subprocess import Popen
from typing import Any

from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.loggers import WandbLogger


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


def log_by_steps(trainer: Trainer) -> None:
    """Have the loggers count as the optimiser does; in a run that goes on they may be one ahead."""
    trainer.fit_loop.epoch_loop._batches_that_stepped = trainer.global_step


def average_from(trainer: Trainer, module: LightningModule) -> None:
    """Have callbacks that average weights begin with these: they have copied them before they were loaded."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, WeightAveraging) and callback._average_model is not None:
            callback._average_model.module.load_state_dict(module.state_dict())


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
    warnings.filterwarnings("ignore", message=".*isinstance\\(treespec, LeafSpec\\).*")


def _is_no_tip(record: logging.LogRecord) -> bool:
    return "💡" not in record.getMessage()
