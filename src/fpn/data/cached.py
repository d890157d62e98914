"""Files in COCO's format that are made of others once, and again when those change.

They lie in a folder `.fpn` beside what they are made of, or below the user's cache folder where nothing can
be written there. Their first line holds `info`, with the state of what they were made of.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from fpn.errors import InputError
from fpn.files import replacing

_STATE = "made_by_fpn_of"


class Made(NamedTuple):
    """A file that was made, now or before."""

    path: Path
    notes: tuple[str, ...]
    """What there is to say of how it was made."""


def made_of(
    sources: Iterable[Path], beside: Path, name: str, make: Callable[[], tuple[dict[str, Any], list[str]]]
) -> Made:
    """The file `name`, made unless it is there and its sources are what they were.

    Several processes may do so at once: each writes the whole file, all the same.

    Args:
        sources: files by whose paths, sizes and times of change it is told whether it is up to date.
        beside: their folder.
        name: of the file.
        make: what it holds, in COCO's format, and what there is to say of it.
    """
    path, state = cache_folder(beside) / name, _state(sources)
    if (info := _info(path)).get(_STATE) == state:
        return Made(path, tuple(info["notes"]))
    content, notes = make()
    info = {_STATE: state, "notes": notes, "description": f"made by fpn of what lies in {beside}"}
    with replacing(path) as part:
        rest = json.dumps({key: value for key, value in content.items() if key != "info"})
        part.write_text(f'{{"info": {json.dumps(info)},\n{rest[1:]}')
    return Made(path, tuple(notes))


def cache_folder(beside: Path) -> Path:
    """Where to keep what is made of the files in a folder."""
    if beside.name == ".fpn":  # what is made of what was made
        return beside
    own = beside / ".fpn"  # perhaps another user's
    if os.access(own if own.exists() else beside, os.W_OK):
        return own
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return caches / "fpn" / f"{beside.name}-{hashlib.sha256(str(beside.resolve()).encode()).hexdigest()[:12]}"


def _state(sources: Iterable[Path]) -> str:
    digest = hashlib.sha256(b"3")  # goes up with every change of what is made of the same sources
    for source in sources:
        name = os.fsencode(Path.cwd() / source)
        try:
            seen = source.stat()
        except FileNotFoundError:
            digest.update(name + b"\0")
        except OSError as error:
            raise InputError(f"{source}: cannot be read ({error.strerror})") from None
        else:
            digest.update(name + f"\0{seen.st_size}\0{seen.st_mtime_ns}\0".encode())
    return digest.hexdigest()


def _info(path: Path) -> dict[str, Any]:
    try:
        with path.open() as file:
            info = json.loads(file.readline().rstrip().removesuffix(",") + "}")["info"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return info if isinstance(info, dict) else {}
