"""Images in, boxes in the pixels of these images out."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, cast, overload

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from fpn.checkpoints import Trained, check_categories
from fpn.data.decoding import eight_bits, orientation_of, read_bytes, read_image, rgb_of, upright
from fpn.data.transforms import ImageSettings, Sample, collate_scales, normalise
from fpn.devices import device_named
from fpn.errors import InputError
from fpn.models.detectors import Detector
from fpn.models.optimized import optimized
from fpn.prediction import Prediction
from fpn.types import OBJECTS, PRECISIONS, Batch, Categories, Detections, Precision, Targets

Picture = Tensor | NDArray[Any] | Image.Image | bytes | str | Path
_ROUNDING = 1e-3
"""How far a floating-point image may leave [0, 1]."""


class Predictor:
    """A detector made ready for images of any size.

    Args:
        detector: what finds the boxes; moved to the device. What runs is `optimized`, a copy of it as it
            is now.
        short_side: pixels of the short side that images are resized to …
        max_side: … unless the long side would exceed this.
        device: where it runs; None for the detector's own.
        settings: further settings of image preparation; the sides above take precedence.
        scales: factors of this size, for a featurized image pyramid (Fig. 1 (a) of the paper): boxes
            are looked for at all of them, and merged.
        categories: what the labels mean; boxes of classes that have no category are left out.
        precision: of the network's layers; boxes are float32 in any.

    Raises:
        InputError: the detector finds objects in given proposals only, a side is not positive,
            categories are of another number, or there is no such precision or device.
    """

    scales: list[ImageSettings]
    """How images are prepared for each of the batches that `detect` takes."""

    def __init__(
        self,
        detector: Detector,
        short_side: int = 800,
        max_side: int = 1333,
        device: torch.device | str | None = None,
        settings: ImageSettings = ImageSettings(),
        scales: Sequence[float] = (),
        categories: Categories | None = None,
        precision: Precision = "32-true",
    ) -> None:
        if detector.reads_proposals:
            raise InputError(
                f"{type(detector).__name__} finds objects in given proposals: use fpn test with "
                "data.test.proposals"
            )
        if min(short_side, max_side) < 1:
            raise InputError(f"sides are pixels, not {min(short_side, max_side)}")
        if min(scales, default=1) <= 0:
            raise InputError(f"scales are factors above 0, not {min(scales)}")
        if precision not in PRECISIONS:
            raise InputError(f"there is no precision {precision!r}; there are {', '.join(PRECISIONS)}")
        check_categories(detector, categories)
        self.device = device_named(device) if device is not None else next(detector.parameters()).device
        self.detector = optimized(detector.to(self.device)).float()
        settings = replace(settings, short_side=short_side, max_side=max_side)
        self.scales = [settings.scaled(scale) for scale in scales] or [settings]
        self.categories = categories if detector.finds_objects else OBJECTS
        self._pyramid = len(scales) > 0
        self._half = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(precision)

    @classmethod
    def of(
        cls,
        trained: Trained,
        device: torch.device | str | None = None,
        scales: Sequence[float] = (),
        precision: Precision = "32-true",
    ) -> "Predictor":
        """A predictor of a loaded checkpoint, with the image size it was trained for.

        Arguments and errors are those of a new predictor.
        """
        image = trained.image
        sides = (image.short_side, image.max_side)
        return cls(trained.detector, *sides, device, image, scales, trained.categories, precision)

    @overload
    def __call__(self, images: Picture) -> Prediction: ...  # type: ignore[overload-overlap]  # a str is both

    @overload
    def __call__(self, images: Sequence[Picture]) -> list[Prediction]: ...

    def __call__(self, images: Picture | Sequence[Picture]) -> Prediction | list[Prediction]:
        """What is found in an image, or in each image of a list, best first.

        The images of a list make one batch: they are padded to the largest of them, which moves results
        by a trace, and must fit into memory together.

        Args:
            images: paths of files; their bytes; PIL images; NumPy arrays (H, W, 3), or grey (H, W); or
                tensors (3, H, W). Arrays and tensors are RGB: uint8, 16 bits, which are scaled by their
                range, or floating point in [0, 1], not normalised. The first three are taken as viewers
                show them, turned by their EXIF orientation.

        Returns:
            Detections on the CPU, boxes in pixels of the image as given, or as shown: one `Prediction`, or a
            list of one for each image.

        Raises:
            InputError: an image cannot be read, or has another shape, type or range.
        """
        if not isinstance(images, list | tuple):
            return self([cast(Picture, images)])[0]
        if not images:
            return []
        pixels = [_tensor(image) for image in images]
        found = self.detect(self.prepare([image.to(self.device) for image in pixels]))
        # Files can be read again; other images may be written over by what follows.
        sources = [
            given if isinstance(given, str | Path) else image
            for given, image in zip(images, pixels, strict=True)
        ]
        known = self.categories
        return [Prediction.of(one, known, source) for one, source in zip(found, sources, strict=True)]

    def prepare(self, images: Sequence[Tensor]) -> list[Batch]:
        """Batches for `detect`, whose image ids are 0 to N - 1, of N images.

        Args:
            images: (3, H, W), uint8 or floating point in [0, 1]; they are resized where they lie.
        """
        nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        sizes = [(image.shape[-2], image.shape[-1]) for image in images]
        samples = [
            Sample(image, size, size, index, nothing)
            for index, (image, size) in enumerate(zip(images, sizes, strict=True))
        ]
        return collate_scales(samples, self.scales)

    def detect(self, batches: Sequence[Batch]) -> list[Detections]:
        """What is found in the images of prepared batches.

        Args:
            batches: the same N images in each, prepared as `scales` says, on any device.

        Returns:
            N detections on the CPU, best first, boxes in pixels of the original images.
        """
        with torch.inference_mode():
            found = self._detect(batches)
        # Copies, which may be written to; what inference mode has made may not.
        return [Detections(*(part.cpu().clone() for part in one)) for one in found]

    def _detect(self, batches: Sequence[Batch]) -> Sequence[Detections]:
        batches = [
            normalise(batch._replace(images=batch.images.to(self.device), targets=None), scale)
            for batch, scale in zip(batches, self.scales, strict=True)
        ]
        with nullcontext() if self._half is None else torch.autocast(self.device.type, self._half):
            if self._pyramid:
                proposals, detections = self.detector.over_scales(batches)
                found = proposals if detections is None else detections
            else:
                (batch,) = batches
                found = self.detector.detect(batch)
        return found if self.categories is None else [one.among(self.categories) for one in found]


def _tensor(image: Picture) -> Tensor:
    """(3, H, W), uint8 or floating point in [0, 1]."""
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, bytes | bytearray | memoryview):
        return read_bytes(bytes(image))
    if isinstance(image, Image.Image):
        try:
            return upright(rgb_of(image), orientation_of(image))
        except ValueError as error:
            raise InputError(f"a PIL image cannot be taken: {error}") from None
    if isinstance(image, np.ndarray):
        return _checked(_planes(image))
    if not isinstance(image, Tensor):
        raise InputError(
            "Predictor takes paths, bytes, PIL images, arrays and tensors, one or a list, not a"
            f" {type(image).__name__}"
        )
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError(
            f"an image tensor has the shape (3, height, width), not {tuple(image.shape)}: several"
            " go into a list, and permute(2, 0, 1) puts the colours first"
        )
    return _checked(image)


def _planes(image: NDArray[Any]) -> Tensor:
    """An array's colours first."""
    grey = image.ndim == 2
    if not (grey or (image.ndim == 3 and image.shape[2] == 3)) or 0 in image.shape:
        raise InputError(
            f"an image array has the shape (height, width, 3), or (height, width) in grey, not {image.shape}:"
            " several go into a list, and transpose(1, 2, 0) puts the colours last"
        )
    if image.dtype.kind not in "fiu":
        raise InputError(f"an image array is uint8 or floating point in [0, 1], not {image.dtype}")
    # A copy: an array may be read-only, of another byte order or mirrored, which tensors are not.
    planes = torch.from_numpy(np.array(image, dtype=image.dtype.newbyteorder("="), order="C"))
    return planes.expand(3, -1, -1) if grey else planes.permute(2, 0, 1)


def _checked(image: Tensor) -> Tensor:
    """An image (3, H, W) of known type and range."""
    if image.dtype == torch.uint16:
        return eight_bits(image)
    if image.dtype == torch.uint8:
        return image
    if not image.is_floating_point():
        raise InputError(f"an image is uint8 or floating point in [0, 1], not {image.dtype}")
    low, high = (float(end) for end in image.aminmax())
    if not math.isfinite(low + high):
        raise InputError("a floating-point image has NaN or infinite values, not all in [0, 1]")
    if low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return image
    remedy = "divide it by 255" if low >= 0 and high > 16 else "give it without normalisation, or clamp it"
    raise InputError(f"a floating-point image is in [0, 1], not from {low:g} to {high:g}: {remedy}")
