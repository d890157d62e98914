"""Random changes of training images and their boxes, by torchvision's v2 transforms or albumentations.

They see an image as it lies on disk, once it is turned upright and before it is resized and normalised, as
torchvision's own data sets give them:

    {"image": tv_tensors.Image, "boxes": tv_tensors.BoundingBoxes, "labels": Tensor}

All boxes of an image go together: objects, whose labels are 1…K, then crowd regions, labelled 0, then the
proposals of a file, labelled -1.
"""

import os
import random
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2

from fpn.data.coco_file import MIN_SIDE
from fpn.data.transforms import Sample, Transform
from fpn.described import Described, plain
from fpn.errors import InputError
from fpn.ops.boxes import clip_boxes
from fpn.types import Size, Targets

_OPTION = "data.images.augment"
_CROWD, _PROPOSAL = 0, -1


@dataclass(frozen=True)
class Augmented:
    """A transform that sees images changed at random.

    Boxes are clipped to the changed image. Those of which nothing is left are dropped with their labels.

    Args:
        changes: what is done first, one after the other.
        transform: what is done then.
    """

    changes: Sequence[v2.Transform]
    transform: Transform

    def __call__(self, sample: Sample, generator: torch.Generator) -> Sample:
        with _chance(generator):
            changed = self._changed(sample)
        return self.transform(changed, generator)

    def _changed(self, sample: Sample) -> Sample:
        objects, labels, crowds = sample.target
        proposals = objects[:0] if sample.proposals is None else sample.proposals
        boxes = torch.cat([objects, crowds, proposals])
        kinds = [
            labels,
            labels.new_full((len(crowds),), _CROWD),
            labels.new_full((len(proposals),), _PROPOSAL),
        ]
        changed: Any = {
            "image": tv_tensors.Image(sample.image),
            "boxes": _boxes(boxes, sample.size),
            "labels": torch.cat(kinds),
        }
        for change in self.changes:
            try:
                changed = change(changed)
                _check(changed)
            except InputError as error:
                raise InputError(f"{_OPTION}: {type(change).__name__} {error}") from None
            except Exception as error:  # whatever a transform raises
                first = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise InputError(
                    f"{_OPTION}: {type(change).__name__} failed on image {sample.image_id}: {first}"
                ) from error
        image, boxes, labels = (changed[key].as_subclass(Tensor) for key in ("image", "boxes", "labels"))
        if image.is_floating_point():
            image = image.clamp(0, 1)  # interpolation goes past both
        size = (image.shape[-2], image.shape[-1])
        boxes = clip_boxes(boxes.float()[None], torch.tensor([size]))[0]
        there = (boxes[:, 2:] - boxes[:, :2]).amin(dim=1) >= MIN_SIDE
        boxes, labels = boxes[there], labels[there]
        return sample._replace(
            image=image,
            size=size,
            target=Targets(boxes[labels > 0], labels[labels > 0], boxes[labels == _CROWD]),
            proposals=None if sample.proposals is None else boxes[labels == _PROPOSAL],
        )


class Albumentations(Described, v2.Transform):
    """Transforms of albumentations, which needs `pip install 'fpn[albumentations]'`.

    Args:
        transforms: what is done, one after the other, as `albumentations.to_dict` writes each:
            {__class_fullname__: MotionBlur, p: 0.2}. In Python, transforms themselves too.

    Raises:
        InputError: albumentations has no such transform, or it takes no such arguments.
    """

    def __init__(self, transforms: list[dict[str, Any]]) -> None:
        super().__init__()
        self.transforms: list[dict[str, Any]] = [
            one if isinstance(one, dict) else plain(one.to_dict()["transform"]) for one in transforms
        ]
        self._compose = self._built() if find_spec("albumentations") else None

    @property
    def made_of(self) -> dict[str, Any]:
        """Plain values also of transforms that were made."""
        return {"transforms": self.transforms}

    @property
    def untold(self) -> list[str]:
        """Nothing."""
        return []

    def forward(self, *inputs: Any) -> Any:
        """As torchvision's transforms.

        Raises:
            InputError: albumentations is not installed.
        """
        if self._compose is None:
            raise InputError(
                "needs albumentations, which is not installed: pip install 'fpn[albumentations]'"
            )
        (sample,) = inputs
        boxes = sample["boxes"].as_subclass(Tensor)
        seed = int(torch.randint(2**31, ()))
        # One source for all: seeded alike, each would draw the same.
        self._compose.set_random_state(np.random.default_rng(seed), random.Random(seed))
        changed = self._compose(
            image=sample["image"].permute(1, 2, 0).contiguous().numpy(),
            bboxes=boxes.numpy(),
            labels=sample["labels"].numpy(),
        )
        image = tv_tensors.Image(
            torch.from_numpy(np.ascontiguousarray(changed["image"])).permute(2, 0, 1).contiguous()
        )
        boxes = torch.as_tensor(changed["bboxes"], dtype=torch.float32).reshape(-1, 4)
        return sample | {
            "image": image,
            "boxes": _boxes(boxes, (image.shape[-2], image.shape[-1])),
            "labels": torch.as_tensor(changed["labels"]).long(),
        }

    def _built(self) -> Any:
        os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")  # it would look for a newer one at each import
        import albumentations

        built = []
        for one in self.transforms:
            try:
                with warnings.catch_warnings():
                    # Of an argument that does not exist, or that albumentations itself has written.
                    warnings.filterwarnings("ignore", "Argument", UserWarning)
                    made: Any = albumentations.from_dict({"transform": {"p": 0.5} | one})
                if strange := _strange(one, made.to_dict()["transform"]):
                    raise TypeError(f"there is no argument {min(strange)}")
                built.append(made)
            except Exception as error:  # whatever it raises
                said = " ".join(str(error).split())
                raise InputError(
                    f"fpn.Albumentations cannot make {one}: {type(error).__name__}: {said}"
                ) from error
        format_ = albumentations.BboxParams(
            "pascal_voc", label_fields=["labels"], clip=True, filter_invalid_bboxes=True
        )
        return albumentations.Compose(built, bbox_params=format_)


def _strange(given: Mapping[str, Any], made: Mapping[str, Any]) -> set[str]:
    """Arguments of transforms, and of those within them, that they do not have."""
    within = zip(given.get("transforms") or (), made.get("transforms") or (), strict=False)
    return (given.keys() - made.keys()).union(*(_strange(one, other) for one, other in within))


def _boxes(boxes: Tensor, size: Size) -> tv_tensors.BoundingBoxes:
    return tv_tensors.BoundingBoxes(boxes, format="XYXY", canvas_size=size)


@contextmanager
def _chance(generator: torch.Generator) -> Iterator[None]:
    """Seed what transforms draw from by a sample's own generator, and leave all of it as it was."""
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()
    seed = int(torch.randint(2**31, (), generator=generator))
    torch.default_generator.manual_seed(seed)  # and no device's
    random.seed(seed)
    np.random.seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(before[0])
        random.setstate(before[1])
        np.random.set_state(before[2])


def _check(changed: Any) -> None:
    """Raise InputError if a transform has made of an image what is none, or lost count of its boxes."""
    if not isinstance(changed, Mapping) or not {"image", "boxes", "labels"} <= changed.keys():
        raise InputError("does not give back image, boxes and labels by name")
    image = changed["image"]
    if not isinstance(image, Tensor) or image.ndim != 3 or len(image) != 3 or not image.numel():
        what = f"shape {tuple(image.shape)}" if isinstance(image, Tensor) else type(image).__name__
        raise InputError(f"gives an image of {what}, not a tensor (3, height, width)")
    if image.dtype != torch.uint8 and not (
        image.is_floating_point() and float(image.min()) > -0.5 and float(image.max()) < 1.5
    ):
        raise InputError(
            "gives an image that is neither bytes nor floats from 0 to 1: normalising comes later"
        )
    if len(changed["boxes"]) != len(changed["labels"]):
        raise InputError("gives as many labels as boxes no more")
