"""The best and the worst images of a test, small, with what is there and what was found."""

import base64
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import encode_jpeg

from fpn.evaluation.inputs import GroundTruth, Results
from fpn.pictures import beside, draw
from fpn.pictures import truth as true_boxes
from fpn.types import Categories, Detections

SHOWN = 4
"""The most images of either kind."""
_LONG_SIDE, _QUALITY = 256, 70


class Example(NamedTuple):
    """An image with the truth on the left and what was found on the right."""

    image_id: int | str
    score: float
    jpeg: str
    """In base64."""


def extremes(truth: GroundTruth, by_image: Sequence[float | None]) -> tuple[list[int], list[int]]:
    """Places of the best and the worst images, as many of either; of equals, those with more objects."""
    scores = np.array([np.nan if value is None else value for value in by_image], dtype=np.float64)
    objects = np.bincount(truth.image[~truth.crowd], minlength=len(scores))
    known = np.flatnonzero(~np.isnan(scores) & (objects > 0))
    number = min(SHOWN, len(known) // 2)
    best = known[np.lexsort((-objects[known], -scores[known]))][:number]
    worst = known[np.lexsort((-objects[known], scores[known]))]
    return best.tolist(), worst[~np.isin(worst, best)][:number].tolist()


def example(
    truth: GroundTruth,
    results: Results,
    place: int,
    score: float,
    read: Callable[[], Tensor],
    least: float,
    most: int,
) -> Example:
    """Draws an image.

    Args:
        truth: all objects.
        results: all that was found.
        place: of the image.
        score: of the image.
        read: reads it to (3, H, W) uint8 RGB, in the frame of its boxes.
        least: results with a lower score are left out.
        most: of results, the best.

    Raises:
        InputError: the file cannot be read.
    """
    image = read()
    factor = _LONG_SIDE / max(image.shape[-2:])
    image = interpolate(image[None].float(), scale_factor=factor, mode="bilinear", antialias=True)[0]
    image = image.round().to(torch.uint8)
    categories = Categories(tuple(truth.categories), tuple(truth.categories.values()))
    own = np.flatnonzero(
        (results.image_ids == truth.image_ids[place])
        & (results.scores >= least)
        & np.isin(results.category_ids, np.array(categories.ids))
    )
    own = own[np.argsort(-results.scores[own], kind="stable")][:most]
    labels = np.searchsorted(np.array(categories.ids), results.category_ids[own]) + 1
    there = (truth.image == place) & ~truth.crowd
    sides = (
        draw(
            image,
            true_boxes(_corners(truth.boxes[there], factor), torch.from_numpy(truth.category[there] + 1)),
            categories,
        ),
        draw(
            image,
            Detections(
                _corners(results.boxes[own], factor),
                torch.from_numpy(results.scores[own]),
                torch.from_numpy(labels),
            ),
            categories,
        ),
    )
    picture = encode_jpeg(beside([sides[0]], [sides[1]]), quality=_QUALITY)
    jpeg = base64.b64encode(picture.numpy().tobytes()).decode()
    number = int(truth.image_ids[place])
    return Example(truth.images_as_written.get(number, number), score, jpeg)


def _corners(boxes: np.ndarray, factor: float) -> Tensor:
    return torch.from_numpy(
        factor * np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)
    ).float()
