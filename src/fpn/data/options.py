"""The settings of a data module that belong together, as a configuration gives them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

from torchvision.transforms import v2

from fpn.data.augment import Augmented
from fpn.data.decoding import Exif
from fpn.data.transforms import ImageSettings, Rounding, TrainTransform, Transform
from fpn.errors import InputError
from fpn.settings import PositiveFloat, PositiveInt, Share


@dataclass(frozen=True)
class Split:
    """Where the images of a split lie, and what is known of them.

    Args:
        images: Folder in which the file names of the annotations start.
        annotations: File in COCO's format.
        proposals: Proposal file of these images, for a detector that reads one.
    """

    images: str | None = None
    annotations: str | None = None
    proposals: str | None = None


@dataclass(frozen=True)
class ImageOptions:
    """How images are resized, normalised and mirrored.

    Args:
        short_side: Pixels of an image's short side after resizing. Default: 800; for generated
            shapes, the long side that they are drawn with.
        max_side: Most pixels of an image's long side after resizing; it wins over short_side.
            Default: 5/3 of short_side, so 1333 for 800 and 1000 for 600.
        scale: Multiplies short_side and max_side, in training and in testing; 0.75 makes 600 of 800.
        train_scales: Factors of this size, one drawn for each training image. Default: 1 alone.
        scale_max_side: Whether train_scales multiply max_side too, or short_side alone as in
            Detectron2.
        test_scales: Factors of this size, at all of which each test image is searched: a featurized
            image pyramid. Default: 1 alone.
        flip_probability: Share of the training images that are mirrored left to right.
        antialias: Resize bytes, as PIL and Detectron2 do: nearly three times as fast as floats, and batches
            take a quarter of the room. Otherwise as torchvision's detection models do.
        rounding: How the sides of a resized image become whole: down as in torchvision, nearest as in
            Detectron2.
        divisor: Batches are padded to multiples of this many pixels: the more, the fewer sizes a compiled
            network meets.
        mean: Subtracted from red, green and blue values between 0 and 1.
        std: Divides red, green and blue values once the mean is subtracted.
        exif: Whether photos are turned as their EXIF orientation says, as viewers do. One whose
            annotated size is that of the photo as stored alone is not turned in any case.
        augment: Transforms of torchvision.transforms.v2, or fpn.Albumentations, that change training images
            and their boxes at random, before all else. In Python, `functools.partial` of their classes, which
            checkpoints can tell, or transforms themselves, which they cannot.
    """

    short_side: PositiveInt | None = None
    max_side: PositiveInt | None = None
    scale: PositiveFloat = 1.0
    train_scales: tuple[PositiveFloat, ...] = ()
    scale_max_side: bool = True
    test_scales: tuple[PositiveFloat, ...] = ()
    flip_probability: Share = 0.5
    antialias: bool = False
    rounding: Rounding = "down"
    divisor: PositiveInt = 32
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    exif: Exif = "apply"
    augment: Sequence[v2.Transform] = ()

    @property
    def settings(self) -> ImageSettings:
        """What every image goes through, where no scale of its own is asked for."""
        short = self.short_side or 800
        limit = self.max_side or round(short * 5 / 3)
        settings = ImageSettings(
            short, limit, self.antialias, self.mean, self.std, self.rounding, self.divisor
        )
        return settings.scaled(self.scale)

    @property
    def training_scales(self) -> list[ImageSettings]:
        """The scales of training images; one is drawn for each."""
        base = self.settings
        scales = [base.scaled(scale) for scale in self.train_scales]
        if not self.scale_max_side:
            scales = [replace(scale, max_side=base.max_side) for scale in scales]
        return scales or [base]

    @property
    def training(self) -> Transform:
        """What a training image goes through.

        Raises:
            InputError: augment has something that is no transform of torchvision's kind.
        """
        resized = TrainTransform(self.training_scales, self.flip_probability)
        made = [one() if isinstance(one, partial | type) else one for one in self.augment]
        if wrong := [one for one in made if not isinstance(one, v2.Transform)]:
            raise InputError(
                f"data.images.augment: {wrong[0]!r} is no transform of torchvision.transforms.v2"
            )
        return Augmented(made, resized) if made else resized

    @property
    def testing(self) -> list[ImageSettings]:
        """The scales of the image pyramid; none without one."""
        return [self.settings.scaled(scale) for scale in self.test_scales]
