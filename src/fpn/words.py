"""What the words of a command and configuration files say, before a parser has read them."""

from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from fpn.errors import InputError


def options_of(words: Sequence[str]) -> Iterator[tuple[str, str | None]]:
    """The options: names, without their dashes, and values; None where none follows."""
    for word, after in zip_longest(words, words[1:], fillvalue="-"):
        if _is_option(word):
            name, equals, value = word.lstrip("-").partition("=")
            yield name, value if equals else None if _is_option(after) else after


def spelled_out(words: Sequence[str]) -> list[str]:
    """The words, with what --epochs is short for in its place."""
    long = "--model.schedule.epochs"
    return [long + word[8:] if word.partition("=")[0] == "--epochs" else word for word in words]


def value_of(text: str) -> Any:
    """What a text is in YAML; itself where that cannot be, which the parser tells of."""
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return text


def read_text(path: Path) -> str:
    """What a text file holds.

    Raises:
        InputError: if it cannot be read, or is no text.
    """
    try:
        return path.read_text("utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None


def read_yaml(path: Path) -> Any:
    """What a YAML file holds.

    Raises:
        InputError: if it cannot be read, or is none.
    """
    try:
        return yaml.safe_load(path.read_bytes())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except yaml.YAMLError as error:
        reason = " ".join(str(error).replace('in "<byte string>", ', "at ").split())
        raise InputError(f"{path}: not a YAML file: {reason}") from None


def _is_option(word: str) -> bool:
    return word.startswith("-") and not word[1:2].isdigit()
