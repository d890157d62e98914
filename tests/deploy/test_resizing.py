"""Resizing by matrices against the transforms that training and `Predictor` use."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fpn.data.transforms import ImageSettings, prepare_image, resized_size
from fpn.deploy.resizing import resized, resized_sizes

SIDES = st.tuples(st.integers(1, 6000), st.integers(1, 6000))


@given(st.lists(SIDES, min_size=1, max_size=200), st.integers(1, 1200), st.integers(1, 2000))
def test_sizes_are_those_of_the_transforms(sizes: list[tuple[int, int]], short: int, longest: int) -> None:
    for settings in (ImageSettings(short, longest), ImageSettings(short, longest, rounding="nearest")):
        expected = [resized_size(size, short, longest, settings.rounding) for size in sizes]
        assert [tuple(size) for size in resized_sizes(torch.tensor(sizes), settings).tolist()] == expected


@pytest.mark.parametrize("antialias", [False, True])
@given(st.lists(st.tuples(st.integers(1, 260), st.integers(1, 260)), min_size=1, max_size=3), st.data())
def test_pixels_are_those_of_the_transforms(
    antialias: bool, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    """Images of different sizes at once; what is in the padding, before and after, is of no meaning."""
    settings = ImageSettings(data.draw(st.integers(40, 200)), data.draw(st.integers(40, 200)), antialias)
    least = 2 if antialias else 1  # PyTorch fails to resize bytes to and from some columns of one pixel
    sizes = [(max(least, h), max(least, w)) for h, w in sizes]
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, *size), generator=generator, dtype=torch.uint8) for size in sizes]
    batch = torch.full((len(images), 3, *(max(side) + 3 for side in zip(*sizes, strict=True))), 77.0)
    for padded, image in zip(batch, images, strict=True):
        padded[:, : image.shape[1], : image.shape[2]] = image
    new = resized_sizes(torch.tensor(sizes), settings)
    canvas = (int(new[:, 0].max()) + 2, int(new[:, 1].max()) + 5)
    found = resized(batch, torch.tensor(sizes), new, canvas, antialias)
    plain = replace(settings, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))
    for one, image, (height, width) in zip(found, images, new.tolist(), strict=True):
        expected = prepare_image(image, plain).float() * (1 if antialias else 255)
        apart = (one[:, :height, :width] - expected).abs()
        if antialias:  # whole grey levels, of which a few are rounded otherwise
            assert apart.max() <= 1
            assert (apart > 0.5).float().mean() <= max(1e-3, 2 / apart.numel())
        else:
            assert apart.max() <= 0.02
