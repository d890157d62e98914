"""Where the files that an annotation file names lie, by names alone: each folder is listed once.

Programs write names in their own ways: with back-slashes, %20 for a space, another Unicode form, capitals, or
folders in front of the machine that made them. A file that lies there under such a spelling is found, if it
is the only one and no other image's.
"""

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from urllib.parse import unquote

from fpn.errors import InputError

_LEAVES = re.compile(r"[\\/]|[A-Za-z]:|(.*[\\/])?\.\.([\\/]|$)", re.DOTALL)
"""Paths from a root or a drive, or with a step up."""


@dataclass(frozen=True)
class Located:
    """What was found of a list of names in a folder."""

    names: list[str]
    """Those of the files, in the order of the list; as they were where nothing was found."""
    missing: list[int]
    """Places in the list of names of no file."""
    respelled: list[int]
    """Places of those whose files lie there under another spelling."""


def locate(folder: Path, listed: Sequence[str]) -> Located:
    """Look for files by their names; none is opened.

    Args:
        folder: where the names start.
        listed: as an annotation file has them.
    """
    tree = _Tree(folder)
    there = [_inside(name) and tree.holds(name) for name in listed]
    if all(there):
        return Located(list(listed), [], [])
    found = {place: tree.find(listed[place]) for place, known in enumerate(there) if not known}
    taken = {name for name, known in zip(listed, there, strict=True) if known}
    spellings: dict[str | None, set[str]] = {}
    for place, name in found.items():
        spellings.setdefault(name, set()).add(listed[place])
    names, missing, respelled = list(listed), [], []
    for place, name in found.items():
        if name is None or name in taken or len(spellings[name]) > 1:
            missing.append(place)
        else:
            names[place] = name
            respelled.append(place)
    return Located(names, missing, respelled)


def find_files(
    source: Path, folder: Path, listed: Sequence[str], allowed: int | None, tell: Callable[[str], object]
) -> list[str]:
    """The names of the files of images, in their order.

    Args:
        source: the annotation file that lists them.
        folder: where the names start.
        listed: as they are there.
        allowed: how many may be missing, by data.max_unreadable; None for none, ever.
        tell: prints a line on files under another spelling.

    Raises:
        InputError: more are missing, or a name that is not found leaves the folder.
    """
    found = locate(folder, listed)
    for name in (listed[place] for place in found.missing):
        if not _inside(name):
            raise InputError(
                f"{source}: 'file_name' is {name!r}, not a path inside the image folder {folder}"
            )
    if len(found.missing) > (allowed or 0):
        count, images = len(found.missing), len(listed)
        names = few(listed[place] for place in found.missing)
        remedy = "put them there, or take them out of that file"
        if count == images:
            remedy = "is this the folder in which their names start?"
        elif allowed is not None:
            share = math.ceil(1000 * count / images) / 1000
            remedy += f"; data.max_unreadable {share:g} trains without them"
        raise InputError(
            f"{count:,} of the {images:,} images of {source} are not in {folder}: {names}; {remedy}"
        )
    for first in found.respelled[:1]:
        tell(
            f"{len(found.respelled):,} of {len(listed):,} file names are spelled otherwise than the files in"
            f" {folder}, as {listed[first]!r}, which is taken for {found.names[first]!r}"
        )
    return found.names


def few(names: Iterable[object], most: int = 5) -> str:
    """The first of some names, for a message."""
    first = [str(name) for name in islice(names, most + 1)]
    return ", ".join([*first[:most], *["…"] * (len(first) > most)])


class _Tree:
    """A folder's files, by the names in its listings."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listing, self.keyed = cache(self._listing), cache(self._keyed)

    def _listing(self, below: str) -> frozenset[str]:
        try:
            return frozenset(os.listdir(self.folder / below))  # noqa: PTH208 - a Path for each is slow
        except OSError:
            return frozenset()

    def _keyed(self, below: str) -> dict[str, list[str]]:
        entries: dict[str, list[str]] = {}
        for name in self.listing(below):
            entries.setdefault(_key(name), []).append(name)
        return entries

    def holds(self, name: str) -> bool:
        below, _, last = name.rpartition("/")
        return last in self.listing(below)

    def find(self, name: str) -> str | None:
        """The one file of another spelling of a name, which may have more folders in front."""
        for spelling, follow in ((name, "/".join), (_key(name), self._follow)):
            parts = [part for part in spelling.replace("\\", "/").split("/") if part not in ("", ".")]
            if ".." in parts:
                return None
            for first in range(len(parts)):
                if (found := follow(parts[first:])) and self.holds(found):
                    return found
        return None

    def _follow(self, parts: Sequence[str]) -> str | None:
        below = ""
        for part in parts:
            entries = self.keyed(below).get(part, [])
            if len(entries) != 1:
                return None
            below = f"{below}/{entries[0]}" if below else entries[0]
        return below


def _inside(name: str) -> bool:
    return _LEAVES.match(name) is None


def _key(name: str) -> str:
    """What spellings of a path have in common."""
    return unicodedata.normalize("NFC", unquote(name).replace("\\", "/")).casefold()
