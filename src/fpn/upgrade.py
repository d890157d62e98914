"""Configurations of earlier versions of this project, as this one has them.

Checkpoints keep the configuration they were trained with, and files lie in other people's folders: both are
read by way of `upgraded`.
"""

from collections.abc import Callable
from typing import Any

Config = dict[str, Any]
"""What a configuration file holds: model, data, trainer; or a part of these, under the same names."""

UPGRADES: list[Callable[[Config], Config]] = []
"""Each takes a whole configuration and gives it back with its own changes; oldest first."""


def upgraded(config: Config) -> Config:
    """A configuration with the names of this version; one that has them already comes back as it is."""
    for upgrade in UPGRADES:
        config = upgrade(config)
    return config
