"""The commands that need no Trainer. A command's signature and docstring are its --help."""

from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from inspect import getdoc

from jsonargparse import DefaultHelpFormatter, auto_cli

from fpn.allocator import keep_freed_memory

_FUNCTIONS = {
    "predict": "fpn.lit.predict.predict",
    "evaluate": "fpn.lit.results.evaluate",
    "audit": "fpn.lit.audit.audit",
    "proposals": "fpn.lit.results.proposals",
    "join": "fpn.checkpoints.join",
    "shapes": "fpn.data.shapes.generate_shapes",
    "configs": "fpn.shipped.configs",
}


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Keeps the lines of a command's docstring."""


def run(command: str, arguments: Sequence[str]) -> None:
    """Run one of the commands with the words that follow it on the command line."""
    keep_freed_memory()
    module, _, name = _FUNCTIONS[command].rpartition(".")
    function = getattr(import_module(module), name)
    # What these three take is plain; the others have more that is better named.
    auto_cli(
        function,
        args=list(arguments),
        as_positional=command in ("shapes", "proposals", "join"),
        prog=f"fpn {command}",
        description=(getdoc(function) or "").partition("\n\nArgs:")[0],
        formatter_class=_Help,
        exit_on_error=False,
    )
