"""Images in, boxes in the pixels of these images out."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from fpn.checkpoints import Trained
from fpn.data.decoding import orientation_of, read_image, rgb_of, upright
from fpn.data.transforms import ImageSettings, Sample, collate_scales
from fpn.devices import device_named
from fpn.errors import InputError
from fpn.models.detectors import Detector
from fpn.models.optimized import optimized
from fpn.types import PRECISIONS, Batch, Categories, Detections, Precision, Targets

Picture = Tensor | Image.Image | str | Path


class Predictor:
    """A detector made ready for images of any size.

    Args:
        detector: what finds the boxes; moved to the device. What runs is `optimized` of the weights it has
            now.
        short_side: pixels of the short side that images are resized to …
        max_side: … unless the long side would exceed this.
        device: where it runs; None for the detector's own.
        settings: further settings of image preparation; the sides above take precedence.
        scales: factors of this size, for a featurized image pyramid (Fig. 1 (a) of the paper): boxes
            are looked for at all of them, and merged.
        categories: what the labels mean; boxes of classes that have no category are left out.
        precision: of the network's layers; boxes are float32 in any.

    Raises:
        InputError: the detector finds objects in given proposals only, a side is not positive, or there is
            no such precision or device.
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
        self.device = device_named(device) if device is not None else next(detector.parameters()).device
        self.detector = optimized(detector.to(self.device))
        settings = replace(settings, short_side=short_side, max_side=max_side)
        self.scales = [settings.scaled(scale) for scale in scales] or [settings]
        self.categories = categories if detector.finds_objects else None
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

    @torch.inference_mode()
    def __call__(self, images: Sequence[Picture]) -> list[Detections]:
        """What is found in each image, best first.

        The images make one batch: they are padded to the largest of them, which moves results by a
        trace, and must fit into memory together.

        Args:
            images: (3, H, W) uint8 tensors, or floating-point ones in [0, 1]; PIL images; or paths of files.
                The latter two are taken as viewers show them, turned by their EXIF orientation.

        Returns:
            For each image its detections on the CPU, boxes in pixels of the image as given, or as shown.

        Raises:
            InputError: an image cannot be read, or has another shape, type or range.
        """
        if not isinstance(images, list | tuple):
            raise InputError(f"Predictor takes a list of images, not a {type(images).__name__}")
        if not images:
            return []
        samples = [self._sample(index, _tensor(image)) for index, image in enumerate(images)]
        return self.detect(collate_scales(samples, self.scales))

    @torch.inference_mode()
    def detect(self, batches: Sequence[Batch]) -> list[Detections]:
        """What is found in the images of prepared batches.

        Args:
            batches: the same N images in each, prepared as `scales` says, on any device.

        Returns:
            N detections on the CPU, best first, boxes in pixels of the original images.
        """
        batches = [batch._replace(images=batch.images.to(self.device), targets=None) for batch in batches]
        with nullcontext() if self._half is None else torch.autocast(self.device.type, self._half):
            if self._pyramid:
                proposals, detections = self.detector.over_scales(batches)
                found = proposals if detections is None else detections
            else:
                (batch,) = batches
                found = self.detector.detect(batch)
        if self.categories is not None:
            found = [one.among(self.categories) for one in found]
        return [Detections(*(part.cpu() for part in one)) for one in found]

    def _sample(self, index: int, image: Tensor) -> Sample:
        nothing = Targets(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4))
        size = (image.shape[-2], image.shape[-1])
        return Sample(image.to(self.device), size, size, index, nothing)


def _tensor(image: Picture) -> Tensor:
    if isinstance(image, str | Path):
        return read_image(Path(image))
    if isinstance(image, Image.Image):
        try:
            return upright(rgb_of(image), orientation_of(image))
        except ValueError as error:
            raise InputError(f"a PIL image cannot be taken: {error}") from None
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise InputError(f"an image tensor has the shape (3, height, width), not {tuple(image.shape)}")
    if image.dtype != torch.uint8:
        if not image.is_floating_point():
            raise InputError(f"an image tensor is uint8 or floating point in [0, 1], not {image.dtype}")
        if image.max() > 16:
            raise InputError(
                f"a floating-point image is in [0, 1], not up to {image.max():g}: divide it by 255"
            )
    return image
