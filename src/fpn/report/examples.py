"""The best and the worst images of a test, small, with what is there and what was found."""

import base64
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate
from torchvision.io import encode_jpeg

from fpn.data.coco_file import corners
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


class Shown(NamedTuple):
    """Images of which some are shown."""

    truth: GroundTruth
    results: Results
    by_image: Sequence[float | None]
    """The score of each."""
    least: float
    """Results with a lower score are left out."""
    most: int
    """Of an image's results, the best."""


def extremes(truth: GroundTruth, by_image: Sequence[float | None]) -> tuple[list[int], list[int]]:
    """Places of the best and the worst images, as many of either; of equals, those with more objects."""
    scores = np.array(by_image, dtype=np.float64)  # NaN for None
    objects = np.bincount(truth.image[~truth.crowd], minlength=len(scores))
    known = np.flatnonzero(~np.isnan(scores) & (objects > 0))
    number = min(SHOWN, len(known) // 2)
    best = known[np.lexsort((-objects[known], -scores[known]))][:number]
    worst = known[np.lexsort((-objects[known], scores[known]))]
    return best.tolist(), worst[~np.isin(worst, best)][:number].tolist()


def example(shown: Shown, place: int, read: Callable[[], Tensor]) -> Example:
    """Draws the image of a place, which `read` reads to (3, H, W) uint8 RGB, in the frame of its boxes.

    Raises:
        InputError: the file cannot be read.
    """
    truth, results, by_image, least, most = shown
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
    boxes, found = (
        torch.from_numpy(factor * corners(of)).float() for of in (truth.boxes[there], results.boxes[own])
    )
    scores = torch.from_numpy(results.scores[own])
    left = draw(image, true_boxes(boxes, torch.from_numpy(truth.category[there] + 1)), categories)
    right = draw(image, Detections(found, scores, torch.from_numpy(labels)), categories)
    picture = encode_jpeg(beside(left, right), quality=_QUALITY)
    jpeg = base64.b64encode(picture.numpy().tobytes()).decode()
    number = int(truth.image_ids[place])
    return Example(truth.images_as_written.get(number, number), float(by_image[place] or 0), jpeg)
