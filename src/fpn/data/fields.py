"""What belongs in the fields of a file in COCO's format, and what else is taken for it.

An integer is whole and of 64 bits, be it written 12 or 12.0; a number is anything of float64, NaN and
infinities too; true and false are neither; null stands for nothing. What else is to be taken is taken by the
function of its `Kind`.

An id is an integer of any size or a string; a string that spells an integer is that integer.
"""

import re
from collections.abc import Callable, Iterable
from contextlib import suppress
from itertools import chain
from numbers import Integral, Real
from typing import Any, NamedTuple

import numpy as np

_EXACT = 2**53
"""Up to here every whole number has a float of its own."""
_SPELT = re.compile(r"0|-?[1-9][0-9]{0,99}")
_NUMERAL = re.compile(r" *[+-]?([0-9]{1,15}(\.[0-9]{0,30})?|\.[0-9]{1,30})([eE][+-]?[0-9]{1,2})? *")
_UNWRITABLE = re.compile(r"[\0-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")
"""JSON can hold these characters; a file's name or UTF-8 cannot, or a terminal would obey them."""


class Kind(NamedTuple):
    """What belongs in a field."""

    wanted: str
    take: Callable[[Any], Any]
    """What a value means; None where it means nothing of this kind."""
    blank: Any
    """Stands in the column for what means nothing."""
    dtype: type
    plain: Callable[[list[Any]], bool] = lambda values: False
    """Whether NumPy can convert these values as they are, in one go."""


def _unquoted(value: object) -> object:
    """The number that a string spells; anything else as it is."""
    return float(value) if isinstance(value, str) and _NUMERAL.fullmatch(value) else value


def _integer(value: object) -> int | None:
    value = _unquoted(value)
    if isinstance(value, float) and value.is_integer() and abs(value) <= _EXACT:
        value = int(value)
    whole = isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63
    return int(value) if whole else None  # type: ignore[call-overload]


def identity(value: object) -> int | str | None:
    """What an id of a file is equal to, as `5`, `5.0` and `"5"` are the same; None for what is no id."""
    if isinstance(value, str):
        spelt = _SPELT.fullmatch(value)
        return int(value) if spelt else (text(value) or None)
    if isinstance(value, Integral) and not isinstance(value, bool):
        return int(value)
    return _integer(value) if isinstance(value, float) else None


def _number(value: object) -> float | None:
    value = _unquoted(value)
    if isinstance(value, float | Real) and not isinstance(value, bool):
        with suppress(OverflowError):  # JSON has integers of any size
            return float(value)
    return None


def _side(value: object) -> int | None:
    return side if (side := _integer(value)) is not None and 1 <= side < 2**31 else None


def _flag(value: object) -> bool | None:
    value = _unquoted(value)
    return value == 1 if value in (None, 0, 1) else None


def _box(value: object) -> list[float | None] | None:
    sides = [_number(side) for side in value] if isinstance(value, list | tuple | np.ndarray) else []
    return sides if len(sides) == 4 and None not in sides else None


def text(value: object) -> str | None:
    return value if isinstance(value, str) and _UNWRITABLE.search(value) is None else None


def all_of(values: Iterable[Any], *types: type) -> bool:
    return {*types}.issuperset(map(type, values))


def plain_boxes(values: list[Any]) -> bool:
    lists = all_of(values, list) and {4}.issuperset(map(len, values))
    return lists and all_of(chain.from_iterable(values), int, float)


ID = Kind("an integer or a string", identity, 0, np.object_)
SIDE = Kind(
    "a length in whole pixels", _side, 0, np.int64, lambda v: all_of(v, int) and all(map(_side, {*v}))
)
NUMBER = Kind("a number", _number, 0.0, np.float64, lambda values: all_of(values, int, float))
BOX = Kind("four numbers", _box, (0.0,) * 4, np.float64, plain_boxes)
STRING = Kind("a string", text, "", np.object_)
FLAG = Kind("0 or 1", _flag, False, np.bool_, lambda v: all_of(v, int) and {0, 1}.issuperset(v))


def kind_of(value: object) -> str:
    """What a value is in JSON's terms, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "missing"}
    return names.get(type(value), "a number" if isinstance(value, Real) else type(value).__name__)
