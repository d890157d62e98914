"""README and the pages of docs/: links lead somewhere, commands are commands, and the site has all pages."""

import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import auto_parser

from fpn.lit.cli import _FUNCTIONS, COMMANDS, _with_values, main

ROOT = Path(__file__).resolve().parents[2]
MADE = {"cli.md", "api.md"}
"""Pages that `make docs` makes of the code."""
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of all commands of ours in a page's blocks of code."""
    for block in re.findall(r"```\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("fpn "):
                yield shlex.split(line.partition(" #")[0])[1:]


EVERY = [pytest.param(words, id=" ".join(words)[:90]) for page in PAGES for words in commands(page)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)):
        if "://" in link or link in MADE:
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        assert target.exists(), link
        if anchor:
            heads = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE)
            assert anchor in [re.sub(r"[^\w -]", "", head).lower().replace(" ", "-") for head in heads], link


def test_the_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w-]+\.md", text[text.index("nav:") :]))
    assert listed == {path.name for path in PAGES[2:]} | MADE


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12_000


@pytest.mark.parametrize("words", EVERY)
def test_commands_are_commands(
    words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each is parsed by its own command, and no more: what it names need not be there, but configurations."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    shutil.copy(ROOT / "tests" / "extension" / "files" / "c_panet.yaml", "c_panet.yaml")
    command, *options = words
    assert command in COMMANDS
    if command == "report":
        with pytest.raises(SystemExit):
            main(words)
        assert options[0] in capsys.readouterr().err
    elif command == "ablate":
        end = options.index("--") if "--" in options else len(options)
        dry = [] if "--dry-run" in options else ["--dry-run"]
        main([command, *options[:end], *dry, *options[end:]])
        assert re.search(r"sbatch|fpn fit", capsys.readouterr().out)
    elif command in _FUNCTIONS:
        module, _, name = _FUNCTIONS[command].rpartition(".")
        positional = command in ("shapes", "proposals", "join")
        parser = auto_parser(getattr(import_module(module), name), as_positional=positional)
        given = ["--root", *options] if command == "audit" and options[0][0] != "-" else options
        parser.parse_args(_with_values(given))
    else:
        checkpoint = str(unbroken / "checkpoints" / "last.ckpt")
        known = [checkpoint if word.endswith(".ckpt") else word for word in options]
        with pytest.raises(SystemExit) as caught:
            main([command, *known, *(["--print_config"] if "--print_config" not in known else [])])
        assert not caught.value.code, capsys.readouterr().err
