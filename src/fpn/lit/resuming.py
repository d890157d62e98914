"""What a run that goes on shares with the one it goes on with: its optimiser, and how it is trained."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from fpn.errors import InputError

_OPTIONS = ("precision", "gradient_clip_val")
"""Of the trainer, which remembers none; they may change within a run, but not unseen."""


def how_trained(trainer: Trainer) -> dict[str, Any]:
    """What a checkpoint keeps of the optimiser and of the trainer."""
    return {
        "optimizer": next((type(optimizer).__name__ for optimizer in trainer.optimizers), None),
        "trainer": {name: getattr(trainer, name) for name in _OPTIONS},
    }


def warn_of_other_options(kept: Mapping[str, Any], trainer: Trainer) -> None:
    """Tell of options of the trainer that are not the checkpoint's.

    Args:
        kept: what `how_trained` gave; nothing in an older checkpoint.
        trainer: of the run that goes on.
    """
    for name, before in kept.get("trainer", {}).items():
        now = getattr(trainer, name, before)
        if now != before:
            rank_zero_warn(
                f"the checkpoint was trained with trainer.{name} {before}, this run goes on with {now}: no "
                "checkpoint remembers the trainer's options, so give them again"
            )


def check_same_optimizer(optimizer: Optimizer, checkpoint: Mapping[str, Any]) -> None:
    """Refuse another optimiser than the checkpoint's: Lightning restores its settings with its state.

    Args:
        optimizer: of the run that goes on, its initial learning rate set.
        checkpoint: with `how_trained` under "fpn"; in an older one only settings are compared.

    Raises:
        InputError: it is of another class, or has other settings.
    """
    remedy = "leave model.optimizer as it was, or start a new run with model.start_from"
    groups, kept = optimizer.param_groups, checkpoint["optimizer_states"][0]["param_groups"]
    name, before = type(optimizer).__name__, checkpoint["fpn"].get("optimizer")
    # Another version of an optimiser may have a setting more; another optimiser has others.
    alike = groups[0].keys() <= kept[0].keys() or groups[0].keys() >= kept[0].keys()
    if before not in (None, name) or not alike:
        raise InputError(
            f"the checkpoint was trained by {before or 'another optimiser'}, this run has {name}: {remedy}"
        )
    for ours, theirs in zip(groups, kept, strict=False):
        # The learning rate itself stands where the schedule was.
        for key in sorted((ours.keys() & theirs.keys()) - {"params", "lr"}):
            if ours[key] != theirs[key]:
                what = key.replace("initial_lr", "lr")
                raise InputError(
                    f"the checkpoint was trained with model.optimizer.{what} {theirs[key]}, this run has "
                    f"{ours[key]}: {remedy}"
                )
