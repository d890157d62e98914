"""The fields of one entry of a COCO file, checked.

`where` is the entry's place in its file, for messages. Every function raises InputError for what it refuses.
"""

import math
import reprlib
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np

from fpn.errors import InputError


def field_of(entry: Any, key: str, where: str) -> Any:
    """The value of a key that the entry must have."""
    if not isinstance(entry, Mapping):
        raise InputError(f"{where}: a JSON object is expected, not {kind_of(entry)}")
    if key not in entry:
        raise InputError(f"{where}: {key!r} is missing; every entry needs it")
    return entry[key]


def id_of(entry: Any, key: str, where: str) -> int:
    """An integer of 64 bits."""
    value = field_of(entry, key, where)
    if not is_id(value):
        raise InputError(f"{where}: {key} is {reprlib.repr(value)}; it must be an integer")
    return int(value)


def number_of(entry: Any, key: str, where: str) -> float:
    """A finite number."""
    value = field_of(entry, key, where)
    if not _is_number(value):
        raise InputError(f"{where}: {key} is {reprlib.repr(value)}; it must be a finite number")
    return float(value)


def box_of(entry: Any, where: str) -> list[float]:
    """`bbox`, (x, y, width, height) in pixels, finite. The signs are free, as in pycocotools."""
    value = field_of(entry, "bbox", where)
    well_formed = isinstance(value, (list, tuple, np.ndarray)) and len(value) == 4
    if not (well_formed and all(_is_number(side) for side in value)):
        raise InputError(f"{where}: bbox is {reprlib.repr(value)}; it must be 4 finite numbers")
    return [float(side) for side in value]


def is_id(value: object) -> bool:
    """Whether this is an integer of 64 bits; true and false are none."""
    return isinstance(value, Integral) and not isinstance(value, bool) and -(2**63) <= int(value) < 2**63


def _is_number(value: object) -> bool:
    if not isinstance(value, (float, Real)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # JSON has integers of any size
        return False


def kind_of(value: object) -> str:
    """What a value is in JSON's terms, for messages."""
    names = {dict: "an object", list: "a list", str: "a string", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number" if isinstance(value, Real) else type(value).__name__)
