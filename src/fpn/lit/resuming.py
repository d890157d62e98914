"""What a checkpoint keeps of a run, and what a run that goes on shares with the one it goes on with."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from fpn.checkpoints import in_words, kept_in, settings_kept
from fpn.described import accepts, class_path
from fpn.errors import InputError
from fpn.interop.settings import detector_settings, differences, image_settings
from fpn.lightning_private import averaging
from fpn.weights import check_weights

if TYPE_CHECKING:
    from fpn.lit.module import DetectionModule

_TRAINERS = ("precision", "gradient_clip_val", "gradient_clip_algorithm")
_HOW_ALONE = {"params", "name", "foreach", "fused", "capturable", "differentiable"}
"""Of an optimiser's settings: what it is given, and how a step is computed, not which."""


def record(module: "DetectionModule") -> dict[str, Any]:
    """What a checkpoint keeps besides weights: all that is needed to use them, or to go on with the run."""
    categories = module.data.categories
    return {
        "config": config_of(module),
        "untold": [name for name in module.untold if name not in module.hparams],
        "untold_of_data": [name for name in module.data.untold if not _tells(module.data.hparams, name)],
        "categories": {"ids": list(categories.ids), "names": list(categories.names)},
        "image": asdict(module.data.image_settings),
        "images_per_step": module.images_per_step,
        "seed": module.seed,
        "options": module.options,
        "trainer_options": _trainer_options(module.trainer),
        "loggers": {
            type(logger).__name__: getattr(logger, "path_of_run", logger.version)
            for logger in module.trainer.loggers
        },
    }


def _tells(config: Any, name: str) -> bool:
    first, _, rest = name.partition(".")
    there = isinstance(config, Mapping) and first in config
    return there and (not rest or _tells(config[first], rest))


def config_of(module: "DetectionModule") -> dict[str, Any]:
    """What the module and its data were made of, as in a configuration file."""
    model = {name: value for name, value in module.hparams.items() if name != "classes"}
    return {
        "model": model,
        "data": {"class_path": class_path(type(module.data)), "init_args": dict(module.data.hparams)},
    }


def made_of(
    kind: type["DetectionModule"], checkpoint: Mapping[str, Any], path: str, given: Mapping[str, Any]
) -> dict[str, Any]:
    """What the module of a checkpoint was made of, in plain values.

    Args:
        kind: which class of module takes them.
        checkpoint: its content.
        path: how to name it.
        given: arguments that take the place of its own, which it need not tell.

    Raises:
        InputError: it is not one of this project, or lacks what it must tell.
    """
    kept = kept_in(checkpoint, path)
    takes = accepts(kind)
    if lacking := [name for name in checkpoint["fpn"]["untold"] if name not in given and takes(name)]:
        raise InputError(
            f"{path} does not tell its {lacking[0]}, which a function made, or a class of no module: give "
            f"{lacking[0]}= here, and where it is trained make it of a class in a module, or functools."
            "partial of one"
        )
    config = kept.config.get("model") or checkpoint.get("hyper_parameters", {})
    told = {"classes": len(kept.categories.ids), **config}
    return {name: value for name, value in told.items() if takes(name)}


def refuse_other_categories(module: "DetectionModule") -> None:
    """Raise InputError if the data have other categories than the weights were trained for."""
    theirs, ours = module.trained_for, module.data.categories
    if theirs is not None and theirs != ours:
        raise InputError(
            f"the checkpoint was trained for other categories than the data has: {theirs.difference(ours)}"
        )


def take_up(module: "DetectionModule", checkpoint: dict[str, Any]) -> None:
    """Go on with a checkpoint's run, or score its weights.

    Raises:
        InputError: it is of another detector, was trained for other categories or with other numbers of
            images, or has no optimiser to go on with.
    """
    known = kept_in(checkpoint, "the checkpoint")
    module.trained_for = known.categories
    kept, trainer = checkpoint["fpn"], _trainer_of(module)
    if trainer is not None:
        refuse_other_categories(module)
    check_weights(module.state_dict(), checkpoint["state_dict"], "the checkpoint")
    module.seed = kept["seed"]
    if trainer is not None:
        ours = detector_settings(module.detector) | image_settings(module.data.image_settings)
        try:
            theirs = settings_kept(known, "the checkpoint")
        except InputError:  # its classes may have moved since, and the weights fit
            theirs = image_settings(known.image)
        if other := differences(ours, theirs):
            rank_zero_warn(
                f"the checkpoint was trained with other settings of the detector: {in_words(other)}; what "
                "this run is given counts, and what it leaves out is as the checkpoint has it"
            )
    if trainer is None or trainer.state.fn != TrainerFn.FITTING:
        return
    if not checkpoint.get("optimizer_states"):
        raise InputError(
            "this checkpoint cannot be gone on with, it has no state of an optimiser: start a new run "
            "with model.start_from"
        )
    if kept["images_per_step"] != module.images_per_step:
        raise InputError(
            f"the checkpoint was trained with {kept['images_per_step']} images a step, this run has "
            f"{module.images_per_step}: choose data.batch_size, trainer.devices and "
            f"trainer.accumulate_grad_batches so that they agree"
        )
    module.options_before = kept["options"]
    for name, before, now in _changed(kept["trainer_options"], _trainer_options(module.trainer)):
        rank_zero_warn(
            f"the checkpoint was trained with {name} {before}, this run goes on with {now}: no checkpoint "
            "remembers the trainer's options, so give them again"
        )
    if (lost := kept["untold_of_data"]) and not module.data.untold:
        rank_zero_warn(
            f"the checkpoint does not tell {', '.join(lost)} of its data: see that this run is given the same"
        )
    trained = checkpoint.get("current_model_state")
    if trained is not None and not averaging(trainer):
        checkpoint["state_dict"] = trained
        rank_zero_warn(
            "the checkpoint has averaged weights, and this run no callback that averages: it goes on from "
            "those that were trained; give the callback again to go on with the average"
        )


def _trainer_of(module: "DetectionModule") -> Trainer | None:
    try:
        return module.trainer
    except RuntimeError:  # Lightning's: there is none yet
        return None


def optimizer_options(optimizer: Optimizer) -> dict[str, Any]:
    """Options of the command line that an optimiser was made by, before a schedule has changed it."""
    settings = {key: value for key, value in optimizer.param_groups[0].items() if key not in _HOW_ALONE}
    named = {f"model.optimizer.{key}": value for key, value in settings.items()}
    return {"model.optimizer": type(optimizer).__name__} | named


def refuse_others(kept: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse other options than the checkpoint's, which is restored with what they made of it.

    Args:
        kept: the checkpoint's; nothing where a run begins.
        ours: of the run that goes on.

    Raises:
        InputError: one differs.
    """
    for name, before, now in _changed(kept, ours):
        raise InputError(
            f"the checkpoint was trained with {name} {before}, this run has {now}: leave it as it was, or "
            "start a new run with model.start_from"
        )


def _trainer_options(trainer: Trainer) -> dict[str, str]:
    """Options of the trainer that change what is learned; Lightning's checkpoints do not have them."""
    return {f"trainer.{name}": str(getattr(trainer, name)) for name in _TRAINERS}


def _changed(kept: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """The options of both that differ: name, the checkpoint's value, ours."""
    return ((name, kept[name], value) for name, value in ours.items() if kept.get(name, value) != value)
