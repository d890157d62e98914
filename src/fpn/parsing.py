"""The parser of configurations, the same for all: what `fpn fit` takes is taken of its checkpoints too."""

import sys
from argparse import SUPPRESS
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from functools import partial
from inspect import Parameter, signature
from numbers import Number
from types import FunctionType, ModuleType
from typing import Any, get_type_hints

import yaml
from jsonargparse import ArgumentParser, Namespace, _typehints, _util, set_parsing_settings
from jsonargparse._common import ImportDenied
from jsonargparse._util import import_object
from jsonargparse.typing import register_type
from torch import nn

from fpn.errors import InputError

_carry_over = _typehints.discard_init_args_on_class_path_change


def _begin_anew(parser_or_action: Any, before: Any, now: Any) -> None:
    """A class that takes another's place begins with its own settings, unless it `takes_settings_over`.

    jsonargparse itself carries over whatever both accept, the first one's defaults too: a neck of one's own
    would get as many channels as the paper's, and an optimiser SGD's learning rate.
    """
    if before and before.get("init_args") and before["class_path"] != now["class_path"]:
        kind = import_object(now["class_path"])
        if not getattr(kind, "takes_settings_over", False):
            before["init_args"] = Namespace()
    _carry_over(parser_or_action, before, now)


# Private, as pyproject.toml's bound on the version says.
_typehints.discard_init_args_on_class_path_change = _begin_anew

# Where no type hint asks for a class, a configuration could have any made.
set_parsing_settings(instantiate_subclass_spec_in_any=False)
# As the default of an argument that is text, which some callbacks of Lightning's have.
yaml.SafeDumper.add_multi_representer(Enum, lambda dumper, value: dumper.represent_data(value.value))


def _number(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, Number):
        raise ValueError(f"{value!r} is no number")
    return value


# The type hint of some of torchvision's transforms, which jsonargparse does not know.
register_type(Number, lambda value: value, _number)


_check_import = _util.check_import_path


def _check_import_of_others(path: str, imported: bool = False) -> None:
    """Raise ImportDenied before a text of a checkpoint is imported that names no part of a detector."""
    package, *parts = path.split(".")
    if package in sys.stdlib_module_names or "__main__" in (package, *parts):  # which would run a program
        raise _denied(path)
    if imported and package not in sys.modules:
        raise _denied(path)
    _check_import(path)


def _import_class(path: str, *args: Any, **options: Any) -> type:
    """As `import_object`, of a class: of all that is installed a method, say, may run a text."""
    found = import_object(path, *args, **options)
    if not isinstance(found, type):
        raise _denied(path)
    return found


def _denied(path: str) -> ImportDenied:
    return ImportDenied(f"{path} is nothing that detectors are made of")


@contextmanager
def for_others(imported: bool = False) -> Iterator[None]:
    """Meanwhile what a configuration names is no one's in whom the user trusts.

    Args:
        imported: import of no package that is not imported yet.

    A text may be the name of a class too: it is looked at before it is imported, and so is where that is
    defined. What may be any callable has to be a network: of all that is installed some classes run a text.
    """
    check = partial(_check_import_of_others, imported=imported)
    ours: dict[tuple[ModuleType, str], Any] = {
        (_util, "check_import_path"): check,
        (_typehints, "check_import_path"): check,
        (_typehints, "import_object"): _import_class,
        (_typehints, "callable_instances"): lambda kind: issubclass(kind, nn.Module),
    }
    before = {place: getattr(*place) for place in ours}
    try:
        for place, value in ours.items():
            setattr(*place, value)
        yield
    finally:
        for place, value in before.items():
            setattr(*place, value)


class Parser(ArgumentParser):
    """jsonargparse's, for classes whose first arguments the program gives, as a neck's channels of its input.

    It leaves out the first arguments by position, and takes arguments by keyword only for the first ones in a
    class which hands the others on: `def __init__(self, *args, weighted=False, **kwargs)`. Where that class
    repeats one of this package's arguments without a type hint, the hint holds on.

    A function or a network as a default is left to the class, and stands in no configuration.
    """

    def add_class_arguments(
        self, class_type: type, *args: Any, skip: set[str | int] | None = None, **options: Any
    ) -> list[str]:
        """As jsonargparse's; a number in `skip` is that of the first arguments by position."""
        _take_hints_over(class_type)
        number = sum(item for item in skip or () if isinstance(item, int))
        first = by_position(class_type)[:number]
        if len(first) == number:
            skip = {*first, *(item for item in skip or () if isinstance(item, str))}
        added: list[str] = super().add_class_arguments(class_type, *args, skip=skip, **options)
        return added

    def _add_signature_parameter(
        self, container: Any, nested_key: str | None, param: Any, *args: Any, **options: Any
    ) -> None:
        default = param.default
        lazy = hasattr(default, "lazy_get_init_data")  # which the parser can tell
        if callable(default) and not isinstance(default, type) and not lazy:
            options["default"] = SUPPRESS
        super()._add_signature_parameter(container, nested_key, param, *args, **options)

    def parse_args(self, args: Any = None, *others: Any, **options: Any) -> Namespace:  # type: ignore[override]
        """As jsonargparse's, which hands null on as `--images.short_side=None`, for a class's dataclass."""
        if args and len(args) == 1 and args[0].endswith("=None"):
            args = [f"{args[0].removesuffix('None')}null"]
        return super().parse_args(args, *others, **options)

    def validate(self, namespace: Namespace, *args: Any, **options: Any) -> None:
        """As jsonargparse's; what is left blank is refused too, where it is not None from the start."""
        for action in self._actions:
            if action.default is not None and namespace.get(action.dest, action.default) is None:
                try:
                    self._check_value_key(action, None, action.dest, namespace)
                except TypeError:
                    raise TypeError(f'Parser key "{action.dest}": it cannot be null') from None
        super().validate(namespace, *args, **options)

    def dump(self, *args: Any, **options: Any) -> str:
        """As jsonargparse's, of what has been parsed: it is not checked once more."""
        return str(super().dump(*args, **{"skip_validation": True} | options))

    def save(self, *args: Any, **options: Any) -> None:
        """As jsonargparse's, of what has been parsed."""
        super().save(*args, **{"skip_validation": True} | options)


def _take_hints_over(kind: type) -> None:
    own = vars(kind).get("__init__")
    if not isinstance(own, FunctionType):
        return
    for base in kind.__mro__[1:]:
        if base.__module__.partition(".")[0] == "fpn" and isinstance(base.__init__, FunctionType):  # type: ignore[misc]
            hints = get_type_hints(base.__init__)  # type: ignore[misc]
            untyped = signature(own).parameters.keys() - own.__annotations__.keys()
            for name, parameter in signature(base).parameters.items():
                # One without a default is what a subclass has its own way to, as a bottom-up's stages.
                if name in untyped & hints.keys() and parameter.default is not Parameter.empty:
                    own.__annotations__[name] = hints[name]


def as_word(config: Any) -> str:
    """A configuration as one word of a command line; in YAML, where the keys of a mapping may be numbers.

    Raises:
        InputError: it has a value that is not plain.
    """
    try:
        return str(yaml.safe_dump(config, sort_keys=False))
    except yaml.YAMLError as error:
        raise InputError(f"a configuration has plain values only: {' '.join(map(str, error.args))}") from None


def by_position(kind: type) -> list[str]:
    """The arguments that may be given by position, its own and those of what it hands `*args` on to."""
    return [*dict.fromkeys(_by_position(kind))]


def _by_position(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        init = vars(base).get("__init__")
        if init is None:
            continue
        if not isinstance(init, FunctionType):
            return
        _, *parameters = signature(init).parameters.values()
        for parameter in parameters:
            if parameter.kind in (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD):
                yield parameter.name
        if all(parameter.kind != Parameter.VAR_POSITIONAL for parameter in parameters):
            return
