"""Configurations of earlier versions of this project, as this one has them.

Checkpoints keep the configuration they were trained with, and files lie in other people's folders: both are
read by way of `upgraded`.
"""

import copy
from collections.abc import Callable, Mapping
from typing import Any

from fpn.errors import InputError

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


_DATA = {
    **{
        f"{split}_{kind}": (split, kind)
        for split in ("train", "val", "test")
        for kind in ("images", "annotations", "proposals")
    },
    **{
        name: ("images", name)
        for name in ("short_side", "max_side", "flip_probability", "antialias", "rounding", "mean", "std")
    },
    "size_factor": ("images", "scale"),
    "train_size_factors": ("images", "train_scales"),
    "test_size_factors": ("images", "test_scales"),
}
"""Options of the data that once lay side by side: the group that each is in now, and its name there."""


def group_data(config: Config) -> Config:
    """Put options of the data into their groups: `train_images` becomes `train.images`, and so on.

    Raises:
        InputError: training images were resized by train_short_sides and by train_size_factors at once.
    """
    data = config.get("data")
    if isinstance(data, dict):
        shapes = str(data.get("class_path")).endswith("ShapesDataModule")
        if isinstance(data.get("init_args"), dict):
            data = data | {"init_args": _grouped(data["init_args"], shapes)}
        else:
            data = _grouped(data, shapes)
        config = config | {"data": data}
    dotted = {key.removeprefix("data."): value for key, value in config.items() if key.startswith("data.")}
    if dotted:
        config = {key: value for key, value in config.items() if not key.startswith("data.")}
        for name, value in _grouped(dotted, shapes=False).items():
            inner = value if isinstance(value, dict) and name not in dotted else {"": value}
            config |= {f"data.{name}.{key}".rstrip("."): one for key, one in inner.items()}
    return config


def _grouped(flat: Config, shapes: bool) -> Config:
    """The options of a data module in their groups."""
    new: Config = {}
    for name, value in flat.items():
        group, inner = _DATA.get(name, ("", ""))
        if group:
            new[group] = new.get(group, {}) | {inner: [] if value is None and "scales" in inner else value}
        elif name in ("train", "val", "test", "images") and isinstance(value, dict):
            new[name] = new.get(name, {}) | value
        elif name != "train_short_sides":
            new[name] = value
    images: Config = new.get("images", {})
    if flat.get("short_side") is not None and "max_side" not in flat:
        images["max_side"] = 1333  # that of any short side, once
    sides = flat.get("train_short_sides")
    if sides and images.get("train_scales"):
        raise InputError(
            "data.train_short_sides and data.train_size_factors are both data.images.train_scales now: "
            "give that"
        )
    if sides:
        short = flat.get("short_side") or (flat.get("long_side", 256) if shapes else 800)
        images |= {"train_scales": [side / short for side in sides], "scale_max_side": False}
    elif "train_short_sides" in flat:
        images.setdefault("train_scales", [])
    return new | ({"images": images} if images else {})


def panels(config: Config) -> Config:
    """The pictures of a dashboard became a part of its panels."""
    trainer = config.get("trainer")
    callbacks = trainer.get("callbacks") if isinstance(trainer, dict) else None
    for callback in callbacks if isinstance(callbacks, list) else [callbacks]:
        if isinstance(callback, dict) and callback.get("class_path") == "fpn.lit.wandb.DetectionPictures":
            callback["class_path"] = "fpn.lit.callbacks.Panels"
    return config


UPGRADES: list[Callable[[Config], Config]] = [box_losses, group_data, panels]
"""Each takes a whole configuration and gives it back with its own changes; oldest first."""


def upgraded(config: Config) -> Config:
    """A configuration as this version has it; the one that is given stays as it is."""
    config = copy.deepcopy(config)
    for upgrade in UPGRADES:
        config = upgrade(config)
    return config
