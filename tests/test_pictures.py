import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2.functional import rgb_to_grayscale

from fpn import pictures
from fpn.pictures import Rectangle, beside, draw, place_labels, truth
from fpn.types import Categories, Detections

NAMES = Categories((1, 7), ("disc", "star"))
MANY = Categories(tuple(range(1, 22)), ("thing",) * 21)
HEIGHT, WIDTH = 34, 46


@st.composite
def scenes(draw: st.DrawFn) -> tuple[list[Rectangle], list[list[int]], int]:
    """Boxes in an image of HEIGHT × WIDTH, the widths that their labels may have, and the labels' height."""
    number = draw(st.integers(1, 9))
    boxes = []
    for _ in range(number):
        x1, y1 = draw(st.integers(0, WIDTH - 1)), draw(st.integers(0, HEIGHT - 1))
        boxes.append((x1, y1, draw(st.integers(x1 + 1, WIDTH)), draw(st.integers(y1 + 1, HEIGHT))))
    widths = [sorted(draw(st.sets(st.integers(1, WIDTH + 3), min_size=1, max_size=3)))[::-1] for _ in boxes]
    return boxes, widths, draw(st.integers(1, HEIGHT // 3))


def attached(box: Rectangle, width: int, height: int, free: NDArray[np.bool_]) -> list[tuple[int, int]]:
    """All free corners (x, y) at which a label lies along an edge of its box, half of one at the other."""
    x1, y1, x2, y2 = box
    return [
        (x, y)
        for y in (y1 - height, y2, y1, y2 - height)
        for x in range(WIDTH - width + 1)
        if 0 <= y <= HEIGHT - height
        and len({*range(x, x + width)} & {*range(x1, x2)}) >= min(width, x2 - x1) // 2
        and min(x + width, x2) >= max(x, x1)
        and free[y : y + height, x : x + width].all()
    ]


@settings(deadline=None, max_examples=60)
@given(scenes())
def test_labels_are_apart_in_the_image_at_their_boxes_and_hide_little(
    scene: tuple[list[Rectangle], list[list[int]], int],
) -> None:
    boxes, widths, height = scene
    places = place_labels(boxes, widths, height, (HEIGHT, WIDTH))
    free = np.ones((HEIGHT, WIDTH), dtype=bool)
    hidden = np.zeros((HEIGHT, WIDTH))
    """What a pixel's loss takes of the boxes that it lies in."""
    for x1, y1, x2, y2 in boxes:
        hidden[y1:y2, x1:x2] += 1 / ((x2 - x1) * (y2 - y1))
    for box, of_label, place in zip(boxes, widths, places, strict=True):
        if place is None:
            assert not any(attached(box, width, height, free) for width in of_label)
            continue
        x1, y1, x2, y2 = place
        assert y2 - y1 == height
        assert x2 - x1 in of_label
        possible = {width: attached(box, width, height, free) for width in of_label}
        assert (x1, y1) in possible[x2 - x1]
        costs = {
            width: [hidden[y : y + height, x : x + width].sum() for x, y in corners]
            for width, corners in possible.items()
        }
        mine = hidden[y1:y2, x1:x2].sum()
        # A place and a shift that are preferred are worth 0.3 of a box together, a name in full 0.5.
        assert mine <= min(costs[x2 - x1]) + 0.3 + 1e-9
        for width in of_label[: of_label.index(x2 - x1)]:
            assert not costs[width] or min(costs[width]) > 0.5 - 0.3
        free[y1:y2, x1:x2] = False


@pytest.mark.parametrize(
    ("boxes", "widths", "places"),
    [
        ([(10, 12, 40, 30)], [[20]], [(10, 7, 30, 12)]),  # above
        ([(10, 3, 40, 28)], [[20]], [(10, 28, 30, 33)]),  # no room above: below
        ([(0, 0, 46, 34)], [[20]], [(0, 0, 20, 5)]),  # nor there: inside, at the edge
        ([(36, 12, 46, 30)], [[20]], [(26, 7, 46, 12)]),  # the image ends
        # The other label is there, and beside it is room.
        ([(4, 12, 44, 30), (4, 12, 44, 31)], [[20], [20]], [(4, 7, 24, 12), (24, 7, 44, 12)]),
        # A small box is there, which it would hide: beside it, or below where there is no room either.
        ([(4, 12, 44, 30), (6, 8, 9, 11)], [[20], [3]], [(9, 7, 29, 12), (6, 3, 9, 8)]),
        ([(4, 12, 24, 28), (10, 8, 16, 11)], [[20], [6]], [(4, 28, 24, 33), (10, 3, 16, 8)]),
        ([(4, 12, 24, 28)], [[50, 30]], [(4, 7, 34, 12)]),  # too long for the image
        ([(4, 12, 24, 28)], [[50]], [None]),
    ],
)
def test_where_a_label_goes(
    boxes: list[Rectangle], widths: list[list[int]], places: list[Rectangle | None]
) -> None:
    assert place_labels(boxes, widths, 5, (HEIGHT, WIDTH)) == places


def scattered(number: int, height: int, width: int, seed: int = 0) -> Detections:
    """Boxes of all sizes, some of them beyond the image's edges, the best first."""
    random = torch.Generator().manual_seed(seed)
    corners = torch.rand(number, 2, generator=random) * torch.tensor([width, height]) * 1.1 - 10
    sides = torch.rand(number, 2, generator=random) ** 3 * torch.tensor([width, height])
    scores = torch.rand(number, generator=random).sort(descending=True).values
    labels = torch.randint(1, 22, (number,), generator=random)
    return Detections(torch.cat([corners, corners + sides], dim=1), scores, labels)


@pytest.mark.parametrize(("height", "width"), [(80, 100), (300, 400), (1300, 1000), (4, 90)])
@pytest.mark.parametrize("true", [False, True])
def test_only_lines_and_labels_are_drawn(
    height: int, width: int, true: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = torch.full((3, height, width), 123, dtype=torch.uint8)
    found = scattered(25, height, width)
    if true:
        found = truth(found.boxes, found.labels)
    placed: list[Rectangle] = []

    def spy(*arguments: object) -> list[Rectangle | None]:
        places = place_labels(*arguments)  # type: ignore[arg-type]
        placed.extend(filter(None, places))
        return places

    monkeypatch.setattr(pictures, "place_labels", spy)
    before = found._replace(boxes=found.boxes.clone())
    drawn = draw(image, found, MANY)
    assert all(torch.equal(one, other) for one, other in zip(found[::2], before[::2], strict=True))
    assert (image == 123).all()
    assert len(placed) > 5 or height < 10

    changed = (drawn != image).any(dim=0)
    for x1, y1, x2, y2 in placed:
        changed[y1:y2, x1:x2] = False
    y, x = changed.nonzero().unbind(dim=1)
    x1, y1, x2, y2 = (found.boxes[:, None, i].clamp(0, (width, height)[i % 2]) for i in range(4))
    reach = 3 + min(height, width) / 200
    outer = (x >= x1 - reach) & (x < x2 + reach) & (y >= y1 - reach) & (y < y2 + reach)
    inner = (x >= x1 + reach) & (x < x2 - reach) & (y >= y1 + reach) & (y < y2 - reach)
    assert (outer & ~inner).any(dim=0).all()


def levels_along(image: Tensor, box: tuple[int, int, int, int]) -> int:
    """How often the grey of a picture steps along the upper edge of a box, on the line that steps most."""
    x1, y1, x2, _ = box
    grey = rgb_to_grayscale(image)[0].int()
    steps = grey[y1 - 4 : y1 + 4, x1 + 2 : x2 - 2].diff(dim=1).abs() > 25
    return int(steps.sum(dim=1).max())


@pytest.mark.parametrize("background", [0, 128, 255])
def test_truth_and_detections_are_told_apart_in_grey_and_seen_on_any_image(
    background: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "place_labels", lambda boxes, *_: [None] * len(boxes))
    image = torch.full((3, 240, 320), background, dtype=torch.uint8)
    box = (40, 60, 280, 200)
    for label in range(1, 22):
        found = Detections(torch.tensor([box]).float(), torch.tensor([0.5]), torch.tensor([label]))
        detected = draw(image, found, MANY)
        true = draw(image, truth(found.boxes, found.labels), MANY)
        assert levels_along(detected, box) == 0
        assert levels_along(true, box) >= 8
        for drawn in (detected, true):
            line = drawn[:, 56:64, 160].double().T / 255
            # Of two greys that have a contrast of √21, one has at least √√21 to any other: WCAG 2.1.
            contrasts = [
                max(one, other) / min(one, other)
                for one, other in itertools.product(luminances(line), luminances(image[:, 0, 0] / 255))
            ]
            assert max(contrasts) > 21**0.25 - 0.02


def luminances(colours: Tensor) -> list[float]:
    """Relative luminance of sRGB colours (n, 3) in [0, 1], and the flare that WCAG 2.1 adds."""
    return (linear(colours.reshape(-1, 3)) @ colours.new_tensor([0.2126, 0.7152, 0.0722]) + 0.05).tolist()


def linear(colours: Tensor) -> Tensor:
    """SRGB in [0, 1] without its gamma."""
    return torch.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)


# Machado, Oliveira and Fernandes 2009, for linear RGB, of severity 1.
BLINDNESS = {
    "none": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


@pytest.mark.parametrize("kind", BLINDNESS)
def test_classes_are_told_apart_by_the_colour_blind(kind: str) -> None:
    """By their distance in CIELAB, of which 2.3 is just noticed."""
    image = torch.zeros(3, 90, 120, dtype=torch.uint8)
    colours = []
    for label in range(1, 22):
        found = Detections(torch.tensor([[30.0, 30, 90, 60]]), torch.tensor([0.5]), torch.tensor([label]))
        corner = draw(image, found, MANY)[:, 20:29, 31:88].flatten(1).T
        plain, counts = corner[(corner != 0).any(dim=1)].unique(dim=0, return_counts=True)
        colours.append(plain[counts.argmax()].double() / 255)
    seen = (linear(torch.stack(colours)) @ torch.tensor(BLINDNESS[kind]).double().T).clamp(0, 1)
    xyz = seen @ torch.tensor(
        [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]], dtype=torch.float64
    )
    f = xyz / xyz.new_tensor([0.9505, 1, 1.089])
    f = torch.where(f > 216 / 24389, f ** (1 / 3), (24389 / 27 * f + 16) / 116)
    lab = torch.stack([116 * f[:, 1], 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], dim=1)
    assert torch.pdist(lab).min() > 5
    assert torch.pdist(lab[:7]).min() > 15


def test_the_class_and_the_score_are_written_and_shortened_at_last() -> None:
    texts = pictures._texts("fire hydrant", 0.873)
    assert texts == ["fire hydrant 87", "fire h… 87", "87"]
    assert pictures._texts("fire\nhydrant", math.nan) == ["fire hydrant", "fire h…"]
    assert pictures._texts("cat", 1.0) == ["cat 100", "100"]


def test_boxes_are_drawn_where_they_are() -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    found = Detections(torch.tensor([[20.0, 20, 50, 45]]), torch.tensor([0.9]), torch.tensor([2]))
    drawn = draw(image, found, NAMES)
    assert drawn.shape == image.shape
    assert drawn[:, 43:47, 21:49].any(dim=0).any(dim=0).all()  # the lower edge
    assert not drawn[:, 50:, :].any()
    assert not image.any()
    assert torch.equal(draw(image, found, NAMES, score_threshold=0.95), image)


def test_truth_is_always_drawn_and_degenerate_boxes_do_no_harm() -> None:
    image = torch.zeros(3, 60, 80, dtype=torch.uint8)
    boxes = torch.tensor([[30.0, 30, 30, 30], [0, 0, 80, 60]])
    assert draw(image, truth(boxes, torch.tensor([1, 2])), NAMES, score_threshold=0.5).any()
    nothing = truth(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    assert torch.equal(draw(image, nothing, NAMES), image)


def test_two_pictures_lie_side_by_side() -> None:
    left, right = (torch.full((3, 10, 20), value, dtype=torch.uint8) for value in (1, 2))
    pair = beside(left, right, gap=2)
    assert pair.shape == (3, 10, 42)
    assert (pair[..., :20] == 1).all()
    assert (pair[..., 20:22] == 255).all()
    assert (pair[..., 22:] == 2).all()
