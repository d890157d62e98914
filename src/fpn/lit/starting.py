"""What a training starts from: loaded once, and not at all where a checkpoint brings the weights."""

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from fpn.checkpoints import Start, build_detector, start_from
from fpn.errors import InputError
from fpn.interop.files import read_weights
from fpn.lightning_private import average_from

if TYPE_CHECKING:
    from fpn.lit.module import DetectionModule


def look_ahead(model: Mapping[str, Any], bottom_up: bool) -> None:
    """Before any data are read: see that the weights which a run begins with can be had.

    What torchvision and timm publish is downloaded, and then lies in their caches.

    Args:
        model: the configuration of the module, in plain values.
        bottom_up: see to the bottom-up's own weights too, where nothing else takes their place.

    Raises:
        InputError: a file is missing or damaged, or weights cannot be downloaded.
    """
    if model["start_from"] is not None:
        read_weights(model["start_from"])
        return
    own = model["detector"].get("init_args", {}).get("bottom_up") or {}
    if bottom_up and own.get("init_args", {}).get("weights") is not None:
        with torch.device("meta"):
            made = build_detector([model["detector"]], classes=1).bottom_up
        if made.weights is not None:
            made.read_weights(made.weights)


def begin_fit(module: "DetectionModule") -> None:
    """Load what a training begins with, and see that nothing which is not trained stays random.

    Raises:
        InputError: the weights do not fit, or a part is neither trained nor taken from anywhere.
    """
    bottom_up = module.detector.bottom_up

    def load() -> None:
        start = _start(module)
        copied = start.copied if start is not None else []
        if start is not None and start.other:
            rank_zero_warn(start.warning)
        if random := [part for part in module.frozen_parts if part not in (*copied, "bottom_up")]:
            raise InputError(
                f"frozen_parts: {', '.join(random)} would stay as random as it is: give model.start_from, "
                "a checkpoint that has it trained"
            )
        if bottom_up.loaded:  # from there, or by the user's own program
            return
        if bottom_up.weights is not None:
            bottom_up.load_weights()
            image = module.data.image_settings
            if bottom_up.pixels is not None and bottom_up.pixels != (tuple(image.mean), tuple(image.std)):
                mean, std = (list(value) for value in bottom_up.pixels)
                rank_zero_warn(
                    f"the bottom-up's weights were trained on images of another mean and deviation: give"
                    f" --data.images.mean '{mean}' --data.images.std '{std}'"
                )
        elif bottom_up.fixed or "bottom_up" in module.frozen_parts:
            rank_zero_warn(
                "the bottom-up starts from random weights, yet part of it is not trained: set its weights, "
                "or frozen_stages: 0 and norms that are trained (a ResNet's norm: batch, timm's norm: live)"
            )

    _in_turn(module, load)
    average_from(module.trainer, module)


def begin_test(module: "DetectionModule") -> None:
    """Load `start_from`, if there is one, to score it: as a whole, and as it was trained.

    Raises:
        InputError: it does not fit, or would not be scored as what it is.
    """

    def load() -> None:
        start = _start(module)
        if start is None:
            return
        if start.ours:
            raise InputError(f"{start.path} is a checkpoint of this project: give it as --ckpt_path")
        if start.new:
            raise InputError(
                f"{start.path} has no weights of {', '.join(start.new)}: random ones are not worth a score; "
                "give --ckpt_path"
            )
        if any(not name.startswith("data.images.") for name in start.other):
            raise InputError(start.warning)
        if start.other:
            rank_zero_warn(start.warning)

    _in_turn(module, load)


def _start(module: "DetectionModule") -> Start | None:
    if module.start_from is None:
        return None
    start = start_from(module.detector, module.start_from, module.start_parts, module.data.image_settings)
    rank_zero_info(str(start))
    return start


def _in_turn(module: "DetectionModule", load: Callable[[], None]) -> None:
    """Load, on each machine in the first process before the others: what is downloaded, that is once."""
    for first in (True, False):
        if (module.local_rank == 0) == first:
            load()
        module.trainer.strategy.barrier()
