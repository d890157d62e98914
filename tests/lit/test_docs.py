"""README and the pages of docs/: links lead somewhere, commands are commands, and the site has all pages."""

import ast
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from jsonargparse import auto_parser

from fpn.lit.cli import _FUNCTIONS, COMMANDS, _named, _with_values, main

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


def texts(node: ast.AST) -> Iterator[str]:
    """All texts of a module as they are put together; what is filled in is a NUL."""
    if (text := text_of(node)) is not None:
        yield text
    for child in ast.iter_child_nodes(node):
        if not (isinstance(child, ast.Expr) and isinstance(child.value, ast.Constant)):  # a docstring
            yield from texts(child)


def text_of(node: ast.AST) -> str | None:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(text_of(value) or "\0" for value in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        parts = [text_of(node.left), text_of(node.right)]
        return None if parts == [None, None] else "".join(part or "\0" for part in parts)
    return None


SAID = [text for file in (ROOT / "src").rglob("*.py") for text in texts(ast.parse(file.read_text()))]
"""What the code may say."""
OTHERS = {"CUDA out of memory"}
"""Messages of PyTorch's."""
QUOTED = re.findall(r"^\| \*(.+?)\*.*? \|", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("message", [one for one in QUOTED if one not in OTHERS])
def test_messages_that_are_explained_are_what_is_said(message: str) -> None:
    """The words between what is filled in, in one text and in this order."""
    pattern = re.compile(".*".join(re.escape(words.strip()) for words in message.split("…")), re.DOTALL)
    assert any(pattern.search(text) for text in SAID)


def test_every_row_of_the_remedies_quotes_a_message() -> None:
    rows = re.findall(r"^\| (?!what is said)(?!-)", (ROOT / "docs" / "faq.md").read_text(), re.MULTILINE)
    assert len(QUOTED) == len(rows) >= 40


def test_the_site_has_every_page() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    listed = set(re.findall(r"[\w-]+\.md", text[text.index("nav:") :]))
    assert listed == {path.name for path in PAGES[2:]} | MADE


def sentences(page: Path) -> Iterator[str]:
    """Those of paragraphs and lists, without code, tables, headings and pictures."""
    text = re.sub(r"```.*?```|`[^`]*`", "code", page.read_text(), flags=re.DOTALL)
    prose = "\n".join(line for line in text.splitlines() if not re.match(r"#|\||!\[", line))
    for part in re.split(r"\n\s*\n|\n\s*(?:-|\d+\.)\s", re.sub(r"\]\([^)]*\)", "]", prose)):
        yield from (one for one in re.split(r"(?<=[.!?])\s+", part) if re.search(r"\w", one))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_sentences_are_short(page: Path) -> None:
    counts = [len(sentence.split()) for sentence in sentences(page)]
    assert sum(counts) <= 20 * len(counts)


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 12_000


@pytest.mark.parametrize("words", EVERY)
def test_commands_are_commands(
    words: list[str], unbroken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """Each is parsed by its own command, and no more: what it names need not be there, but configurations."""
    monkeypatch.chdir(tmp_path)
    Path("configs").symlink_to(ROOT / "configs")
    for name in ("c_panet.yaml", "panet.py"):
        shutil.copy(ROOT / "tests" / "extension" / "files" / name, name)
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
        positional = command in ("shapes", "proposals", "join", "export")
        parser = auto_parser(getattr(import_module(module), name), as_positional=positional)
        parser.parse_args(_with_values(_named(command, options)))
    else:
        checkpoint = str(unbroken / "checkpoints" / "last.ckpt")
        known = [checkpoint if word.endswith(".ckpt") else word for word in options]
        with pytest.raises(SystemExit) as caught:
            main([command, *known, *(["--print_config"] if "--print_config" not in known else [])])
        assert not caught.value.code, capsys.readouterr().err
