"""From a decoded image and its boxes to a padded batch.

Symbols: H × W pixels on disk, h × w pixels once resized, N images in a batch, G boxes.

The arithmetic is that of torchvision's detection models, to the last bit: floats in [0, 1] are normalised,
then resized by plain bilinear interpolation. `antialias` instead resizes the bytes, with a filter that covers
every pixel, as PIL (hence Detectron2) does: that is several times faster, and rounds to whole grey levels.
A batch of bytes takes a quarter of the room, and is normalised where it is used: by `normalise`.

A photo of 108 megapixels would fill 3.7 GiB as floats. Of one above `LARGE` only those pixels become floats
that the interpolation looks at. The result is the same to float32's rounding: 1e-4 of the normalised values.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as image_ops

from fpn.ops.boxes import rescale_boxes
from fpn.types import Batch, Size, Targets

Rounding = Literal["down", "nearest"]

LARGE = 2**23
"""Pixels above which an image is never floats as a whole."""


@dataclass(frozen=True)
class ImageSettings:
    """What every image goes through, in training, testing and prediction alike."""

    short_side: int = 800
    """Pixels of the short side after resizing …"""
    max_side: int = 1333
    """… unless the long side would have more pixels than this."""
    antialias: bool = False
    """Resize like PIL rather than like torchvision's detection models."""
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    """Subtracted from RGB values in [0, 1]; ImageNet's."""
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    """Divides them afterwards."""
    rounding: Rounding = "down"
    """Sides of the resized image are rounded down (torchvision) or to the nearest (Detectron2)."""
    divisor: int = 32
    """A batch is padded to multiples of this many pixels: the coarsest stride of the network."""

    def scaled(self, factor: float) -> "ImageSettings":
        """The same for a short side and a limit that are larger by a factor."""
        short, limit = (max(1, round_half_up(factor * side)) for side in (self.short_side, self.max_side))
        return replace(self, short_side=short, max_side=limit)

    @property
    def most_bytes(self) -> int:
        """Of an image of these sides in a batch, padded."""
        short, long = (-(-side // self.divisor) * self.divisor for side in (self.short_side, self.max_side))
        return 3 * min(short, long) * long * (1 if self.antialias else 4)

    def restore(self, image: Tensor, size: Size) -> Tensor:
        """The uint8 picture (3, h, w) of an image of a batch: without its padding, normalisation undone."""
        mean, std = (image.new_tensor(v)[:, None, None] for v in (self.mean, self.std))
        picture = image[:, : size[0], : size[1]] * std + mean
        return (picture * 255).round().clamp(0, 255).to(torch.uint8)


class Sample(NamedTuple):
    """One image on its way into a batch, first as it lies on disk, then transformed."""

    image: Tensor
    """(3, h, w): uint8 as long as it is to be normalised, float32 then."""
    size: Size
    """(h, w)."""
    original_size: Size
    """(H, W)."""
    image_id: int
    """That of the annotation file."""
    target: Targets
    """In pixels of the image."""
    proposals: Tensor | None = None
    """(·, 4) of a proposal file, in pixels of the image; None without one."""
    unreadable: tuple[str, ...] = ()
    """What was wrong with the files in whose place this image is, a line for each."""


class Transform(Protocol):
    """A sample as it lies on disk to what goes on from there; chance is the generator's."""

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample: ...


def as_stored(sample: Sample, generator: torch.Generator) -> Sample:
    """No transform: `collate_scales` does what there is to do."""
    return sample


@dataclass(frozen=True)
class EvalTransform:
    """Resize and normalise."""

    settings: ImageSettings

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        return _prepare(sample, self.settings)


@dataclass(frozen=True)
class TrainTransform:
    """Resize to one of several scales, normalise, flip left to right at random.

    Args:
        scales: what images go through, alike but for their sizes; drawn from with equal chances.
        flip_probability: in [0, 1].
    """

    scales: Sequence[ImageSettings]
    flip_probability: float = 0.5

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        drawn = int(torch.randint(len(self.scales), (), generator=generator))
        flips = float(torch.rand((), generator=generator)) < self.flip_probability
        if flips and _is_large(sample.image):
            return flip(_prepare(sample, self.scales[drawn]))
        # Flipped first, as long as it is small.
        return _prepare(flip(sample) if flips else sample, self.scales[drawn])


def round_half_up(value: float) -> int:
    """The nearest whole number, the greater of two: sides come out alike on every machine."""
    return math.floor(value + 0.5)


def resized_size(size: Size, short_side: int, max_side: int, rounding: Rounding = "down") -> Size:
    """The size of an image once its short side is `short_side`, or its long side `max_side` if that is less.

    Rounded down, this is torchvision's rule; to the nearest, Detectron2's. A side never falls below one
    pixel, where both fail.
    """
    if rounding == "nearest":
        # Step by step as there: another order of the factors rounds some sizes otherwise.
        short, long = float(short_side), short_side / min(size) * max(size)
        if long > max_side:
            scale = max_side / long
            short, long = short * scale, long * scale
        sides = max(1, round_half_up(short)), max(1, round_half_up(long))
        return sides if size[0] < size[1] else (sides[1], sides[0])
    scale = min(short_side / min(size), max_side / max(size))
    return max(1, math.floor(size[0] * scale)), max(1, math.floor(size[1] * scale))


def prepare_image(image: Tensor, settings: ImageSettings) -> Tensor:
    """Resize one image, and normalise it unless `normalise` will.

    Args:
        image: (3, H, W) RGB, uint8 or float in [0, 1].
        settings: how.

    Returns:
        (3, h, w): uint8 if bytes were resized as such, otherwise float32, normalised.
    """
    old = (image.shape[-2], image.shape[-1])
    size = resized_size(old, settings.short_side, settings.max_side, settings.rounding)
    if settings.antialias:
        image = _resized(image, size)
        if image.dtype == torch.uint8:
            return image
    if _is_large(image):
        return _normalised(_interpolated(image, size), settings)
    image = _normalised(image, settings)
    if image.shape[-2:] == size:
        return image
    return F.interpolate(image[None], size=size, mode="bilinear", align_corners=False)[0]


def _resized(image: Tensor, size: Size) -> Tensor:
    """Resize bytes with a filter that covers every pixel."""
    if _is_large(image) and image.stride(-1) > image.stride(-2):
        # A photo that is turned: as it lies, for it would be copied. A grey level may be rounded otherwise.
        return _resized(image.mT, size[::-1]).mT.contiguous()
    return image_ops.resize(image, list(size), antialias=True)


def flip(sample: Sample) -> Sample:
    """Mirror an image left to right, and all boxes with it."""

    def mirrored(boxes: Tensor) -> Tensor:
        x1, y1, x2, y2 = boxes.unbind(-1)
        return torch.stack((sample.size[1] - x2, y1, sample.size[1] - x1, y2), dim=-1)

    return _map_boxes(sample._replace(image=sample.image.flip(-1)), mirrored)


def collate(samples: Sequence[Sample], settings: ImageSettings) -> Batch:
    """Pad N images with zeros, at the right and bottom, to one size: bytes where all of them are."""
    sides = zip(*(sample.size for sample in samples), strict=True)
    height, width = (math.ceil(max(side) / settings.divisor) * settings.divisor for side in sides)
    as_bytes = all(sample.image.dtype == torch.uint8 for sample in samples)
    dtype = torch.uint8 if as_bytes else torch.float32
    images = torch.empty((len(samples), 3, height, width), dtype=dtype, device=samples[0].image.device)
    for padded, sample in zip(images, samples, strict=True):
        h, w = sample.size
        bytes_among_floats = sample.image.dtype == torch.uint8 and not as_bytes
        padded[:, :h, :w] = _normalised(sample.image, settings) if bytes_among_floats else sample.image
    _clear_padding(images, [sample.size for sample in samples])
    proposals = [sample.proposals for sample in samples if sample.proposals is not None]
    return Batch(
        images=images,
        sizes=[sample.size for sample in samples],
        original_sizes=[sample.original_size for sample in samples],
        image_ids=[sample.image_id for sample in samples],
        targets=[sample.target for sample in samples],
        proposals=proposals or None,
        unreadable=tuple(line for sample in samples for line in sample.unreadable),
    )


def normalise(batch: Batch, settings: ImageSettings) -> Batch:
    """The same batch for a network: its bytes normalised, on the device where they are, its padding zero.

    Args:
        batch: of `collate`; floats are normalised already.
        settings: those that it was collated with.
    """
    if batch.images.dtype != torch.uint8:
        return batch
    images = batch.images.float()
    mean, std = (images.new_tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    images.mul_(1 / (255 * std)).sub_(mean / std)
    _clear_padding(images, batch.sizes)
    return batch._replace(images=images)


def collate_scales(samples: Sequence[Sample], scales: Sequence[ImageSettings]) -> list[Batch]:
    """The featurized image pyramid of Fig. 1 (a): N images as they lie on disk, a batch for each scale.

    Args:
        samples: of raw images; floating-point ones in [0, 1] are taken too.
        scales: how the images of each batch are prepared, and are to be normalised.
    """
    return [collate([_prepare(sample, scale) for sample in samples], scale) for scale in scales]


def _prepare(sample: Sample, settings: ImageSettings) -> Sample:
    image = prepare_image(sample.image, settings)
    old, new = sample.size, (image.shape[-2], image.shape[-1])
    sample = sample._replace(image=image, size=new)
    return _map_boxes(sample, lambda boxes: rescale_boxes(boxes, old, new))


def _map_boxes(sample: Sample, change: Callable[[Tensor], Tensor]) -> Sample:
    # The one door through which boxes of every kind pass.
    boxes, labels, crowds = sample.target
    return sample._replace(
        target=Targets(change(boxes), labels, change(crowds)),
        proposals=None if sample.proposals is None else change(sample.proposals),
    )


def _is_large(image: Tensor) -> bool:
    return image.shape[-2] * image.shape[-1] > LARGE


def _interpolated(image: Tensor, size: Size) -> Tensor:
    """(3, h, w) floats in [0, 1]: F.interpolate's, from the four pixels alone that each is made of."""
    top, bottom, down = _neighbours(image.shape[-2], size[0], image.device)
    left, right, across = _neighbours(image.shape[-1], size[1], image.device)
    rows = []
    for y in (top, bottom):
        row = image[:, y]
        rows.append(torch.lerp(_unit(row[:, :, left]), _unit(row[:, :, right]), across))
    return torch.lerp(rows[0], rows[1], down[:, None])


def _neighbours(old: int, new: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """The pixels before and after each of the new ones along a side, and how far it lies between them."""
    # In float32, whose rounding shows at thousands of pixels, as F.interpolate computes them.
    scale = torch.tensor(old, dtype=torch.float32) / new
    places = (scale.to(device) * (torch.arange(new, device=device) + 0.5) - 0.5).clamp(min=0)
    before = places.long().clamp(max=old - 1)
    return before, (before + 1).clamp(max=old - 1), places - before


def _unit(image: Tensor) -> Tensor:
    return image.float() if image.is_floating_point() else image.float() / 255


def _normalised(image: Tensor, settings: ImageSettings) -> Tensor:
    # Step by step as torchvision.
    image = _unit(image)
    mean, std = image.new_tensor(settings.mean), image.new_tensor(settings.std)
    return (image - mean[:, None, None]) / std[:, None, None]


def _clear_padding(images: Tensor, sizes: Sequence[Size]) -> None:
    for image, (h, w) in zip(images, sizes, strict=True):
        image[:, :h, w:] = 0
        image[:, h:] = 0
