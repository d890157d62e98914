"""Photos that are there twice, also mirrored, turned, darkened or resized: `pip install 'fpn[audit]'`.

Two photos are alike if the perceptual hashes (imagehash's `phash`, 256 bits) of one as it is and of the other
in one of a square's eight symmetries differ in few bits. Of 160 photos of COCO, no two came nearer than 92. A
photo and its copy turned or mirrored, compressed anew and darkened to 0.3, or halved in size, were
14 apart at most; brightened by 1.4, with what is white lost, or with a gamma of 1.8, 36.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpn.data.image_files import of_each
from fpn.errors import InputError

MAX_DISTANCE = 48
"""Bits of 256 in which the hashes of twins may differ."""
_SIDE = 16
"""Of a hash, in bits."""
_ROWS = 64
"""Hashes that are compared with all others at a time."""


def twins(paths: Sequence[Path], num_workers: int | None = None) -> list[list[int]]:
    """Groups of photos that are alike, each with one of the same group.

    Args:
        paths: the files; what is no image is like none.
        num_workers: processes that read, 0 for none; by default one for each core.

    Returns:
        Their places, ascending.

    Raises:
        InputError: imagehash is not installed.
    """
    try:
        from imagehash import phash
    except ImportError as error:
        raise InputError("the search for twins needs imagehash: pip install 'fpn[audit]'") from error
    hashes = partial(_hashes, hash_of=partial(phash, hash_size=_SIDE))
    found = of_each([str(path) for path in paths], hashes, num_workers, "twins")
    return alike(np.array(found, dtype=np.uint64).reshape(-1, 8, _SIDE * _SIDE // 64))


def alike(hashes: NDArray[np.uint64]) -> list[list[int]]:
    """Groups of near hashes.

    Args:
        hashes: (N, 8, 4) by photo, symmetry, of which the first is none, and 64 bits; zeros are like none.
    """
    known = np.flatnonzero(hashes.any(axis=(1, 2)))
    turned, upright = hashes[known], np.ascontiguousarray(hashes[known, 0].T)
    leader = np.arange(len(known))
    for start in range(0, len(known), _ROWS):
        rows = turned[start : start + _ROWS]
        near = np.zeros((len(rows), len(known) - start), dtype=bool)
        for symmetry in range(rows.shape[1]):
            distance = np.zeros(near.shape, dtype=np.uint16)
            for word, others in enumerate(upright):
                distance += np.bitwise_count(rows[:, symmetry, word, None] ^ others[start:])
            near |= distance <= MAX_DISTANCE
        for row, other in np.argwhere(near) + start:
            if leader[row] != leader[other]:
                leader[leader == leader[other]] = leader[row]
    groups = [known[leader == one].tolist() for one in np.flatnonzero(np.bincount(leader) > 1)]
    return sorted(groups)


def _hashes(path: str, hash_of: Any) -> NDArray[np.uint64]:
    """(8, 4) the hashes of an image in all symmetries, zeros of what cannot be read."""
    try:
        with Image.open(path) as opened:
            opened.draft("L", (8 * _SIDE, 8 * _SIDE))  # of a JPEG file, only as large as is needed
            grey = opened.convert("L").resize((4 * _SIDE, 4 * _SIDE), Image.Resampling.BOX)
    except Exception:  # PIL's plugins raise anything at all on broken files
        return np.zeros((8, _SIDE * _SIDE // 64), dtype=np.uint64)
    turned = [grey, *(grey.transpose(way) for way in Image.Transpose)]
    bits = np.stack([hash_of(one).hash.ravel() for one in turned])
    return np.packbits(bits, axis=1).view(np.uint64)
