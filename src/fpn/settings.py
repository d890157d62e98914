"""Kinds of numbers that a setting may be: the command line refuses any other by the option's name.

In Python they are plain numbers, which nothing checks.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    PositiveInt = int
    NonNegativeInt = int
    PositiveFloat = float
    NonNegativeFloat = float
    Share = float
else:
    from jsonargparse.typing import ClosedUnitInterval as Share
    from jsonargparse.typing import (
        NonNegativeFloat,
        NonNegativeInt,
        PositiveFloat,
        PositiveInt,
        register_type,
    )

    def _register(kind: type, base: type) -> None:
        # jsonargparse's own values are of these kinds, which torch.export and checkpoints do not know.
        register_type(kind, base, lambda value: base(kind(value)), type_check=lambda value, _: False)

    for _kind in (PositiveInt, NonNegativeInt):
        _register(_kind, int)
    for _kind in (PositiveFloat, NonNegativeFloat, Share):
        _register(_kind, float)

BoxWeights = tuple[PositiveFloat, PositiveFloat, PositiveFloat, PositiveFloat]
"""Factors of the deltas dx, dy, dw, dh."""

__all__ = ["BoxWeights", "NonNegativeFloat", "NonNegativeInt", "PositiveFloat", "PositiveInt", "Share"]
