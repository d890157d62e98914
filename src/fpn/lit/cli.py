"""The command line. Nothing heavy is imported before a command needs it, so that the help comes at once."""

import itertools
import json
import os
import re
import sys
from argparse import ArgumentError
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from inspect import getdoc, signature
from pathlib import Path
from typing import Any, cast

from fpn.allocator import keep_freed_memory
from fpn.console import mistakes
from fpn.errors import InputError
from fpn.importing import VARIABLE, asked_for, import_asked
from fpn.lit.help_pages import PAGES, topic_asked
from fpn.shipped import config_file

COMMANDS = {
    "fit": "train a detector, validating as it goes",
    "validate": "score a checkpoint on the validation images",
    "test": "score a checkpoint on the test images: all tables, results in COCO's format",
    "predict": "find objects in images with a checkpoint: COCO results and pictures",
    "export": "write a checkpoint's detector as an ONNX file, or as torch.export's",
    "evaluate": "score a saved COCO results file",
    "audit": "look at a COCO data set: what is wrong or odd, and whether training would take it",
    "proposals": "convert COCO results to a proposal file, which Fast R-CNN reads, or back",
    "join": "make one Faster R-CNN of an RPN and a Fast R-CNN that share their features",
    "shapes": "make the embedded data set of generated shapes",
    "configs": "list the configurations that come with this package, or copy one",
    "ablate": "train and test the rows of a table of the paper",
    "report": "put the scores of runs beside the paper's",
}

_FUNCTIONS = {
    "predict": "fpn.lit.predict.predict",
    "export": "fpn.deploy.export.export",
    "evaluate": "fpn.lit.results.evaluate",
    "audit": "fpn.lit.audit.audit",
    "proposals": "fpn.lit.results.proposals",
    "join": "fpn.checkpoints.join",
    "shapes": "fpn.data.shapes.generate_shapes",
    "configs": "fpn.shipped.configs",
}
"""The commands that are a function each, whose signature and docstring are the options and the help."""

_USAGE = """usage: fpn COMMAND [options]
       fpn --version

Feature Pyramid Networks for object detection.

commands:
{}

fpn COMMAND --help says more of each, with examples. Every command takes besides:
  --import MODULE  import a module of your own, whose classes a checkpoint names"""

_FIRST = {"audit": "--root", "predict": "--ckpt_path"}
"""What a first word without a name is."""
_SWITCHES = ("--proposals", "--pictures", "--decode", "--twins", "--stage_times", "--trust_boxes")
"""Options that mean true where no value follows."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; a user's mistake ends in one line on standard error and exit status 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        print(_USAGE.format("\n".join(f"  {name:9}  {text}" for name, text in COMMANDS.items())))  # noqa: T201
        return
    if words[0] == "--version":
        print(f"fpn {version('fpn')}")  # noqa: T201
        return
    with mistakes("fpn"):
        if sys.platform == "win32":
            raise InputError("runs on Linux and macOS; on Windows, under WSL")
        command, *words = words
        if command not in COMMANDS:
            raise InputError(f"fpn has no command {command!r}; it has {', '.join(COMMANDS)}")
        modules, words = _modules(words)
        with _importing(modules):
            _run(command, words)


def _run(command: str, words: list[str]) -> None:
    if command in ("ablate", "report"):
        if status := getattr(import_module("fpn.study.commands"), command)(words):
            sys.exit(status)
        return
    if command in PAGES and (topic := topic_asked(command, words)) is not None:
        if topic:
            import_module("fpn.lit.lightning_cli").show_help(command, topic)
        else:
            print(PAGES[command])  # noqa: T201
        return
    keep_freed_memory()
    words = _with_files(_with_values(words))
    try:
        if command in _FUNCTIONS:
            _call(command, words)
        else:
            import_module("fpn.lit.lightning_cli").run_lightning([command, *words])
    except ArgumentError as error:
        if unknown := re.match(r"unrecognized arguments: (--)?([^\s=]+)", str(error)):
            raise InputError(_unknown(command, unknown[2], option=bool(unknown[1]))) from error
        raise


def _unknown(command: str, name: str, option: bool) -> str:
    if option:
        return f"there is no option --{name}{_meant(name, _options(command))}: `--help` lists those there are"
    remedy = f": a configuration is named by --config {name}" if name.endswith((".yaml", ".yml")) else ""
    return f"fpn {command} does not take {name!r}{remedy}"


def _options(command: str) -> list[str]:
    """The options of a command that its help is about."""
    if command in PAGES:
        found = re.findall(r"(?<!\S)--([a-z][\w.]*)", PAGES[command])
        return [name for name in found if not name.endswith(".help")]
    return list(signature(_function(command)).parameters)


def _meant(name: str, options: Iterable[str]) -> str:
    """The option that a name is near to: as a whole, or to the last part of it."""
    known = {option.rpartition(".")[2]: option for option in options}
    known |= {option: option for option in known.values()}
    near = get_close_matches(name, known, n=1) or get_close_matches(name.rpartition(".")[2], known, n=1)
    return f", but there is --{known[near[0]]}" if near else ""


def _call(command: str, words: Sequence[str]) -> None:
    from jsonargparse import auto_cli

    from fpn.lit.help_pages import of_options

    function = _function(command)
    auto_cli(
        function,
        args=_named(command, words),
        # What these take is plain; the others have more that is better named.
        as_positional=command in ("shapes", "proposals", "join", "export"),
        prog=f"fpn {command}",
        description=(getdoc(function) or "").partition("\n\nArgs:")[0],
        formatter_class=of_options(),
        exit_on_error=False,
        allow_abbrev=False,
    )


def _function(command: str) -> Callable[..., Any]:
    module, _, name = _FUNCTIONS[command].rpartition(".")
    return cast(Callable[..., Any], getattr(import_module(module), name))


def _modules(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The modules that the user names, and the other words."""
    listed: list[str] = []
    others: list[str] = []
    left = iter(words)
    for word in left:  # behind a -- too
        option, equals, value = word.partition("=")
        if option == "--import":
            listed.append(value if equals else next(left, ""))
        else:
            others.append(word)
    return asked_for(listed), others


@contextmanager
def _importing(modules: Sequence[str]) -> Iterator[None]:
    """Import these; and, until the end, whatever is named from the working directory too.

    That comes last, after all that is installed: a file there that is called as another package is not taken
    for it.
    """
    path, asked = sys.path[:], os.environ.get(VARIABLE, "")
    here = str(Path.cwd())
    sys.path[:] = [entry for entry in path if entry not in ("", here)] + [here]
    os.environ[VARIABLE] = ",".join(modules)  # for the processes that a command starts
    try:
        import_asked(modules)
        yield
    finally:
        sys.path[:] = path
        os.environ[VARIABLE] = asked


def _named(command: str, words: Sequence[str]) -> list[str]:
    """Name the first word, where that is plain, and make what a shell made of a pattern one value."""
    words = [_FIRST[command], *words] if command in _FIRST and words and words[0][:1] != "-" else [*words]
    if command != "predict" or "--images" not in words:
        return words
    first = words.index("--images") + 1
    files = list(itertools.takewhile(lambda word: not word.startswith("-"), words[first:]))
    together = [json.dumps(files)] if len(files) > 1 else files
    return [*words[:first], *together, *words[first + len(files) :]]


def _with_values(words: Sequence[str]) -> list[str]:
    return [
        f"{word}=true" if word in _SWITCHES and (not after or after.startswith("-")) else word
        for word, after in itertools.pairwise([*words, ""])
    ]


def _with_files(words: Sequence[str]) -> list[str]:
    """Have each configuration named by the path of its file, in a word of its own."""
    found: list[str] = []
    for word in words:
        option, equals, name = word.partition("=")
        if equals and option in ("--config", "-c"):
            found += ["--config", str(config_file(name))]
        elif found and found[-1] in ("--config", "-c"):
            found[-1:] = ["--config", str(config_file(word))]
        else:
            found.append(word)
    return found
