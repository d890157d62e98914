"""Proposal files: the fixed boxes that Fast R-CNN is trained and tested on (paper, Table 2).

Symbols: I images, M boxes of all images. The boxes of image i are `offsets[i]:offsets[i + 1]`.

A proposal file is in the safetensors format, which is open, is mapped into memory and runs no
code. It holds `image_ids` (I,) int64, `offsets` (I + 1,) int64, `boxes` (M, 4) float32, in pixels
of the original images, and `scores` (M,) float32, best first within an image. Its metadata tell
the format, and as a stamp what the boxes are of. An image without proposals is listed too. An id that is no
integer of 64 bits, as a string, stands there as the number that it has by the annotation file
(`fpn.data.coco_file`), which the stamp names to the last byte.
"""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

from fpn.errors import InputError
from fpn.files import replacing

_FORMAT = {"format": "fpn proposals", "version": "1"}
_REMEDY = "`fpn predict --annotations` or `fpn proposals` makes a proposal file"


class Stamp(NamedTuple):
    """What the boxes of a proposal file are of."""

    annotations: str
    """SHA-256 of the annotation file that lists the images."""
    annotations_name: str
    """Its file name."""
    checkpoint: str
    """SHA-256 of the checkpoint that found the boxes; empty where none did."""
    source: str
    """File name of the checkpoint, or of the results file that the boxes were converted from."""


class Proposals:
    """A proposal file, of which only what is asked for is read.

    The boxes stay in the file: processes that load images share its pages, and hold nothing
    themselves.

    Args:
        path: the file.

    Raises:
        InputError: it is missing, or no proposal file, or contradicts itself.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._written: tuple[int, int] | None = None
        file = self._open()
        metadata = file.metadata() or {}
        if metadata.get("format") != _FORMAT["format"]:
            raise self._wrong("not a proposal file")
        if (version := metadata.get("version")) != _FORMAT["version"]:
            reads = f"this program reads version {_FORMAT['version']}"
            raise self._wrong(f"of version {version} of the format, where {reads}")
        self.stamp = Stamp(*(metadata.get(field, "") for field in Stamp._fields))
        self._refuse_other_arrays(file)
        self.image_ids: NDArray[np.int64] = file.get_tensor("image_ids")
        """(I,) in the order of the file."""
        self._offsets: NDArray[np.int64] = file.get_tensor("offsets")
        counts = np.diff(self._offsets)
        ends = (self._offsets[0], self._offsets[-1])
        if ends != (0, file.get_slice("boxes").get_shape()[0]) or (counts < 0).any():
            raise self._wrong("damaged: 'offsets' do not divide 'boxes'")
        self._order = np.argsort(self.image_ids)
        self._sorted = self.image_ids[self._order]
        if (np.diff(self._sorted) == 0).any():
            raise self._wrong("damaged: an image is listed twice")
        self._file: Any = None

    def __getstate__(self) -> dict[str, Any]:
        # Every process maps the file for itself.
        return self.__dict__ | {"_file": None}

    def for_image(self, image_id: int) -> Tensor:
        """The boxes (P, 4) of an image, best first, in pixels of the original image.

        Raises:
            InputError: the image is not listed, or a box is not of numbers, or inverted.
        """
        return self._rows("boxes", image_id, (0, 4))

    def scores_for_image(self, image_id: int) -> Tensor:
        """The scores (P,) of these boxes, with the same errors."""
        return self._rows("scores", image_id, (0,))

    def check(self, annotations: Path, image_ids: NDArray[np.int64]) -> None:
        """See that these are the proposals for the images of an annotation file.

        Args:
            annotations: the file, which must be the one the proposals were made for, to the last
                byte.
            image_ids: those of its images that are wanted.

        Raises:
            InputError: the proposals are of another annotation file, or lack one of the images.
        """
        if self.stamp.annotations != file_hash(annotations):
            other = self.stamp.annotations_name
            raise self._wrong(f"made for another annotation file, {other}, not for {annotations} as it is")
        absent = image_ids[~np.isin(image_ids, self.image_ids)]
        if len(absent):
            raise self._wrong(f"lacks {len(absent)} images of {annotations}, the first of id {absent[0]}")

    def _wrong(self, what: str) -> InputError:
        return InputError(f"{self.path}: {what}; {_REMEDY}")

    def _open(self) -> Any:
        if not self.path.is_file():
            raise self._wrong("no such proposal file")
        status = self.path.stat()
        written = status.st_size, status.st_mtime_ns
        if self._written not in (None, written):
            raise InputError(f"{self.path} has been replaced while it was in use: start again")
        self._written = written
        try:
            return safe_open(self.path, framework="np")
        except (SafetensorError, OSError) as error:
            raise self._wrong(f"not a proposal file ({str(error).splitlines()[0]})") from None

    def _refuse_other_arrays(self, file: Any) -> None:
        arrays = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118 - no dictionary
        kinds = {name: array.get_dtype() for name, array in arrays.items()}
        if kinds != {"image_ids": "I64", "offsets": "I64", "boxes": "F32", "scores": "F32"}:
            raise self._wrong(f"damaged: it holds {kinds or 'nothing'}")
        shapes = {name: tuple(array.get_shape()) for name, array in arrays.items()}
        images, boxes = (shapes[name][0] if shapes[name] else -1 for name in ("image_ids", "boxes"))
        expected = {"image_ids": (images,), "offsets": (images + 1,), "boxes": (boxes, 4), "scores": (boxes,)}
        if shapes != expected:
            raise self._wrong(f"damaged: its arrays have the shapes {shapes}")

    def _rows(self, name: str, image_id: int, empty: tuple[int, ...]) -> Tensor:
        place = int(np.searchsorted(self._sorted, image_id))
        if place == len(self._sorted) or self._sorted[place] != image_id:
            raise self._wrong(f"does not list image {image_id}")
        index = self._order[place]
        first, end = int(self._offsets[index]), int(self._offsets[index + 1])
        if first == end:
            return torch.zeros(empty)
        if self._file is None:
            self._file = self._open()
        rows: NDArray[np.float32] = self._file.get_slice(name)[first:end]
        if not np.isfinite(rows).all():
            raise self._wrong(f"the {name} of image {image_id} are not all finite")
        if name == "boxes" and (rows[:, 2:] < rows[:, :2]).any():
            raise self._wrong(f"a box of image {image_id} ends before it begins: boxes are x1, y1, x2, y2")
        return torch.from_numpy(rows)


def write_proposals(
    path: str | Path,
    image_ids: Sequence[int],
    boxes: Sequence[Tensor],
    scores: Sequence[Tensor],
    stamp: Stamp,
) -> None:
    """Write a proposal file; it appears under its name when it is whole.

    Args:
        path: the file; its folder is made if it is missing, a file of that name is replaced.
        image_ids: of the I images, those of the annotation file.
        boxes: I tensors (P, 4) in pixels of the original images.
        scores: I tensors (P,); the boxes of an image are sorted by them.
        stamp: what the boxes are of.

    Raises:
        ValueError: the lengths do not fit together.
    """
    counts = [len(score) for score in scores]
    if len(image_ids) != len(boxes) or counts != [len(box) for box in boxes]:
        raise ValueError("as many image ids as sets of boxes and of scores, and as many scores as boxes")
    write_counted(path, image_ids, counts, zip(boxes, scores, strict=True), stamp)


def write_counted(
    path: str | Path,
    image_ids: Sequence[int],
    counts: Sequence[int],
    proposals: Iterable[tuple[Tensor, Tensor]],
    stamp: Stamp,
) -> None:
    """As `write_proposals`, of proposals that need not fit into memory together.

    Args:
        path: the file.
        image_ids: of the I images.
        counts: of the proposals of each.
        proposals: I times boxes (P, 4) and scores (P,), written as they come.
        stamp: what the boxes are of.
    """
    offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
    total, ids = int(offsets[-1]), np.asarray(image_ids, dtype=np.int64)
    arrays = {
        "image_ids": ("I64", [len(ids)], 8),
        "offsets": ("I64", [len(offsets)], 8),
        "boxes": ("F32", [total, 4], 4),
        "scores": ("F32", [total], 4),
    }
    header: dict[str, Any] = {"__metadata__": _FORMAT | stamp._asdict()}
    end = 0
    for name, (dtype, shape, width) in arrays.items():
        begin, end = end, end + width * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with replacing(Path(path)) as part, part.open("wb") as file, part.open("r+b") as behind:
        file.write(len(text).to_bytes(8, "little") + text + ids.tobytes() + offsets.tobytes())
        file.flush()
        behind.seek(8 + len(text) + header["scores"]["data_offsets"][0])
        for box, score in proposals:
            order = score.argsort(descending=True, stable=True)
            file.write(box[order].float().cpu().numpy().tobytes())
            behind.write(score[order].float().cpu().numpy().tobytes())


def file_hash(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror}") from None
