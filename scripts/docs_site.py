"""What the site of the documentation has besides the pages of docs/: all options, and the Python API.

mkdocs calls these functions while it builds (mkdocs.yml names this file).
"""

import re
from contextlib import redirect_stdout, suppress
from io import StringIO
from typing import Any

from mkdocs.structure.files import File, Files

import fpn
from fpn.lit.cli import COMMANDS, main

_OUTSIDE = re.compile(r"(!?)\[([^]]*)\]\(\.\./([^)#]*)[^)]*\)")
"""A link to a file of the project that is no page: there is none on the site."""


def on_files(files: Files, config: Any, **_: Any) -> Files:
    """Add the pages that are made of the code."""
    files.append(File.generated(config, "cli.md", content=_commands()))
    files.append(File.generated(config, "api.md", content=_names()))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Name files of the project where a page links to them."""
    return _OUTSIDE.sub(lambda link: f"{link[2]} (`{link[3]}`)", markdown)


def _commands() -> str:
    parts = ["# The command line\n"]
    for command, what in COMMANDS.items():
        with redirect_stdout(StringIO()) as shown, suppress(SystemExit):
            main([command, "--help"])
        text = shown.getvalue().rstrip()
        parts.append(f"## fpn {command}\n\n{what[0].upper()}{what[1:]}.\n\n```text\n{text}\n```\n")
    return "\n".join(parts)


def _names() -> str:
    homes = fpn._HOMES
    return "# The Python API\n\n" + "\n".join(
        f"::: {homes[name]}.{name}\n" for name in sorted(homes) if name != "DETECTRON2_IMAGES"
    )
