"""Files that are there whole or not at all, the newest of some, and JSON that every reader takes."""

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

LEFT_TO_OTHERS = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""Formats that Pillow tells and cannot read by itself: for some it would start another program."""


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file to write beside another, whose name it takes once it is whole; errors bear that name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # Processes of several machines or containers may have one number.
    part = path.with_name(f".{path.name}-{uuid4().hex[:8]}.part")
    try:
        yield part
        part.replace(path)
    except OSError as error:
        if error.filename not in (None, str(part)):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        part.unlink(missing_ok=True)


def strict_json(content: Any) -> str:
    """Indented JSON, with null for NaN, which JSON has not."""
    return json.dumps(json.loads(json.dumps(content), parse_constant=lambda name: None), indent=2)


def newest(paths: Iterable[Path]) -> Path | None:
    """The file that was written last; None of none."""
    return max(paths, key=lambda path: path.stat().st_mtime_ns, default=None)
