"""One generated image: shapes, distractors and crowds, painted over one another, with their annotations.

In a plain scene every shape is an object. In a framed one a shape is an object if it lies within a frame, and
none if it lies outside, and nothing nearby tells: what is small must be judged by what is seen from afar.

Symbols: an image is (h, w, 3); an item takes one place in it.
"""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fpn.data.outlines import SHAPES, Drawn, blob, frame, rotated, stamp, stroke
from fpn.types import Categories

CATEGORIES = Categories(ids=(1, 2, 4, 5, 7, 8, 11, 13, 16, 19), names=tuple(SHAPES))
FRAMED_CATEGORIES = Categories((*CATEGORIES.ids, 23), (*CATEGORIES.names, "frame"))

SMALLEST = 6.0
"""Side of the smallest objects, in pixels."""
LARGEST = 0.75
"""Side of the largest objects, in long sides of the image."""
VISIBLE = 0.7
"""Least share of an object that the border and nearer objects leave visible."""
CROWD_EVERY, EMPTY_EVERY = 20, 25
"""Images from one with a crowd region, or without annotations, to the next such."""

_FRAMES = ((1, 1), (1, 0.75), (0.75, 1), (1, 0.625), (0.625, 1), (0.75, 0.75))

Annotation = dict[str, Any]
_Region = tuple[slice, slice]
"""Rows and columns."""


class _Item(NamedTuple):
    """What takes one place in an image: an object, a distractor or a crowd."""

    size: float
    mask: NDArray[np.bool_]
    """(h, w) pixels that it claims."""
    stamps: list[tuple[Drawn, int, int]]
    """What is painted, with (x, y) from the item's corner."""
    keep: float = 0.0
    """Share of it that must stay visible."""
    category: int | str | None = None
    """Category id; None is a distractor."""
    crowd: bool = False


def draw_scene(
    rng: np.random.Generator, index: int, long_side: int
) -> tuple[NDArray[np.uint8], list[Annotation]]:
    """An image and what is to be found in it.

    Args:
        rng: all chance there is.
        index: of the image in its split; decides whether it is one with a crowd or without annotations.
        long_side: pixels of its long side, at most.

    Returns:
        (H, W, 3) pixels, and annotations in COCO's form but for their ids.
    """
    width, height = (round(long_side * share) for share in _FRAMES[rng.integers(len(_FRAMES))])
    empty = index % EMPTY_EVERY == EMPTY_EVERY // 2
    distractors, objects = int(rng.integers(2 if empty else 0, 7)), int(rng.integers(1, 11))
    items = [_distractor(rng, size) for size in _sizes(rng, distractors, long_side / 2)]
    if not empty:
        items += [_object(rng, size) for size in _sizes(rng, objects, long_side * LARGEST)]
        if index % CROWD_EVERY == CROWD_EVERY // 2:
            items.append(_crowd(rng))
    canvas = _background(rng, width, height)
    placement = _Placement(rng, width, height)
    annotations = []
    # From the back to the front: a small item may lie on a large one, and does not hide much of it.
    for item in sorted(items, key=lambda item: -item.size):
        corner = placement.claim(item)
        if corner is None:
            continue  # One object in some 200: it would hide, or be hidden, too much wherever it lay.
        for drawn, dx, dy in item.stamps:
            _paint(rng, canvas, drawn, corner[0] + dx, corner[1] + dy)
        if item.category is not None:
            annotations.append(_annotation(item, *corner, width, height))
    return _finish(rng, canvas), annotations


def draw_framed_scene(
    rng: np.random.Generator, index: int, long_side: int
) -> tuple[NDArray[np.uint8], list[Annotation]]:
    """As `draw_scene`, but shapes are objects within a frame only, and so are the frames themselves.

    A frame's area is what it encloses.
    """
    width, height = (round(long_side * share) for share in _FRAMES[rng.integers(len(_FRAMES))])
    canvas = _background(rng, width, height)
    frames, placement = _Placement(rng, width, height), _Placement(rng, width, height)
    within = np.zeros((height, width), dtype=np.bool_)
    annotations = []
    number = 0 if index % EMPTY_EVERY == EMPTY_EVERY // 2 else int(rng.integers(1, 3))
    largest = long_side * LARGEST
    for size in sorted(_sizes(rng, number, largest, 0.4 * largest), reverse=True):
        filled, item = _frame(rng, size)
        corner = frames.claim(filled)
        if corner is None:
            continue
        placement.place(item, *corner)
        region, inside = _overlap(*corner, filled.mask.shape, within.shape)
        within[region] |= filled.mask[inside]
        _paint(rng, canvas, item.stamps[0][0], *corner)
        enclosed = _annotation(filled, *corner, width, height)["area"]
        annotations.append({**_annotation(item, *corner, width, height), "area": enclosed})
    for size in sorted(_sizes(rng, int(rng.integers(48, 81)), long_side * 3 / 16), reverse=True):
        item = _object(rng, size)
        corner = placement.claim(item)
        if corner is None:
            continue
        _paint(rng, canvas, item.stamps[0][0], *corner)
        region, inside = _overlap(*corner, item.mask.shape, within.shape)
        # Wholly, or not at all: nothing hides a stroke.
        if within[region][item.mask[inside]].all():
            annotations.append(_annotation(item, *corner, width, height))
    return _finish(rng, canvas), annotations


def _finish(rng: np.random.Generator, canvas: NDArray[np.float32]) -> NDArray[np.uint8]:
    """(H, W, 3) bytes with a grain."""
    canvas += rng.standard_normal(canvas.shape[1:], dtype=np.float32) * np.float32(rng.uniform(1, 9))
    pixels = canvas.clip(0, 255, out=canvas).astype(np.uint8)
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))


def _sizes(
    rng: np.random.Generator, count: int, largest: float, smallest: float = SMALLEST
) -> NDArray[np.float64]:
    """Log-uniform sizes, one from each of `count` equal shares of the range, so that they fit an image."""
    share = (np.arange(count) + rng.random(count)) / max(count, 1)
    return smallest * (largest / smallest) ** share


def _shape(rng: np.random.Generator, label: int, size: float) -> Drawn:
    stretched = list(SHAPES.values())[label] * np.exp(rng.uniform(-0.15, 0.15, 2))
    return stamp(rotated(stretched, rng.uniform(-20, 20)), size, (rng.random(), rng.random()))


def _object(rng: np.random.Generator, size: float) -> _Item:
    label = int(rng.integers(len(SHAPES)))
    drawn = _shape(rng, label, size)
    return _Item(size, drawn.coverage >= 0.5, [(drawn, 0, 0)], VISIBLE, CATEGORIES.ids[label])


def _frame(rng: np.random.Generator, size: float) -> tuple[_Item, _Item]:
    """A frame with what it encloses, and its stroke alone, none of which may be hidden."""
    stretched = frame(rng.uniform(5, 9) / size) * np.exp(rng.uniform(-0.2, 0.2, 2))
    outline = rotated(stretched, rng.uniform(-15, 15))
    # Without its hole, which follows on the four corners and the first once more.
    filled, drawn = (stamp(points, size, (0, 0)) for points in (outline[:4], outline))
    category = FRAMED_CATEGORIES.ids[-1]
    whole, stroke_alone = (
        _Item(size, one.coverage > 0, [(one, 0, 0)], 1.0, category) for one in (filled, drawn)
    )
    return whole, stroke_alone


def _distractor(rng: np.random.Generator, size: float) -> _Item:
    outline = blob(rng) if rng.random() < 0.6 else stroke(rng)
    drawn = stamp(outline, size, (0, 0))
    return _Item(size, drawn.coverage >= 0.5, [(drawn, 0, 0)])


def _crowd(rng: np.random.Generator) -> _Item:
    """Some dozens of tiny shapes of one class, on a jittered grid."""
    label, cell = int(rng.integers(len(SHAPES))), 10
    columns, rows = rng.integers(5, 9), rng.integers(3, 7)
    stamps = []
    for place in range(columns * rows):
        drawn = _shape(rng, label, rng.uniform(SMALLEST, 8))
        y, x = np.array(divmod(place, columns)) * cell + rng.integers(0, 4, 2)
        stamps.append((drawn, int(x), int(y)))
    left, top = min(x for _, x, _ in stamps), min(y for _, _, y in stamps)
    stamps = [(drawn, x - left, y - top) for drawn, x, y in stamps]
    width = max(x + drawn.coverage.shape[1] for drawn, x, _ in stamps)
    height = max(y + drawn.coverage.shape[0] for drawn, _, y in stamps)
    mask = np.ones((height, width), dtype=np.bool_)
    return _Item(float(np.sqrt(mask.size)), mask, stamps, 0.95, CATEGORIES.ids[label], crowd=True)


class _Placement:
    """Where the items of an image lie: none may hide too much of those behind it."""

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self.rng, self.width, self.height = rng, width, height
        # The item seen at each pixel, 0 the background, and how many pixels of each may yet be hidden.
        self.seen = np.zeros((height, width), dtype=np.int16)
        self.spare = np.array([float(height * width)])

    def claim(self, item: _Item, tries: int = 60) -> tuple[int, int] | None:
        """Claim a random place and return its upper left corner (x, y); None where no place is found."""
        height, width = item.mask.shape
        # Cut at the border, the smallest would fall below the least size.
        cut = 1 - VISIBLE if item.size > 2 * SMALLEST and self.rng.random() < 0.25 else 0.0
        for _ in range(tries):
            x, y = self._offset(width, self.width, cut), self._offset(height, self.height, cut)
            if self.place(item, x, y):
                return x, y
        return None

    def place(self, item: _Item, x: int, y: int) -> bool:
        """Whether an item may lie at a place, where it does from now on."""
        region, inside = _overlap(x, y, item.mask.shape, self.seen.shape)
        visible = item.mask[inside]
        count = np.count_nonzero(visible)
        hidden = np.bincount(self.seen[region][visible], minlength=len(self.spare))
        spare = count - item.keep * np.count_nonzero(item.mask)
        if spare < 0 or (hidden > self.spare).any():
            return False
        self.spare = np.append(self.spare - hidden, spare)
        self.seen[region][visible] = len(self.spare) - 1
        return True

    def _offset(self, length: int, frame: int, cut: float) -> int:
        low, high = sorted((0, frame - length))
        beyond = round(cut * length)
        return int(self.rng.integers(low - beyond, high + beyond + 1))


def _overlap(x: int, y: int, item: tuple[int, ...], image: tuple[int, ...]) -> tuple[_Region, _Region]:
    """What an item at (x, y) and an image share, of sizes (h, w): in the image, and in the item."""
    rows, columns = (
        slice(max(low, 0), min(low + side, end)) for low, side, end in zip((y, x), item, image, strict=True)
    )
    inside = (slice(rows.start - y, rows.stop - y), slice(columns.start - x, columns.stop - x))
    return (rows, columns), inside


def _background(rng: np.random.Generator, width: int, height: int) -> NDArray[np.float32]:
    """(3, H, W) of two smooth random fields, a coarse and a finer, fainter one."""
    coarse = rng.uniform(40, 215, 3) + rng.uniform(-45, 45, (*rng.integers(2, 6, 2), 3))
    rows, columns = (int(cells) for cells in rng.integers(12, 30, 2))
    fine = np.asarray(_resized(coarse, columns, rows)) + rng.uniform(-16, 16, (rows, columns, 3))
    pixels = np.asarray(_resized(fine, width, height), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))


def _resized(grid: NDArray[np.float64], width: int, height: int) -> Image.Image:
    image = Image.fromarray(grid.clip(0, 255).astype(np.uint8))
    return image.resize((width, height), Image.Resampling.BICUBIC)


def _paint(rng: np.random.Generator, canvas: NDArray[np.float32], drawn: Drawn, x: int, y: int) -> None:
    """Fill a stamp plainly, with a gradient or with stripes, in colours that stand out from what is there."""
    height, width = drawn.coverage.shape
    region, inside = _overlap(x, y, drawn.coverage.shape, canvas.shape[1:])
    behind = canvas[:, *region]
    colours = rng.uniform(0, 255, (16, 3)).astype(np.float32)
    # Some 25 of the pixels behind, not their mean: an item may lie on several others.
    samples = behind[:, :: 1 + behind.shape[1] // 5, :: 1 + behind.shape[2] // 5].reshape(3, -1)
    contrast = np.linalg.norm(colours[:, :, None] - samples, axis=1).min(axis=1)
    # The first that stands out: the strongest contrast of all would leave only a few garish colours.
    fill = colours[np.argmax(contrast >= min(100, contrast.max()))][:, None, None]

    style, turn, size = rng.random(), rng.uniform(0, 2 * np.pi), max(width, height)
    tint = rng.uniform(-40, 40, (3, 1, 1)).astype(np.float32)
    if style < 0.7:
        down = np.linspace(-np.sin(turn), np.sin(turn), height, dtype=np.float32)
        right = np.linspace(-np.cos(turn), np.cos(turn), width, dtype=np.float32)
        ramp = np.add.outer(down, right)[inside]
        if style < 0.3 and size > 24:
            ramp = np.sin(ramp * np.float32(size * rng.uniform(0.1, 0.4)))
        fill = fill + ramp * tint
    behind += drawn.coverage[inside] * (fill - behind)


def _annotation(item: _Item, x: int, y: int, width: int, height: int) -> Annotation:
    region, inside = _overlap(x, y, item.mask.shape, (height, width))
    segmentation: Any
    if item.crowd:
        mask = np.zeros((height, width), dtype=np.bool_)
        mask[region] = True
        rows, columns = region
        box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
        area = float(np.count_nonzero(mask))
        segmentation = {"size": [height, width], "counts": _run_lengths(mask)}
    else:
        drawn = item.stamps[0][0]
        scale, outline = drawn.samples, drawn.outline + np.array((x, y))
        fine = drawn.fine[tuple(slice(side.start * scale, side.stop * scale) for side in inside)]
        ends = np.array([np.flatnonzero(fine.any(axis=axis))[[0, -1]] + (0, 1) for axis in (0, 1)])
        low, high = np.array((max(x, 0), max(y, 0))) + ends.T / scale
        # Pillow also draws the samples that an edge only touches.
        low, high = np.maximum(low, outline.min(axis=0)), np.minimum(high, outline.max(axis=0))
        box = [*low, *(high - low)]
        area = np.count_nonzero(fine) / scale**2
        segmentation = [outline.ravel().round(2).tolist()]
    return {
        "category_id": item.category,
        "bbox": [round(float(side), 2) for side in box],
        "area": round(area, 2),
        "iscrowd": int(item.crowd),
        "segmentation": segmentation,
    }


def _run_lengths(mask: NDArray[np.bool_]) -> list[int]:
    """COCO's uncompressed run-length code: column after column, beginning with a run of zeros."""
    flat = mask.ravel(order="F").astype(np.int8)
    changes = np.flatnonzero(np.diff(flat, prepend=0))
    return [int(run) for run in np.diff([0, *changes, flat.size])]
