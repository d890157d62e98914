"""The input pipeline: from JPEG files to a batch that is resized, flipped, normalised and padded."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.transforms.v2 import functional as image_ops

from fpn.benchmark.comparison import DisagreementError, Run
from fpn.benchmark.images import jpeg_files, random_targets, size_of
from fpn.benchmark.report import Report
from fpn.benchmark.work import Work
from fpn.data.coco import read_image
from fpn.data.transforms import ImageSettings, Sample, TrainTransform, collate
from fpn.errors import positive

BATCH, BOXES = 2, 7
MEAN_LIMITS = {False: 1e-3, True: 0.3 / 255 / 0.225}
"""Largest mean difference of normalised pixels, by antialias: decoders differ in a grey level here and
there; whole grey levels differ from what they are rounded from by a quarter of one. (Of images
that are enlarged, as COCO's are: of one made smaller, torchvision's reference leaves out pixels.)"""
BOX_LIMIT = 1e-2
"""Pixels by which boxes may differ."""

Loaded = dict[str, Tensor]
"""The images of a batch and the boxes of each."""


def data(
    number: int = 16,
    images: str | None = None,
    short_side: int = 800,
    max_side: int = 1333,
    **options: Any,
) -> Report:
    """The input pipeline on one core: JPEG files to batches of 2, resized, every other one flipped.

    Args:
        number: images in a repetition, rounded up to whole batches.
        images: folder with JPEG files; null draws some. Their boxes are random, 7 an image.
        short_side: pixels that images are resized to …
        max_side: … unless the long side would exceed this.
        **options: of `Run`.
    """
    run = Run(device="cpu", threads=1, **options)
    positive(number=number, short_side=short_side, max_side=max_side)
    number = -(-number // BATCH) * BATCH
    with tempfile.TemporaryDirectory() as folder:
        given = (jpeg_files(images, number, Path(folder)), short_side, max_side)
        cases = [
            run.compare(
                f"input pipeline, batches of 2, one core, data.antialias {str(antialias).lower()}",
                partial(theirs, *given),
                partial(ours, *given, antialias),
                partial(same_batches, limit=limit),
                number,
            )
            for antialias, limit in MEAN_LIMITS.items()
        ]
    run.notes.append(
        "torchvision's is that of its detection reference: PIL, random flip, GeneralizedRCNNTransform"
    )
    settings = {"images": number, "of": "files given" if images else "drawn scenes"}
    return run.report(
        "Input pipeline", settings | {"short side": short_side, "max side": max_side}, cases=cases
    )


def theirs(files: Sequence[Path], short_side: int, max_side: int) -> Work:
    """PIL, a float tensor, flipping, then the transform that torchvision's models begin with."""
    settings = ImageSettings()
    transform = GeneralizedRCNNTransform(short_side, max_side, list(settings.mean), list(settings.std))

    def load(index: int, file: Path) -> tuple[Tensor, dict[str, Tensor]]:
        with Image.open(file) as picture:
            image = image_ops.pil_to_tensor(picture.convert("RGB")).float() / 255
        height, width = size_of(image)
        boxes = random_targets((height, width), BOXES, 1, index).boxes
        if index % 2:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
        return image, {"boxes": boxes}

    def batch(first: int, some: Sequence[Path]) -> Loaded:
        loaded = [load(first + i, file) for i, file in enumerate(some)]
        padded, targets = transform([image for image, _ in loaded], [target for _, target in loaded])
        return {"images": padded.tensors} | {f"boxes {i}": t["boxes"] for i, t in enumerate(targets)}

    return over_files(batch, files)


def ours(files: Sequence[Path], short_side: int, max_side: int, antialias: bool) -> Work:
    """What our data sets do for training; with antialias, bytes are resized as such."""
    settings = ImageSettings(short_side, max_side, antialias)
    transforms = [TrainTransform([settings], float(flips)) for flips in (False, True)]
    generator = torch.Generator()

    def load(index: int, file: Path) -> Sample:
        image = read_image(file)
        size = size_of(image)
        sample = Sample(image, size, size, index, random_targets(size, BOXES, 1, index))
        return transforms[index % 2](sample, generator)

    def batch(first: int, some: Sequence[Path]) -> Loaded:
        collated = collate([load(first + i, file) for i, file in enumerate(some)], settings)
        boxes = {f"boxes {i}": target.boxes for i, target in enumerate(collated.targets or [])}
        return {"images": collated.images} | boxes

    return over_files(batch, files)


def over_files(batch: Callable[[int, Sequence[Path]], Loaded], files: Sequence[Path]) -> Work:
    """A repetition: all files, a batch after the other."""

    def run() -> None:
        for first in range(0, len(files), BATCH):
            batch(first, files[first : first + BATCH])

    def outputs() -> list[Loaded]:
        return [batch(first, files[first : first + BATCH]) for first in range(0, min(len(files), 8), BATCH)]

    return Work(run, outputs)


def same_batches(theirs: list[Loaded], ours: list[Loaded], limit: float) -> str:
    """See that images and boxes are the same, but for what `limit` allows pixels in the mean.

    Raises:
        DisagreementError: they have other sizes, or differ too much.
    """
    pixels, boxes = [], 0.0
    for one, other in zip(theirs, ours, strict=True):
        if one["images"].shape != other["images"].shape:
            shapes = " and ".join(str(tuple(side["images"].shape)) for side in (one, other))
            raise DisagreementError(f"batches of shapes {shapes}")
        pixels.append((one["images"] - other["images"]).abs().flatten())
        keys = [key for key in one if key != "images"]
        boxes = max(boxes, *(float((one[key] - other[key]).abs().max()) for key in keys))
    difference = torch.cat(pixels)
    mean, most, equal = (
        float(x) for x in (difference.mean(), difference.max(), (difference <= 1e-4).double().mean())
    )
    line = (
        f"normalised pixels differ by {mean:.1e} in the mean ({limit:.1g} is allowed), {most:.1e} at most,"
        f" {100 * equal:.2f} % of them by less than 1e-4; boxes by {boxes:.1e} px at most"
    )
    if not (mean <= limit and boxes <= BOX_LIMIT):
        raise DisagreementError(line)
    return line
