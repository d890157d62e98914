"""What configurations may name: only classes, and a checkpoint's own only what is known or asked for.

A configuration names classes, which are imported and made. Of a function, or of a module that is nowhere near
a detector, that would run any code: `os.system` is as good a name as any. A text may be more than it seems,
too: where settings belong, the parser of configurations takes it for a class, for settings in YAML, or for
the name or address of a file of them.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from enum import Enum
from inspect import Parameter, getattr_static, signature
from pathlib import Path
from pydoc import locate
from types import BuiltinFunctionType, FunctionType, NoneType
from typing import Annotated, Any, Literal, NamedTuple, get_args, get_origin, get_type_hints

from torch.nn import Module
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from fpn.errors import InputError

_PATH = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)+")
_WORD = re.compile(r"[+-]?\w[\w.+-]*(:\w[\w.+-]*)?")
"""A word, name or number: no settings, no address, no folder."""
_PLAIN = {str, int, float, complex, bool, NoneType}
_CONTAINERS = ("builtins", "collections", "collections.abc", "types", "typing")
_DATA = ("lightning.pytorch.core.datamodule", "LightningDataModule")


def check_remembered(config: Any, kind: type, source: str, asked: str = "") -> None:
    """Before a checkpoint's configuration is parsed, which imports what it names.

    A class has to be defined in the package that it is named in, whose module is imported already or this
    project's, and to be a network, an optimiser, a schedule or data.

    Args:
        config: what the checkpoint holds: arguments of a class, or `class_path` and `init_args`.
        kind: that class.
        source: the checkpoint, for the message.
        asked: texts of the user's own; whatever they name is allowed.

    Raises:
        InputError: it names something else, or has a text that may be read as a file or as settings.
    """
    _Remembered(source, asked.replace(source, " ")).check(config, {kind}, "")


def check_classes(config: Any) -> None:
    """Before what a parsed configuration names is made.

    Args:
        config: dictionaries, or the parser's own of that kind, and lists of them.

    Raises:
        InputError: it names something that is no class.
    """
    if isinstance(config, Mapping):
        path = config.get("class_path")
        if isinstance(path, str) and not isinstance(locate(path), type):
            raise _no_class(path)
        config = config.values()
    elif isinstance(config, FunctionType | BuiltinFunctionType):
        raise _no_class(f"{config.__module__}.{config.__qualname__}")
    elif not isinstance(config, list | tuple):
        return
    for value in config:
        check_classes(value)


def _no_class(name: str) -> InputError:
    return InputError(f"{name} is no class: a configuration names classes only")


class _Remembered(NamedTuple):
    """A checkpoint's configuration, to be checked."""

    source: str
    asked: str

    def check(self, value: Any, kinds: set[Any], key: str) -> None:
        """A value of the argument `key`, which is of one of these kinds."""
        if isinstance(value, Mapping):
            self._check_mapping(value, kinds, key)
        elif isinstance(value, list | tuple):
            for item in value:
                self.check(item, kinds, key)
        elif isinstance(value, str):
            self._check_text(value, kinds, key)
        elif not isinstance(value, int | float | None):
            raise InputError(f"{self.source} has a {type(value).__name__} as {key}, no plain value")

    def _check_mapping(self, value: Mapping[Any, Any], kinds: set[Any], key: str) -> None:
        if "class_path" in value:
            kind = self._checked(value["class_path"])
            for name, item in value.items():
                if name != "class_path":
                    self.check(item, {kind} if name == "init_args" else {Any}, str(name))
            return
        owners = [kind for kind in kinds if isinstance(kind, type) and not _is_plain(kind)]
        for name, item in value.items():
            of_name = set[Any]().union(*(_argument(owner, str(name)) for owner in owners))
            self.check(item, of_name if owners else kinds, str(name))

    def _check_text(self, text: str, kinds: set[Any], key: str) -> None:
        if all(map(_is_plain, kinds)):
            return
        if (not _WORD.fullmatch(text) or Path(text).exists()) and not self._is_asked(text):
            raise InputError(
                f"{self.source} has {text!r} as {key}, which may be read as a file or as settings: it is not "
                "read unasked; name it in a configuration file of your own"
            )
        if _PATH.fullmatch(text):
            self._checked(text)

    def _checked(self, name: Any) -> Any:
        """The class of that name; Any if it is the user's own, and not yet imported."""
        if not isinstance(name, str) or not _PATH.fullmatch(name):
            raise InputError(f"{self.source} names {name!r}, which is no class in a module")
        found = _imported(name)
        if self._is_asked(name):
            return found if isinstance(found, type) else Any
        remedy = "name it in a configuration file of your own"
        if found is None:
            module = name.rpartition(".")[0]
            raise InputError(
                f"{self.source} names {name}, which is not loaded unasked: import {module} first, or {remedy}"
            )
        if not isinstance(found, type):
            raise InputError(f"{self.source} names {name}, which is no class")
        if not _is_fit(found, name.partition(".")[0]):
            raise InputError(
                f"{self.source} names {name}, which is no network, optimiser or data of that package's: it "
                f"is not made unasked; {remedy}"
            )
        return found

    def _is_asked(self, text: str) -> bool:
        return re.search(rf"(?<![\w./]){re.escape(text)}(?![\w./])", self.asked) is not None


def _is_fit(found: type, package: str) -> bool:
    if str(found.__module__).partition(".")[0] != package:
        return False  # such as what a module has imported for itself
    return (
        issubclass(found, Module | Optimizer | LRScheduler)
        or any((base.__module__, base.__qualname__) == _DATA for base in found.__mro__)
        or (package == "fpn" and (is_dataclass(found) or issubclass(found, tuple)))  # settings
    )


def _imported(name: str) -> Any:
    """What is called so, in a module that is imported or this project's own; None without such a module."""
    parts = name.split(".")
    if parts[0] == "fpn" and "__main__" not in parts:
        return locate(name)
    for number in range(len(parts) - 1, 0, -1):
        found = sys.modules.get(".".join(parts[:number]))
        if found is not None:
            for part in parts[number:]:
                # Nothing is run: a module may import more for an attribute that it lacks.
                found = getattr_static(found, part, None)
            return found
    return None


def _argument(kind: Any, name: str) -> set[Any]:
    """The kinds of value that a class takes as an argument, where they can be told."""
    if issubclass(kind, tuple):
        return _kinds(getattr(kind, "__annotations__", {}).get(name, Any))
    for base in kind.__mro__:
        init = vars(base).get("__init__")
        if not isinstance(init, FunctionType):
            continue
        parameters = signature(init).parameters
        if name in parameters:
            try:
                return _kinds(get_type_hints(init).get(name, Any))
            except (AttributeError, NameError, TypeError):  # what a type checker alone can resolve
                break
        if all(parameter.kind != Parameter.VAR_KEYWORD for parameter in parameters.values()):
            break
    return {Any}


def _kinds(hint: Any) -> set[Any]:
    """What a type hint allows: types, those of a container's items, and Callable with what it returns."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin is Literal:
        return {str}
    if not arguments:
        return {hint}
    if origin is Annotated:
        return _kinds(arguments[0])
    if origin is Callable:
        return {Callable} | _kinds(arguments[-1])
    opened = origin is not type and getattr(origin, "__module__", None) in _CONTAINERS
    inner = (_kinds(argument) for argument in arguments if argument is not Ellipsis)
    return set[Any]([] if opened else [origin]).union(*inner)


def _is_plain(kind: Any) -> bool:
    """Whether a text of that kind stays a text."""
    return kind in _PLAIN or (isinstance(kind, type) and issubclass(kind, Enum | os.PathLike))
