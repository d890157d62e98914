"""What every neck is: the base class."""

from collections.abc import Mapping

from torch import nn


class Neck(nn.Module):
    """What lies between bottom-up and heads.

    Attributes:
        inputs: the C levels it reads.
        levels: the levels of its output, finest first.
        channels: the channels of every level of its output.
        toggles: what it was built with or without, by name; dashboards group runs by it.
    """

    inputs: tuple[int, ...]
    levels: tuple[int, ...]
    channels: int
    toggles: Mapping[str, bool] = {}
