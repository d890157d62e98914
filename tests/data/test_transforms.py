"""Image arithmetic against torchvision's detection transform and PIL, boxes against the pixels they frame."""

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform, _resize_image_and_masks

from fpn.data import transforms
from fpn.data.transforms import (
    EvalTransform,
    ImageSettings,
    Sample,
    TrainTransform,
    collate,
    collate_scales,
    flip,
    normalise,
    prepare_image,
    resized_size,
)
from fpn.types import Size, Targets

UNNORMALISED: dict[str, Any] = {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}


def torchvision_size(size: Size, short_side: int, max_side: int) -> Size:
    image, _ = _resize_image_and_masks(torch.zeros((1, *size)), short_side, max_side)
    return image.shape[-2], image.shape[-1]


def targets(boxes: list[list[float]], crowds: list[list[float]] | None = None) -> Targets:
    return Targets(
        torch.tensor(boxes).reshape(-1, 4),
        torch.ones(len(boxes), dtype=torch.int64),
        torch.tensor(crowds or []).reshape(-1, 4),
    )


def stored(image: Tensor, target: Targets, proposals: Tensor | None = None) -> Sample:
    size = (image.shape[-2], image.shape[-1])
    return Sample(image, size, size, 1, target, proposals)


def test_resized_size_is_torchvisions_for_every_small_size() -> None:
    for size in itertools.product(range(20, 90), range(20, 90)):
        assert resized_size(size, 80, 133) == torchvision_size(size, 80, 133)


def test_resized_size_is_torchvisions_for_cocos_sizes() -> None:
    for longer in [*range(300, 641, 20), 640, 639, 427, 500]:
        for size in ((640, longer), (longer, 640), (longer, 480), (500, longer)):
            assert resized_size(size, 800, 1333) == torchvision_size(size, 800, 1333)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 2500), st.integers(1, 2500), st.integers(1, 900), st.integers(1, 1400))
def test_resized_size_is_torchvisions_for_any_size(height: int, width: int, short: int, longest: int) -> None:
    scale = min(short / min(height, width), longest / max(height, width))
    if min(height, width) * scale < 1:
        assert min(resized_size((height, width), short, longest)) == 1
    else:
        expected = torchvision_size((height, width), short, longest)
        assert resized_size((height, width), short, longest) == expected


@pytest.mark.parametrize(
    "size", [(48, 64), (480, 640), (427, 640), (33, 17), (1, 1), (100, 500), (61, 60), (64, 64)]
)
@pytest.mark.parametrize(("short_side", "max_side"), [(80, 133), (64, 1000), (17, 33)])
def test_prepared_images_and_boxes_are_torchvisions_to_the_bit(
    size: Size, short_side: int, max_side: int
) -> None:
    ours = ImageSettings(short_side, max_side)
    theirs = GeneralizedRCNNTransform(short_side, max_side, list(ours.mean), list(ours.std)).eval()
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    boxes = torch.rand(5, 4) * 30
    batch, expected = theirs([image / 255], [{"boxes": boxes}])
    raw = stored(image, targets(boxes.tolist(), boxes[:2].tolist()), boxes[1:])
    sample = EvalTransform(ours)(raw, torch.Generator())
    assert sample.image.shape[-2:] == sample.size == batch.image_sizes[0]
    assert sample.original_size == size
    assert torch.equal(collate([sample], ImageSettings(divisor=32)).images, batch.tensors)
    assert torch.equal(prepare_image(image / 255, ours), sample.image)
    assert torch.equal(sample.target.boxes, expected[0]["boxes"])
    assert torch.equal(sample.target.crowds, expected[0]["boxes"][:2])
    assert sample.proposals is not None
    assert torch.equal(sample.proposals, expected[0]["boxes"][1:])


@pytest.mark.parametrize("size", [(120, 90), (31, 77)])
@pytest.mark.parametrize("short_side", [20, 200])
def test_antialiased_resizing_is_pils(size: Size, short_side: int) -> None:
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    found = prepare_image(image, ImageSettings(short_side, 1000, antialias=True))
    height, width = resized_size(size, short_side, 1000)
    pil = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((width, height), Image.Resampling.BILINEAR)
    expected = torch.from_numpy(np.asarray(pil).copy()).permute(2, 0, 1)
    difference = (found.int() - expected.int()).abs()
    assert difference.max() <= 1
    assert difference.float().mean() <= 0.25


def test_a_size_that_is_right_already_leaves_the_pixels_alone() -> None:
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    assert torch.equal(prepare_image(image, ImageSettings(40, 60, antialias=True)), image)
    assert torch.equal(prepare_image(image, ImageSettings(40, 60, **UNNORMALISED)), image / 255)


def test_bytes_are_normalised_after_they_are_collated() -> None:
    settings = ImageSettings(40, 60, antialias=True)
    raw = [torch.randint(0, 256, (3, *size), dtype=torch.uint8) for size in ((40, 50), (60, 40))]
    samples = [EvalTransform(settings)(stored(one, targets([], [])), torch.Generator()) for one in raw]
    batch = collate(samples, settings)
    assert batch.images.dtype == torch.uint8
    assert batch.images.shape == (2, 3, 64, 64)
    expected = np.zeros((2, 3, 64, 64))
    for there, one in zip(expected, raw, strict=True):
        for c, (mean, std) in enumerate(zip(settings.mean, settings.std, strict=True)):
            there[c, : one.shape[1], : one.shape[2]] = (one[c].numpy() / 255 - mean) / std
    found = normalise(batch, settings)
    np.testing.assert_allclose(found.images, expected, rtol=1e-6, atol=1e-6)
    assert found[1:] == batch[1:]
    assert normalise(found, settings).images is found.images
    # Among floats, which come normalised, bytes are normalised at once.
    (floats,) = [samples[0]._replace(image=torch.from_numpy(expected[0, :, :40, :50]).float())]
    mixed = collate([floats, samples[1]], settings)
    np.testing.assert_allclose(mixed.images, expected, rtol=1e-6, atol=1e-6)


def test_a_flipped_box_frames_the_same_pixels() -> None:
    image = torch.zeros(3, 10, 21)
    image[:, 2:5, 3:9] = 1
    image[:, 6:9, 20:21] = 1
    proposals = torch.tensor([[2.0, 1, 9, 6]])
    sample = flip(stored(image, targets([[3, 2, 9, 5]], [[20, 6, 21, 9]]), proposals))
    flipped, found = sample.image, sample.target
    for x1, y1, x2, y2 in torch.cat([found.boxes, found.crowds]).int().tolist():
        assert flipped[:, y1:y2, x1:x2].min() == 1
    assert flipped.sum() == image.sum()
    assert found.boxes.tolist() == [[12, 2, 18, 5]]
    assert found.crowds.tolist() == [[0, 6, 1, 9]]
    assert sample.proposals is not None
    assert sample.proposals.tolist() == [[12, 1, 19, 6]]


def test_flipping_twice_gives_all_back() -> None:
    quarters = torch.randint(0, 28, (4, 4)) / 4
    sample = stored(torch.rand(3, 7, 9), targets([[1, 2, 3, 4]], [[0, 0, 9, 7]]), quarters)
    again = flip(flip(sample))
    assert torch.equal(again.image, sample.image)
    assert all(torch.equal(one, other) for one, other in zip(again.target, sample.target, strict=True))
    assert again.proposals is not None
    assert torch.equal(again.proposals, quarters)


@given(
    st.tuples(st.integers(1, 60), st.integers(1, 60)),
    st.integers(1, 90),
    st.integers(0, 2**31),
    st.floats(0, 1),
    st.integers(0, 20),
)
def test_proposals_go_the_way_of_true_boxes(
    size: Size, short_side: int, seed: int, flip_probability: float, number: int
) -> None:
    boxes = torch.rand((number, 4), generator=torch.Generator().manual_seed(seed)) * 60
    image = torch.zeros((3, *size), dtype=torch.uint8)
    scales = [ImageSettings(short_side, 120), ImageSettings(30, 120)]
    train = TrainTransform(scales, flip_probability)
    for transform in (train, EvalTransform(ImageSettings(short_side, 120))):
        sample = transform(stored(image, targets(boxes.tolist()), boxes), torch.Generator().manual_seed(seed))
        assert sample.proposals is not None
        assert torch.equal(sample.proposals, sample.target.boxes)


def test_training_draws_from_the_generator_alone() -> None:
    train = TrainTransform([ImageSettings(side, 100) for side in (20, 30, 40)], 0.5)
    image, target = torch.randint(0, 256, (3, 30, 37), dtype=torch.uint8), targets([[1, 2, 3, 4]])
    seen, flips = [], 0
    for seed in range(300):
        torch.manual_seed(seed % 7)
        found = train(stored(image, target), torch.Generator().manual_seed(seed))
        again = train(stored(image, target), torch.Generator().manual_seed(seed))
        assert torch.equal(found.image, again.image)
        assert torch.equal(found.target.boxes, again.target.boxes)
        seen.append(found.size[0])
        flips += bool(found.target.boxes[0, 0] > found.size[1] / 2)
    # Three standard deviations of fair draws.
    assert all(abs(seen.count(side) - 100) < 25 for side in (20, 30, 40))
    assert abs(flips - 150) < 26


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 20)])
def test_flip_probability_bounds_are_never_and_always(probability: float, expected: int) -> None:
    train = TrainTransform([ImageSettings(30, 100)], flip_probability=probability)
    sample = stored(torch.zeros(3, 30, 40), targets([[0, 0, 5, 5]]))
    boxes = [train(sample, torch.Generator().manual_seed(seed)).target.boxes for seed in range(20)]
    assert sum(bool(found[0, 0] == 35) for found in boxes) == expected


def test_images_without_boxes_pass_through_everything() -> None:
    train = TrainTransform([ImageSettings(30, 100)], flip_probability=1)
    raw = stored(torch.zeros(3, 1, 1, dtype=torch.uint8), targets([]), torch.zeros(0, 4))
    sample = train(raw, torch.Generator())
    assert sample.image.shape == (3, 30, 30)
    assert [part.shape for part in sample.target] == [(0, 4), (0,), (0, 4)]
    proposals = collate([sample, sample], ImageSettings(divisor=32)).proposals
    assert proposals is not None
    assert [one.shape for one in proposals] == [(0, 4), (0, 4)]


def test_collate_pads_right_and_bottom_with_zeros() -> None:
    sizes = [(33, 20), (10, 64), (32, 32)]
    samples = [
        Sample(torch.rand(3, *size) + 1, size, (size[0] * 2, size[1] * 2), 7 + place, targets([[0, 0, 1, 1]]))
        for place, size in enumerate(sizes)
    ]
    batch = collate(samples, ImageSettings(divisor=32))
    assert batch.images.shape == (3, 3, 64, 64)
    assert batch.sizes == sizes
    assert batch.original_sizes == [(66, 40), (20, 128), (64, 64)]
    assert batch.image_ids == [7, 8, 9]
    for padded, sample in zip(batch.images, samples, strict=True):
        height, width = sample.size
        assert torch.equal(padded[:, :height, :width], sample.image)
        assert padded.count_nonzero() == sample.image.numel()
    assert batch.targets is not None
    assert batch.targets[1] is samples[1].target
    assert batch.proposals is None
    batch = collate(
        [sample._replace(proposals=torch.zeros(sample.image_id, 4)) for sample in samples],
        ImageSettings(divisor=32),
    )
    assert batch.proposals is not None
    assert [len(one) for one in batch.proposals] == [7, 8, 9]


def test_collate_with_divisor_one_pads_to_the_largest_only() -> None:
    sample = Sample(torch.rand(3, 5, 7), (5, 7), (5, 7), 1, targets([]))
    assert collate([sample], ImageSettings(divisor=1)).images.shape == (1, 3, 5, 7)


@pytest.mark.parametrize(
    ("scale", "short_side", "max_side"),
    [(1, 800, 1333), (0.5, 400, 667), (1e-9, 1, 1), (1.5, 1200, 2000), (0.84, 672, 1120)],
)
def test_a_scale_multiplies_both_sides(scale: float, short_side: int, max_side: int) -> None:
    settings = ImageSettings(antialias=True).scaled(scale)
    assert settings == ImageSettings(short_side, max_side, antialias=True)


def test_scales_are_batches_of_the_same_images() -> None:
    sizes = [(30, 40), (50, 20)]
    samples = [
        stored(
            torch.randint(0, 256, (3, *size), dtype=torch.uint8),
            targets([[1.0, 2, 9, 8]], [[0.0, 0, 5, 5]]),
            torch.rand(3, 4) * 20,
        )
        for size in sizes
    ]
    scales = [ImageSettings(20, 60), ImageSettings(45, 100, divisor=1)]
    for batch, scale in zip(collate_scales(samples, scales), scales, strict=True):
        alone = collate([EvalTransform(scale)(sample, torch.Generator()) for sample in samples], scale)
        assert torch.equal(batch.images, alone.images)
        assert (batch.sizes, batch.original_sizes, batch.image_ids) == (alone.sizes, sizes, [1, 1])
        for one, other in zip(batch.proposals or [], alone.proposals or [], strict=True):
            assert torch.equal(one, other)
        assert batch.targets is not None
        height, width = batch.sizes[0]
        assert batch.targets[0].boxes.tolist() == [
            pytest.approx([width / 40, 2 * height / 30, 9 * width / 40, 8 * height / 30], rel=1e-6)
        ]


@pytest.mark.parametrize("antialias", [False, True])
@pytest.mark.parametrize("flips", [0.0, 1.0])
@pytest.mark.parametrize("size", [(131, 257), (257, 131), (20, 300)])
def test_large_photos_are_prepared_as_any_other(
    size: Size, flips: float, antialias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within float32's rounding, floats too, boxes and all."""
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8)
    boxes = torch.tensor([[3.0, 4, 11, 13]])
    train = TrainTransform([ImageSettings(64, 90, antialias)], flips)
    for one in (image, image / 255):
        generators = torch.Generator().manual_seed(0), torch.Generator().manual_seed(0)
        sample = stored(one, Targets(boxes, torch.ones(1, dtype=torch.int64), boxes))
        expected = train(sample, generators[0])
        with monkeypatch.context() as patch:
            patch.setattr(transforms, "LARGE", 1000)
            found = train(sample, generators[1])
        assert found.image.dtype == expected.image.dtype
        # A grey level at the most where bytes are resized.
        tolerance = 1 if found.image.dtype == torch.uint8 else 1e-4
        assert (found.image.double() - expected.image.double()).abs().max() <= tolerance
        assert torch.allclose(found.target.boxes, expected.target.boxes, atol=1e-4)
        assert found.size == expected.size


def test_a_large_photo_that_is_turned_is_resized_as_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    lying = torch.randint(0, 256, (3, 60, 90), dtype=torch.uint8)
    settings = ImageSettings(20, 40, antialias=True)
    expected = prepare_image(lying.mT.contiguous(), settings)
    monkeypatch.setattr("fpn.data.transforms.LARGE", 1000)
    found = prepare_image(lying.mT, settings)
    assert found.shape == expected.shape == (3, 30, 20)
    assert (found.int() - expected.int()).abs().max() <= 1
