"""Scores that callbacks watch: of known names, and never the best where they are NaN."""

import re
from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from fpn.errors import InputError
from fpn.evaluation import Metric
from fpn.models.detectors import Detector

if TYPE_CHECKING:
    from fpn.lit.module import DetectionModule

_ALWAYS = ("train/loss", "train/images_per_second", "epoch", "step")
_OURS = ("fpn", "lightning")
_REFUSED: dict[type[Callback], str] = {
    GradientAccumulationScheduler: "changes how many images a step learns from, which the schedule and the "
    "learning rate are for: give trainer.accumulate_grad_batches",
    StochasticWeightAveraging: "takes the place of the schedule, and averages into no checkpoint: use "
    "fpn.lit.callbacks.EMA",
}
"""Callbacks of Lightning's that would do harm in silence, and what they do."""


def names(
    detector: Detector | type[Detector], metrics: Sequence[Metric | type[Metric]], val_losses: bool = True
) -> tuple[str, ...]:
    """What a training logs, besides learning rates."""
    losses = detector.loss_names
    scores = [f"val/{name}" for metric in metrics for name in metric.names]
    if val_losses:
        scores += [f"val/{name}" for name in ("loss", *losses)]
    return (*scores, *(f"train/{name}" for name in losses), *_ALWAYS)


def refuse_callbacks(trainer: Trainer) -> None:
    """Raise InputError if there is a callback that a training here cannot have."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if type(callback) in _REFUSED:
            raise InputError(f"{type(callback).__name__} {_REFUSED[type(callback)]}")


def check_watched(trainer: Trainer, module: "DetectionModule") -> None:
    """See that callbacks watch what is logged and is a number.

    Raises:
        InputError: one watches a score that is never logged, or NaN whatever is found.
    """
    known = names(module.detector, module.metrics, module.val_losses)
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return
    for callback, what, name in _watched(trainer):
        if not (name in known or name.startswith("lr-")) and not _logs_more(trainer, module):
            raise InputError(
                f"{type(callback).__name__}: {what} is {name}, which is never logged; "
                f"there are {', '.join(known)}"
            )
        for metric in module.metrics:
            if what != "monitor" or name.removeprefix("val/") not in metric.names or name not in known:
                continue
            undefined = metric.undefined()
            if name.removeprefix("val/") in undefined:
                others = [f"val/{one}" for one in metric.names if one not in undefined]
                raise InputError(
                    f"{type(callback).__name__}: {what} is {name}, which is NaN: the validation images "
                    f"have no such object; there are {', '.join(others) or 'no other scores of this kind'}"
                )
            if metric.higher_is_better and getattr(callback, "mode", "max") == "min":
                rank_zero_warn(
                    f"{type(callback).__name__} takes the least {name} for the best: give mode: max for the "
                    "greatest"
                )


def keep_nan_out(trainer: Trainer) -> None:
    """Have no checkpoint be the best whose score is NaN; Lightning's own takes the first for it."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.save_top_k != -1:
            vars(callback)["check_monitor_top_k"] = partial(_is_better, callback)


def _is_better(callback: ModelCheckpoint, trainer: Trainer, current: Tensor | None = None) -> bool:
    """A `check_monitor_top_k` that asks the callback's own about numbers only."""
    number = current is not None and not current.isnan()
    return number and type(callback).check_monitor_top_k(callback, trainer, current)


def _watched(trainer: Trainer) -> Iterator[tuple[Callback, str, str]]:
    """The user's callbacks with what they watch: the option, and the name."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    for callback in callbacks:
        if type(callback).__module__.startswith("fpn."):
            continue  # the module tells it what to watch
        if isinstance(callback, EarlyStopping | ModelCheckpoint) and callback.monitor is not None:
            yield callback, "monitor", callback.monitor
        if isinstance(callback, ModelCheckpoint):
            for name in re.findall(r"\{([^:}]+)", callback.filename or ""):
                yield callback, "filename", name


def _logs_more(trainer: Trainer, module: "DetectionModule") -> bool:
    """Whether parts of the user's own may log what is not known before."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    parts = (module, module.detector, *module.metrics, *callbacks)
    return any(type(one).__module__.partition(".")[0] not in _OURS for one in parts)
