"""What an object was made of, as a configuration file would have it: made in Python, it can be made again."""

import sys
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import partial
from inspect import Parameter, signature
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from fpn.console import told
from fpn.errors import InputError
from fpn.importing import asked_for, import_asked
from fpn.parsing import Parser, by_position
from fpn.trust import check_classes, check_remembered, only_installed


class Described:
    """Remembers the arguments it was made with, those of a subclass too."""

    _made_of: tuple[dict[str, Any], list[str]]

    def __new__(cls, *arguments: Any, **named: Any) -> Any:
        """As of any class."""
        made = super().__new__(cls)
        vars(made)["_made_of"] = _arguments(cls, arguments, named)  # nn.Module is not ready for attributes
        return made

    @property
    def made_of(self) -> dict[str, Any]:
        """The arguments in plain values, defaults too, but for those that are `untold`."""
        return self._made_of[0]

    @property
    def untold(self) -> list[str]:
        """The names of arguments that plain values cannot tell, as one that a function made."""
        return self._made_of[1]


def plain(value: Any) -> Any:
    """A value as a configuration file has it; a class or a `functools.partial` of one by its path.

    Raises:
        TypeError: it cannot be told so, as a lambda.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str | Path):
        return str(value)
    if isinstance(value, Real):  # NumPy's too
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    if isinstance(value, Mapping):
        return {plain(key): plain(one) for key, one in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: plain(getattr(value, field.name)) for field in fields(value) if field.init}
    if isinstance(value, Described) and not value.untold:
        return {"class_path": class_path(type(value)), "init_args": value.made_of}
    kind = value.func if isinstance(value, partial) else value
    if not isinstance(kind, type):
        raise TypeError(f"{value!r} cannot be told in plain values")
    given = _given(kind, value.args, value.keywords) if isinstance(value, partial) else {}
    return {"class_path": class_path(kind), "init_args": plain(given)}


def factory_of(made: Described) -> dict[str, Any]:
    """What makes an object once its first argument is given, as a detector's number of classes.

    Raises:
        TypeError: it cannot be told in plain values.
    """
    config: dict[str, Any] = plain(made)
    first = next(iter(by_position(type(made))), "classes")
    return config | {"init_args": {k: v for k, v in config["init_args"].items() if k != first}}


def accepts(kind: type) -> Callable[[str], bool]:
    """Whether a class takes an argument of a name."""
    parameters = signature(kind.__init__).parameters  # type: ignore[misc]
    any_ = any(one.kind == Parameter.VAR_KEYWORD for one in parameters.values())
    return lambda name: any_ or name in parameters


def class_path(kind: type) -> str:
    """Where a class is found: the shortest path, which is the public one.

    Raises:
        TypeError: nowhere, as it was made within a function or in the program itself.
    """
    if kind.__module__ != "__main__":
        parts = kind.__module__.split(".")
        for module in (".".join(parts[: end + 1]) for end in range(len(parts))):
            if getattr(sys.modules.get(module), kind.__qualname__, None) is kind:
                return f"{module}.{kind.__qualname__}"
    raise TypeError(f"{kind.__qualname__} can be imported from nowhere")


def remade(kind: Any, config: Mapping[str, Any], source: str, given: Iterable[str] = ()) -> dict[str, Any]:
    """The arguments of a class or function from plain values, as the command line makes them.

    Args:
        kind: what takes them.
        config: by name, as a checkpoint keeps them.
        source: what messages call it.
        given: names of arguments that are there already.

    Raises:
        InputError: it names what a checkpoint may not (`fpn.trust`), or does not fit.
    """
    import_asked(asked_for())  # the command line has done so, a program of the user's has not
    check_remembered(config, source)
    parser = Parser(exit_on_error=False)
    parser.add_class_arguments(kind, fail_untyped=False, sub_configs=True, skip={*given})
    try:
        with only_installed():
            parsed = parser.parse_object(deepcopy(dict(config)))  # which it changes
            check_classes(parsed.as_dict())
            return dict(vars(parser.instantiate(parsed)))
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    except Exception as error:
        reason = told(error) or str(error).strip().splitlines()[0]
        raise InputError(f"{source}: what it tells cannot be built by this version ({reason})") from error


def _arguments(cls: type, arguments: Any, named: Any) -> tuple[dict[str, Any], list[str]]:
    """What a class is made of, and the names of those that cannot be told."""
    found = signature(cls.__init__).parameters.items()  # type: ignore[misc]
    defaults = {name: one.default for name, one in found if one.default is not Parameter.empty}
    return _told(defaults | _given(cls, arguments, named), defaults)


def _told(values: Mapping[str, Any], defaults: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Values by name in plain values, and the names of others: `images.augment` of one within a dataclass."""
    told, untold = dict[str, Any](), list[str]()
    for name, value in values.items():
        try:
            told[name] = plain(value)
        except TypeError:
            if is_dataclass(value) and not isinstance(value, type):
                inner = {field.name: getattr(value, field.name) for field in fields(value) if field.init}
                told[name], lost = _told(inner, {})
                untold += [f"{name}.{one}" for one in lost]
            elif value is not defaults.get(name):
                untold.append(name)
    return told, untold


def _given(cls: type, arguments: Any, named: Any) -> dict[str, Any]:
    """The arguments by name."""
    names = by_position(cls)
    given = dict(zip(names, arguments, strict=False)) | named
    if len(arguments) > len(names):
        # Those without a name of their own are told by none: an iterator is no plain value.
        own = signature(cls.__init__).parameters.values()  # type: ignore[misc]
        given |= {one.name: iter(arguments) for one in own if one.kind == Parameter.VAR_POSITIONAL}
    return given
