"""The folder of a prediction, and what is done of it while that is unfinished.

As long as results are not written, the folder has one named `unfinished_prediction`, with the settings and a
file of each process that has found something: so that the same command goes on where it was interrupted. An
entry there is four integers, the image's place among all, its height and width, and the number of its boxes;
then for each box six float32, x1, y1, x2, y2, score and label.
"""

import fcntl
import itertools
import json
import shutil
import struct
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import IO
from uuid import uuid4

import numpy as np
import torch
from numpy.typing import NDArray

from fpn.data.results import RESULTS
from fpn.errors import InputError
from fpn.types import Detections, Size

UNFINISHED = "unfinished_prediction"
_HEAD = struct.Struct("<4q")
_BOX = 6 * 4
_ALL = (*RESULTS, "proposals.safetensors", "pictures")
"""What a finished prediction may have."""


class Recorder(AbstractContextManager["Recorder"]):
    """Keeps what is found, batch by batch, in a new file of its own."""

    def __init__(self, folder: Path) -> None:
        self._file: IO[bytes] = (folder / f"{uuid4().hex}.found").open("wb")

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, entries: Iterable[tuple[int, Size, Detections]]) -> None:
        """Keep what is found in images: their places, their sizes and their boxes."""
        parts = []
        for place, size, (boxes, scores, labels) in entries:
            rows = torch.cat([boxes, scores[:, None], labels[:, None].to(boxes)], dim=1)
            parts.append(_HEAD.pack(place, *size, len(rows)) + rows.numpy().tobytes())
        self._file.write(b"".join(parts))
        self._file.flush()


class Recorded(AbstractContextManager["Recorded"]):
    """What was found, by the images' places; the boxes stay on disk, in files that are open in its context.

    Args:
        folder: of the files. An entry that an interruption has cut off does not count.
        images: how many there are.
    """

    def __init__(self, folder: Path, images: int) -> None:
        self._files = [path.open("rb") for path in sorted(folder.glob("*.found"))]
        self._where = np.full((images, 2), -1, dtype=np.int64)
        self.sizes: NDArray[np.int64] = np.zeros((images, 2), dtype=np.int64)
        """(I, 2) heights and widths of the images that are done."""
        self.counts: NDArray[np.int64] = np.zeros(images, dtype=np.int64)
        """(I,) of boxes."""
        for number, file in enumerate(self._files):
            begin, end = 0, file.seek(0, 2)
            while begin + _HEAD.size <= end:
                file.seek(begin)
                place, height, width, count = _HEAD.unpack(file.read(_HEAD.size))
                begin += _HEAD.size + count * _BOX
                if begin <= end:
                    self._where[place] = number, begin - count * _BOX
                    self.sizes[place], self.counts[place] = (height, width), count

    def __exit__(self, *_: object) -> None:
        for file in self._files:
            file.close()

    @property
    def done(self) -> NDArray[np.bool_]:
        """(I,) which images have been looked at."""
        return self._where[:, 0] >= 0

    def __getitem__(self, place: int) -> Detections:
        """What was found in an image; nothing in one that has not been looked at."""
        number, begin = self._where[place].tolist()
        count = int(self.counts[place])
        if count == 0:
            return Detections(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.int64))
        self._files[number].seek(begin)
        rows = torch.frombuffer(bytearray(self._files[number].read(count * _BOX)), dtype=torch.float32)
        boxes, scores, labels = rows.view(count, 6).split([4, 1, 1], dim=1)
        return Detections(boxes, scores[:, 0], labels[:, 0].long())


@contextmanager
def own_folder(out: str | None, settings: Mapping[str, object]) -> Iterator[Path]:
    """A folder that no other prediction has written to, or that of one with these settings to go on with.

    Args:
        out: the folder; None for `predictions`, or `predictions_2` and so on.
        settings: all that results depend on.

    Yields:
        Its folder `unfinished_prediction`, which is gone when the context ends without an error.

    Raises:
        InputError: there are files of another one.
    """
    text = json.dumps(settings, indent=1)
    later = (f"predictions_{number}" for number in itertools.count(2))
    for name in [out] if out is not None else itertools.chain(["predictions"], later):
        folder = Path(name)
        reason = _taken(folder, text)
        if not reason:
            break
        if out is not None:
            raise InputError(f"{folder} {reason}: give another --out")
    unfinished = folder / UNFINISHED
    unfinished.mkdir(parents=True, exist_ok=True)
    (unfinished / "settings.json").write_text(text)
    written = False
    lock = (unfinished / "settings.json").open("r+")  # NFS locks no file that is not open for writing
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    try:
        yield unfinished
        written = True
    finally:
        lock.close()  # NFS removes no folder with a file that is open
        if written or not any(path.stat().st_size for path in unfinished.glob("*.found")):
            shutil.rmtree(unfinished)
        for empty in [] if written else (folder / "pictures", folder):
            with suppress(OSError):  # the user's files
                empty.rmdir()


def _taken(folder: Path, settings: str) -> str:
    """Why a folder cannot be written to; empty if it can."""
    kept = folder / UNFINISHED / "settings.json"
    if not kept.is_file():
        there = [name for name in _ALL if (folder / name).exists()]
        return f"has the {there[0]} of another run" if there else ""
    with kept.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return "is being written to by another run"
        return "" if file.read() in ("", settings) else "has an interrupted run with other settings"
