"""The one exception for mistakes a user can mend, and checks of numbers that raise it."""

import math
from collections.abc import Sequence


class InputError(ValueError):
    """A file, key or value given by the user is wrong.

    The message is one line that names what is wrong and what to do about it; the command line prints it
    and exits with status 2, without a traceback.
    """


def at_least(least: float, where: str = "", /, **values: float | None) -> None:
    """Raise InputError for a number below the least, or not finite.

    Args:
        least: what they must reach.
        where: stands before their names, as "roi_sampling."
        **values: by their names; None is passed over.
    """
    for name, value in values.items():
        if value is not None and not (value >= least and math.isfinite(value)):
            raise InputError(f"{where}{name} is {value}: give {least} or more")


def positive(where: str = "", /, **values: float | Sequence[float] | None) -> None:
    """Raise InputError for a number that is not above 0, or a list that has one or none at all."""
    for name, value in values.items():
        if isinstance(value, Sequence):
            if not value or not all(one > 0 and math.isfinite(one) for one in value):
                raise InputError(f"{where}{name} is {list(value)}: give one number or more, all above 0")
        elif value is not None and not (value > 0 and math.isfinite(value)):
            raise InputError(f"{where}{name} is {value}: give a number above 0")


def shares(where: str = "", /, **values: float | None) -> None:
    """Raise InputError for a number that is not from 0 to 1. Arguments as of `at_least`."""
    for name, value in values.items():
        if value is not None and not 0 <= value <= 1:
            raise InputError(f"{where}{name} is {value}: give a share, from 0 to 1")
