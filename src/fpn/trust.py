"""What configurations may name: only classes, and a checkpoint's own only what is known or asked for.

A configuration names classes, which are imported and made. Of a function, or of a module that is nowhere near
a detector, that would run any code: `os.system` is as good a name as any.
"""

import re
import sys
from collections.abc import Iterator, Mapping
from pydoc import locate
from types import BuiltinFunctionType, FunctionType
from typing import Any

from fpn.errors import InputError

_KNOWN = ("fpn", "torch")
_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_FILE = re.compile(r".*\.(ckpt|json|pkl|pt|pth|safetensors|yaml|yml)")


def check_names(config: Mapping[str, Any], source: str, asked: str = "") -> None:
    """Before a checkpoint's configuration is parsed, which imports what it names.

    Args:
        config: what the checkpoint holds.
        source: the checkpoint, for the message.
        asked: texts of the user's own, whose names are allowed.

    Raises:
        InputError: it names something that neither this program nor the user has named before.
    """
    for key, text in _texts(config):
        if not _PATH.fullmatch(text) or (key != "class_path" and _FILE.fullmatch(text)):
            continue
        package = text.partition(".")[0]
        loaded = package in sys.modules and package not in sys.stdlib_module_names
        if package not in _KNOWN and not loaded and not re.search(rf"\b{re.escape(text)}\b", asked):
            raise InputError(
                f"{source} names {text}, which is not loaded unasked: import {package} first, or name it in "
                "a configuration file of your own"
            )


def check_classes(config: Any) -> None:
    """Before what a parsed configuration names is made.

    Args:
        config: dictionaries, or the parser's own of that kind, and lists of them.

    Raises:
        InputError: it names something that is no class.
    """
    for key, value in _leaves(config):
        name = None
        if key == "class_path" and not isinstance(locate(value), type):
            name = value
        if isinstance(value, FunctionType | BuiltinFunctionType):
            name = f"{value.__module__}.{value.__qualname__}"
        if name is not None:
            raise InputError(f"{name} is no class: a configuration names classes only")


def _texts(config: Any) -> Iterator[tuple[str, str]]:
    return ((key, value) for key, value in _leaves(config) if isinstance(value, str))


def _leaves(config: Any, key: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(config, Mapping):
        for name, value in config.items():
            yield from _leaves(value, str(name))
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _leaves(value, key)
    else:
        yield key, config
