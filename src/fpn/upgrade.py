"""Configurations of earlier versions of this project, as this one has them.

Checkpoints keep the configuration they were trained with, and files lie in other people's folders: both are
read by way of `upgraded`.
"""

from collections.abc import Callable, Mapping
from typing import Any

Config = dict[str, Any]
"""What a configuration file holds: model, data, trainer; or a part of these, under the same names."""


def box_losses(config: Config) -> Config:
    """A detector's `loss` became `rpn_box_loss`, `roi_box_loss` and `rpn_loss_per_image`."""
    model = config.get("model") or {}
    detector: Any = model.get("detector") if isinstance(model, Mapping) else None
    arguments: Any = detector.get("init_args", detector) if isinstance(detector, Mapping) else None
    if not isinstance(arguments, Mapping) or not isinstance(arguments.get("loss"), Mapping):
        return config
    given = arguments["loss"]
    new = {key: value for key, value in arguments.items() if key != "loss"}
    # Each detector takes those of its parts alone; one without a class is a Faster R-CNN.
    kind = str(detector.get("class_path", "FasterRCNN")).rpartition(".")[2]
    for part, without in (("rpn", "FastRCNN"), ("roi", "ProposalNetwork")):
        if f"{part}_beta" in given and kind != without:
            loss = {"class_path": "fpn.models.losses.SmoothL1", "init_args": {"beta": given[f"{part}_beta"]}}
            new[f"{part}_box_loss"] = loss
    if "rpn_per_image" in given and kind != "FastRCNN":
        new["rpn_loss_per_image"] = given["rpn_per_image"]
    detector = {**detector, "init_args": new} if "init_args" in detector else new
    return {**config, "model": {**model, "detector": detector}}


UPGRADES: list[Callable[[Config], Config]] = [box_losses]
"""Each takes a whole configuration and gives it back with its own changes; oldest first."""


def upgraded(config: Config) -> Config:
    """A configuration with the names of this version; one that has them already comes back as it is."""
    for upgrade in UPGRADES:
        config = upgrade(config)
    return config
