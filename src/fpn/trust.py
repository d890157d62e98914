"""What a checkpoint may name, and what a configuration may.

A configuration names classes, which are imported and made, and a checkpoint keeps the configuration that it
was trained with. A checkpoint from elsewhere could name anything, so this is promised of it:

- It may name what is installed: this package, PyTorch, timm or any other. It may name what is imported
  already, and what the user names by `--import MODULE`. A module that merely lies in the working directory,
  or beside the program that runs, is not imported without that word: it may have come with the checkpoint.
- It may name classes only. A function is refused, and so is a class of Python's own library.
- A class is made only where the type hint of an argument asks for one, and only if it is of that kind: a neck
  where a neck belongs. For an argument without a type hint none is made. Where the hint is any callable, as
  of the transforms within torchvision's `v2.Compose`, it has to be an `nn.Module`.
- A text may name a class, or a file of settings on this machine: the same holds for these, before a module
  is imported. Nothing is fetched.

A configuration of the user's own may name any class, also one in the working directory, but no function.
Whatever is installed is trusted: to import it runs it.
"""

import site
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from pydoc import ErrorDuringImport, locate
from threading import RLock
from types import BuiltinFunctionType, FunctionType
from typing import Any

from jsonargparse import set_parsing_settings

from fpn.errors import InputError
from fpn.parsing import for_others

_alone = RLock()


@contextmanager
def only_installed() -> Iterator[None]:
    """Import only what is installed or imported already, and read configurations only from this machine."""
    with _alone, for_others():  # what is set holds for all threads
        kept = sys.path[:]
        program = getattr(sys.modules["__main__"], "__file__", None)
        own = {Path().resolve(), Path(program or "").resolve().parent} - _editable()
        sys.path[:] = [entry for entry in kept if Path(entry).resolve() not in own]
        set_parsing_settings(config_read_mode_fsspec_enabled=False)  # Lightning allows addresses
        try:
            yield
        finally:
            sys.path[:] = kept


@contextmanager
def only_imported() -> Iterator[None]:
    """Import no package that is not imported yet, as it is where a configuration has been parsed."""
    with _alone, for_others(imported=True):
        yield


def check_remembered(config: Any, source: str) -> None:
    """Import what a checkpoint's configuration names, as far as a checkpoint may name it.

    Args:
        config: what the checkpoint holds: dictionaries, lists and plain values.
        source: the checkpoint, for the message.

    Raises:
        InputError: it names what is neither installed nor imported, or is no class.
    """
    missing: dict[str, str] = {}
    with only_installed():
        for name in _names(config):
            if not isinstance(name, str) or not _is_path(name):
                raise InputError(f"{source} names {name!r}, which is no class in a module")
            package, module = name.partition(".")[0], name.rpartition(".")[0]
            found = None if package in sys.stdlib_module_names else _located(name)
            if found is None and package not in sys.stdlib_module_names and find_spec(package) is None:
                missing[name] = module
            elif not isinstance(found, type) or found.__module__.partition(".")[0] in sys.stdlib_module_names:
                raise InputError(f"{source} names {name}, which is no class that detectors are made of")
    if missing:
        modules = list(dict.fromkeys(missing.values()))
        is_ = "is" if len(missing) == 1 else "are"
        raise InputError(
            f"{source} names {', '.join(missing)}, which {is_} not installed, and not imported unasked: "
            f"add {' '.join(f'--import {module}' for module in modules)} "
            f"(in Python: import {', '.join(modules)} first)"
        )


def check_classes(config: Any) -> None:
    """Before what a parsed configuration names is made: that all of it are classes.

    Args:
        config: dictionaries, or the parser's own of that kind, and lists of them.

    Raises:
        InputError: it names something that is no class.
    """
    for name in _names(config):
        if not isinstance(_located(name), type):
            raise InputError(f"{name} is no class: a configuration names classes only")


def flags_for(config: Any) -> list[str]:
    """`--import MODULE` of each module that commands import only when asked, by the names in a configuration.

    Args:
        config: what a checkpoint will hold.
    """
    with only_installed():
        names = [name for name in _names(config) if isinstance(name, str) and not _installed(name)]
    return [f"--import {module}" for module in dict.fromkeys(name.rpartition(".")[0] for name in names)]


def import_named(config: Any) -> None:
    """Import what a configuration of the user's own names; what cannot be found is left to the parser."""
    for name in _names(config):
        if isinstance(name, str):
            _located(name)


def _editable() -> set[Path]:
    """Folders of projects that are installed as they lie, which a file among the installed packages lists."""
    files = (file for folder in site.getsitepackages() for file in Path(folder).glob("*.pth"))
    lines = (line for file in files for line in file.read_text(errors="replace").splitlines())
    return {Path(line).resolve() for line in lines if line.startswith("/")}


def _is_path(name: str) -> bool:
    parts = name.split(".")
    # To import a module of that name would run a program.
    return len(parts) > 1 and all(map(str.isidentifier, parts)) and "__main__" not in parts


def _installed(name: str) -> bool:
    """Whether its package is found, be it imported or not."""
    package = name.partition(".")[0]
    return any(finder.find_spec(package, None) is not None for finder in sys.meta_path)


def _located(name: str) -> Any:
    try:
        return locate(name)
    except ErrorDuringImport as error:
        raise InputError(f"{name} cannot be imported: {error.value!r}") from error.value


def _names(config: Any) -> Iterator[Any]:
    """All that is named as a class; functions too, which a parsed configuration holds as they are."""
    if isinstance(config, FunctionType | BuiltinFunctionType):
        yield f"{config.__module__}.{config.__qualname__}"
    elif isinstance(config, Mapping):
        if "class_path" in config:
            yield config["class_path"]
        for value in config.values():
            yield from _names(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _names(value)
