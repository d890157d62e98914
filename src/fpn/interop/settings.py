"""What detectors do with the same weights: settings that no file of weights tells."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache, partial
from importlib import import_module
from inspect import signature
from typing import Any

import torch
import yaml

from fpn.data.options import ImageOptions
from fpn.data.transforms import ImageSettings
from fpn.models.detectors import Detector, FasterRCNN, ProposalNetwork
from fpn.shipped import CONFIGS

_KEYS = {
    "bottom_up": ("stride_in_1x1", "norm_eps", "two_last"),
    "neck": ("top_down", "nonlinearity"),
    "rpn": ("levels", "sizes", "ratios", "rounded", "grid", "box_weights"),
    "roi_head": (
        "levels",
        "pooling",
        "resolution",
        "sampling_ratio",
        "aligned",
        "canonical_size",
        "canonical_level",
        "epsilon",
        "box_weights",
    ),
}
_DEFAULTS = {
    name: parameter.default
    for kind in (ProposalNetwork, FasterRCNN)
    for name, parameter in signature(kind).parameters.items()
}


def detector_settings(detector: Detector) -> dict[str, Any]:
    """Those of a detector, as `rpn.grid`; what its weights' names or shapes tell is left out."""
    parts = {part: getattr(detector, part) for part in _KEYS if hasattr(detector, part)}
    # One neck may have the parameters of another.
    kinds = {part: type(module).__name__ for part, module in parts.items() if part == "neck"}
    return kinds | {
        f"{part}.{key}": getattr(module, key)
        for part, module in parts.items()
        for key in _KEYS[part]
        if hasattr(module, key)
    }


def image_settings(image: ImageSettings) -> dict[str, Any]:
    """How pixels are made, as `data.images.mean`: what weights are trained for beside sizes."""
    mean, std = tuple(image.mean), tuple(image.std)
    named = {"mean": mean, "std": std, "antialias": image.antialias, "rounding": image.rounding}
    return {f"data.images.{key}": value for key, value in named.items()}


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that both have and that differ: ours and theirs, by name."""
    return {key: (ours[key], theirs[key]) for key in ours if key in theirs and ours[key] != theirs[key]}


@cache
def settings_in(*names: str) -> dict[str, Any]:
    """As `detector_settings`, of the detector that configuration files make."""
    with torch.device("meta"):
        return detector_settings(FasterRCNN(1, **arguments_in(*names)))


def arguments_in(*names: str) -> dict[str, Any]:
    """The arguments of a FasterRCNN that configuration files give.

    Args:
        *names: of the files, as `conventions/detectron2`; each is a difference to those before.
    """
    merged: dict[str, Any] = {}
    for detector in (content["model"]["detector"] for content in _contents(names)):
        for key, value in detector.get("init_args", detector).items():
            difference = isinstance(value, Mapping) and "class_path" not in value
            merged[key] = merged.get(key, {}) | value if difference else value
    return {key: _made(value, _DEFAULTS[key]) for key, value in merged.items()}


def images_in(*names: str) -> ImageSettings:
    """How configuration files have images prepared, as of `arguments_in`."""
    merged: dict[str, Any] = {}
    for content in _contents(names):
        merged |= content["data"].get("images", {})
    return ImageOptions(**merged).settings


def _contents(names: Sequence[str]) -> list[Any]:
    return [yaml.safe_load((CONFIGS / f"{name}.yaml").read_text()) for name in names]


def _made(value: Any, default: Any = None) -> Any:
    """Settings of a part to be built, or settings proper, as a detector's argument; others as they are."""
    if not isinstance(value, Mapping) or (default is None and "class_path" not in value):
        return value
    if "class_path" in value:
        module, _, name = value["class_path"].rpartition(".")
        default, value = getattr(import_module(module), name), value["init_args"]
    given = {key: _made(inner) for key, inner in value.items()}
    return partial(default, **given) if isinstance(default, type) else replace(default, **given)
