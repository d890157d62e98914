"""What a run that goes on shares with the one it goes on with."""

from collections.abc import Iterator, Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from fpn.errors import InputError

_TRAINERS = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
_HOW_ALONE = {"params", "foreach", "fused", "capturable", "differentiable"}
"""Of an optimiser's settings: what it is given, and how a step is computed, not which."""


def optimizer_options(optimizer: Optimizer) -> dict[str, Any]:
    """Options of the command line that an optimiser was made by, before a schedule has changed it."""
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key not in _HOW_ALONE}
    named = {f"model.optimizer.{key}": value for key, value in settings.items()}
    return {"model.optimizer": type(optimizer).__name__} | named


def trainer_options(trainer: Trainer) -> dict[str, str]:
    """Options of the trainer that change what is learned; Lightning's checkpoints do not have them."""
    return {f"trainer.{name}": str(getattr(trainer, name)) for name in _TRAINERS}


def refuse_others(kept: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse other options than the checkpoint's, which is restored with what they made of it.

    Args:
        kept: the checkpoint's; nothing in an older one.
        ours: of the run that goes on.

    Raises:
        InputError: one differs.
    """
    for name, before, now in _changed(kept, ours):
        raise InputError(
            f"the checkpoint was trained with {name} {before}, this run has {now}: leave it as it was, or "
            "start a new run with model.start_from"
        )


def tell_others(kept: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Warn of other options than the checkpoint's, which may change within a run, but not unseen."""
    for name, before, now in _changed(kept, ours):
        rank_zero_warn(
            f"the checkpoint was trained with {name} {before}, this run goes on with {now}: no checkpoint "
            "remembers the trainer's options, so give them again"
        )


def _changed(kept: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The options of both that differ: name, the checkpoint's value, ours."""
    return ((name, kept[name], value) for name, value in ours.items() if kept.get(name, value) != value)
