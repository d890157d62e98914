"""A single map of the bottom-up: the baselines without a pyramid."""

from collections.abc import Mapping

from fpn.errors import InputError
from fpn.models.necks.base import Neck
from fpn.types import Features


class SingleLevel(Neck):
    """One map of the bottom-up as it is: the baselines of Table 1 (a) and (b), Fig. 1 (b).

    Args:
        in_channels: channels of each C level.
        level: which one.

    Raises:
        InputError: the bottom-up has no such level.
    """

    def __init__(self, in_channels: Mapping[int, int], level: int = 4) -> None:
        super().__init__()
        if level not in in_channels:
            raise InputError(f"neck.level {level} is not among the bottom-up's levels {sorted(in_channels)}")
        self.inputs, self.levels, self.channels = (level,), (level,), in_channels[level]

    def forward(self, c: Features) -> Features:
        """From {k: C_k} to {level: C_level}."""
        return {self.levels[0]: c[self.levels[0]]}
