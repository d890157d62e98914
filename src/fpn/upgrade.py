"""Configurations of earlier versions of this project, as this one has them.

Checkpoints keep the configuration they were trained with, and files lie in other people's folders: both are
read by way of `upgraded`.
"""

import copy
from collections.abc import Callable
from typing import Any

Config = dict[str, Any]
"""What a configuration file holds: model, data, trainer; or a part of these, under the same names."""

UPGRADES: list[Callable[[Config], Config]] = []
"""Each takes a whole configuration and gives it back with its own changes; oldest first."""


MOVED: dict[str, str] = {}
"""Classes that have another name or home now, by the `class_path` that they had."""


def upgraded(config: Config) -> Config:
    """A configuration as this version has it; the one that is given stays as it is."""
    config = _moved(copy.deepcopy(config))
    for upgrade in UPGRADES:
        config = upgrade(config)
    return config


def _moved(value: Any) -> Any:
    if isinstance(value, list):
        return [_moved(item) for item in value]
    if not isinstance(value, dict):
        return value
    moved = {key: _moved(item) for key, item in value.items()}
    if isinstance(path := moved.get("class_path"), str):
        moved["class_path"] = MOVED.get(path, path)
    return moved
