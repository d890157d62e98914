"""The terminal, or the files that standard output and standard error are sent to."""

import errno
import os
import re
import stat
import sys
import traceback
import warnings
from argparse import ArgumentError
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from rich import get_console
from rich.console import Console
from rich.progress import track

from fpn.errors import InputError

T = TypeVar("T")
_OUT_OF_MEMORY = re.compile("out of memory|not enough memory|can't allocate memory")
"""As PyTorch says it of CUDA, Apple's GPUs, and the CPU."""
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def say(line: str) -> None:
    """Print a line as it is: not wrapped, and with its square brackets, which a path or a name may have.

    A progress bar stays below it.
    """
    get_console().print(line, markup=False, highlight=False, soft_wrap=True)


def tracked(things: Iterable[T], words: str) -> Iterable[T]:
    """The same things, with a progress bar on a terminal."""
    return track(things, words, console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True)


def warnings_in_a_line() -> None:
    """Show a warning that is for the user as its words alone, without the line of code that gives it."""
    others = warnings.formatwarning

    def shown(message: Any, category: Any, filename: str, lineno: int, line: str | None = None) -> str:
        if issubclass(category, UserWarning):
            return f"warning: {' '.join(str(message).split())}\n"
        return others(message, category, filename, lineno, line)

    if others.__module__ != __name__:
        warnings.formatwarning = shown


@contextmanager
def mistakes(program: str) -> Iterator[None]:
    """End the program with one line and exit status 2 where a mistake of its user's comes through.

    With FPN_TRACEBACK=1 in the environment, it ends in the traceback.
    """
    try:
        yield
    except Exception as error:
        line = told(error)
        if line is None or os.environ.get("FPN_TRACEBACK", "0") not in ("", "0"):
            raise
        print(f"{program}: {line}", file=sys.stderr)  # noqa: T201
        sys.exit(2)


def told(error: BaseException | None) -> str | None:
    """The message of a user's mistake, wherever in a chain of errors it lies; None if it is our fault."""
    outer = inner = error
    while error is not None:
        if isinstance(error, InputError):
            # From a loading process comes that process's traceback; its last line is the message.
            line = str(error).rpartition(f"{InputError.__module__}.{InputError.__name__}: ")[2].strip()
            return "; ".join([line, *getattr(error, "__notes__", [])])
        if isinstance(error, ArgumentError):
            # What the parser got is a long listing, and no news to who gave it.
            text = re.sub(r"NestedArg\(key='[^']*', val='?(.*?)'?\)", r"\1", str(error))
            return _plain(text) or " ".join(text.partition("Got value:")[0].split())
        if isinstance(error, RuntimeError) and _OUT_OF_MEMORY.search(str(error)):
            return "; ".join([_out_of_memory(error), *getattr(error, "__notes__", [])])
        if _refused_by_lightning(error):
            return " ".join(str(error).split())
        if isinstance(error, OSError) and (reason := refused(error)) is not None:
            return reason
        inner, error = error, error.__cause__
    # The parser's, of what a class that it makes says of its arguments.
    made = inner is not outer and str(outer).startswith("Does not validate against any of the Union subtypes")
    line = " ".join(str(inner).split())
    return f"a setting cannot be used: {line}" if made and isinstance(inner, ValueError) else None


def _out_of_memory(error: RuntimeError) -> str:
    what = " ".join(re.split(r"(?<=[.!])\s", str(error))[:2]).rstrip(".")
    return (
        f"{what}. Take fewer images at once (batch_size, and trainer.accumulate_grad_batches for as many to a"
        " step), or smaller ones (data.images.scale), or less of each number (precision bf16-mixed)"
    )


def _plain(message: str) -> str | None:
    """What the parser says in one line of an option that is none, or whose value cannot be."""
    keys = list(dict.fromkeys(re.findall(r'Parser key "([^"]+)"', message)))  # the outermost first
    name = ".".join(keys)
    if not keys:
        return None
    part = keys[0].partition(".")[0]
    if found := re.search(r"(?:(\S+) )?does not conform to restriction (v>=?0(?: and v<=1)?)", message):
        # Where null is allowed too, the value comes last.
        value = message.rpartition("Given value: ")[2] if "Given value: " in message else found[1]
        wanted = {"v>0": "a number above 0", "v>=0": "0 or more"}.get(found[2], "a number from 0 to 1")
        return f"{name} is {value}: give {wanted}"
    if re.search("it cannot be null|not 'NoneType'", message):  # of fpn.parsing, and of Python
        return f"{name} cannot be null: give a value, or leave the line out"
    if found := re.search(r"\S+ is nothing that detectors are made of", message):  # of fpn.parsing
        return f"{name}: {found[0]}"
    number = r"(?:for (int)\(\) with base 10|could not convert string to float): '([^']*)'"
    if found := re.search(number, message):
        return f"{name} is {found[2]}: give {_KINDS[found[1] or 'float']}"
    if choices := re.findall(r"Expected an? typing\.Literal\[(.*?)\]", message):
        either = ["true, false"] if "Expected a <class 'bool'>" in message else []
        words = dict.fromkeys(re.findall("[^', ]+", " ".join(choices + either)))
        return f"{name}: give one of {', '.join(words)}"
    if len(kind := re.findall(r"Expected an? <class '(\w+)'>", message)) == 1 and kind[0] in _KINDS:
        return f"{name}: give {_KINDS[kind[0]]}"
    if len(names := {*re.findall(r"(?:Option '|unrecognized arguments: --)([\w.]+)", message)}) == 1:
        return f"there is no option {'.'.join([name, *names])}: `--help {part}` lists those there are"
    if found := re.search(r"class_path '([\w.]+)':\s+the following arguments are required: (\w+)", message):
        return f"{name}: {found[1]} needs {found[2]}: give --{name}.{found[2]}"
    kinds = r"Import path (\S+) does not correspond to a subclass of (\w+)"
    if found := re.search(rf"{kinds}|Expected '(\S+)' to be a subclass of <class '(\w+)'>", message):
        return "{}: {} is no {}".format(name, *filter(None, found.groups()))
    if found := re.search(r"module '(\S+)' has no attribute '(\w+)'", message):
        return f"{name}: there is no {'.'.join(found.groups())}"
    if found := re.search(r"No module named '(\S+)'", message):
        return f"{name}: there is no module {found[1]}, here or installed"
    if found := re.search(r"Expected a dot import path string: (\w+)", message):
        return f"{name}: there is no class {found[1]}: `--help {part}` lists those there are"
    if found := re.search(r"Expected a (?:<class ')?tuple(?: with (\d+) elements)?", message):
        return f"{name}: give a list" + (f" of {found[1]}" if found[1] else "")
    if not (
        found := re.search(r"Unable to load config '([^']*)'|Given value: (?!\[?Namespace)(.*)$", message)
    ):
        return None
    reasons = re.findall(
        r"^ +- (?!Expected|Does not validate|Unable to load|Problem)(.*)$", message, re.MULTILINE
    )
    return f"{name} cannot be {found[1] or found[2]}" + "".join(f": {reason}" for reason in reasons)


def _refused_by_lightning(error: BaseException) -> bool:
    """Whether Lightning itself raised it, for a setting that cannot be."""
    if type(error).__name__ == "MisconfigurationException":
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, ValueError) and frames[-1].f_globals["__name__"].startswith("lightning.")


def refused(error: OSError) -> str | None:
    """What the system refused, in one line; None where it names no file and the disk is not full."""
    if error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return f"a file cannot be written: {error.strerror}"
    return None


def leave_terminal() -> None:
    """Send output that does not go to a file nowhere: after SIGHUP, to write to a terminal fails."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for output in (1, 2):
        with suppress(OSError):  # of an output that is closed
            if not stat.S_ISREG(os.fstat(output).st_mode):
                os.dup2(nowhere, output)
    os.close(nowhere)
