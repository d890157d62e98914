"""Closed outlines as polygons, and their antialiased masks.

An outline is (P, 2) float64 vertices (x to the right, y down), closed from the last vertex to the first.
A hole is joined to the outside by a seam of no width, since COCO polygons have no holes.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Outline = NDArray[np.float64]


class Drawn(NamedTuple):
    """An outline drawn on h × w pixels that just hold it."""

    outline: Outline
    """Vertices in pixels from the upper left corner of the stamp."""
    fine: NDArray[np.bool_]
    """(h · s, w · s) mask of s × s samples a pixel."""
    coverage: NDArray[np.float32]
    """(h, w) covered share of each pixel."""
    samples: int
    """s."""


def _arc(radius: float, start: float, stop: float, centre: tuple[float, float] = (0.0, 0.0)) -> Outline:
    turn = np.radians(np.linspace(start, stop, 1 + round(abs(stop - start) / 9)))
    return np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius + centre


def _star() -> Outline:
    turn = np.radians(-90 + 36 * np.arange(10))
    radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
    return np.stack([np.cos(turn), np.sin(turn)], axis=1) * radius[:, None]


def _heart() -> Outline:
    lobe = _arc(0.5, -180, 25, centre=(0.5, 0.0))
    left = lobe[::-1] * (-1, 1)
    return np.concatenate([lobe, [[0.0, 1.05]], left[:-1]])


def _cross(arm: float) -> Outline:
    quarter = np.array([(arm, -arm), (1, -arm), (1, arm)])
    turns = (np.array([[0, 1], [-1, 0]]), np.array([[-1, 0], [0, -1]]), np.array([[0, -1], [1, 0]]))
    return np.concatenate([quarter, *(quarter @ turn for turn in turns)])


SHAPES: dict[str, Outline] = {
    "disc": _arc(1, 0, 351),
    "ring": np.concatenate([_arc(1, 0, 360), _arc(0.52, 360, 0)]),
    "square": np.array([(-1.0, -1), (1, -1), (1, 1), (-1, 1)]),
    "triangle": np.array([(0.0, -1), (1, 0.8), (-1, 0.8)]),
    "cross": _cross(0.34),
    "star": _star(),
    # The arcs meet at (0.602, ±0.798), at 53° of the outer and 86.3° of the inner circle.
    "crescent": np.concatenate([_arc(1, 53, 307), _arc(0.8, 273.7, 86.3, centre=(0.55, 0.0))[1:-1]]),
    "heart": _heart(),
    "arrow": np.array([(-1, -0.3), (0, -0.3), (0, -0.9), (1, 0), (0, 0.9), (0, 0.3), (-1, 0.3)]),
    "hourglass": np.array([(-0.9, -1), (0.9, -1), (0.22, 0), (0.9, 1), (-0.9, 1), (-0.22, 0)]),
}
"""Outlines of about two units a side around the origin, told apart by silhouette at any small rotation."""


def frame(stroke: float) -> Outline:
    """A square of two units a side with a square hole; `stroke` is the width of what is left, in units."""
    square = SHAPES["square"]
    closed = np.concatenate([square, square[:1]])
    return np.concatenate([closed, closed[::-1] * (1 - stroke)])


def blob(rng: np.random.Generator) -> Outline:
    """An irregular, elongated, smooth outline: like none of SHAPES, even when it is small."""
    turn = np.linspace(0, 2 * np.pi, 64, endpoint=False)
    order = np.arange(2, 6)[:, None]
    waves = np.cos(order * turn + rng.uniform(0, 2 * np.pi, (4, 1))) * rng.uniform(0.1, 0.3, (4, 1))
    radius = np.maximum(1 + waves.sum(axis=0), 0.3)
    stretched = np.stack([np.cos(turn) * rng.uniform(1.8, 2.8), np.sin(turn)], axis=1)
    return rotated(stretched * radius[:, None], rng.uniform(0, 360))


def stroke(rng: np.random.Generator) -> Outline:
    """A wavy stroke of even width; its waves keep it from looking like a crescent or a broken ring."""
    t = np.linspace(-1, 1, 48)
    frequency, phase = rng.uniform(3.5, 8), rng.uniform(0, 2 * np.pi)
    height = rng.uniform(0.5, 1) / frequency
    line = np.stack([t, height * np.sin(frequency * t + phase)], axis=1)
    slope = height * frequency * np.cos(frequency * t + phase)
    normal = np.stack([-slope, np.ones_like(t)], axis=1) / np.hypot(slope, 1)[:, None]
    side = normal * rng.uniform(0.05, 0.1)
    return rotated(np.concatenate([line + side, (line - side)[::-1]]), rng.uniform(0, 360))


def rotated(outline: Outline, degrees: float) -> Outline:
    """The outline turned clockwise, as seen on the screen, around the origin."""
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return outline @ np.array([[cos, sin], [-sin, cos]])


def stamp(outline: Outline, size: float, shift: tuple[float, float]) -> Drawn:
    """Draw an outline.

    Args:
        outline: In any unit.
        size: √(width · height) of the drawn outline's box, in pixels.
        shift: (x, y) of that box in its stamp, in [0, 1) pixels.
    """
    low, high = outline.min(axis=0), outline.max(axis=0)
    outline = (outline - low) * (size / np.sqrt(np.prod(high - low))) + shift
    width, height = (int(side) for side in np.ceil(outline.max(axis=0)))
    # Many samples for the small, whose form hangs on fractions of a pixel; large ones would only be slow.
    samples = int(np.clip(192 / size, 2, 8))
    image = Image.new("L", (width * samples, height * samples))
    # Pillow puts the centre of a pixel, not its corner, at whole coordinates.
    ImageDraw.Draw(image).polygon((outline * samples - 0.5).ravel().tolist(), fill=255)
    coverage = np.asarray(image.reduce(samples), dtype=np.float32) / np.float32(255)
    return Drawn(outline, np.asarray(image) > 0, coverage, samples)
