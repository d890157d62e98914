"""Modules that the user asks for, by `--import` or FPN_IMPORT."""

import os
from collections.abc import Iterable
from importlib import import_module

from fpn.errors import InputError

VARIABLE = "FPN_IMPORT"


def asked_for(more: Iterable[str] = ()) -> list[str]:
    """Names of modules: the environment's, and those in further texts, each with commas between several."""
    names = [name.strip() for text in (os.environ.get(VARIABLE, ""), *more) for name in text.split(",")]
    return [name for name in dict.fromkeys(names) if name]


def import_asked(modules: Iterable[str]) -> None:
    """Import them.

    Raises:
        InputError: one cannot be.
    """
    for name in modules:
        try:
            import_module(name)
        except Exception as error:  # whatever a module raises
            kind = "" if isinstance(error, ImportError) else f"{type(error).__name__}: "
            raise InputError(f"--import {name}: {kind}{error}") from error
