"""All that is measured of a trained detector for a reader's questions, as JSON holds it."""

import math
from pathlib import Path
from typing import Any

import torch

from fpn.analysis.aliasing import (
    bilinear,
    block_edges,
    drifts,
    merged_maps,
    smoothing,
    smooths_a_sum,
    spectrum,
)
from fpn.analysis.levels import likenesses
from fpn.checkpoints import load
from fpn.data.coco import CocoDataset, read_annotations
from fpn.data.samplers import Pick
from fpn.data.transforms import EvalTransform, collate
from fpn.errors import InputError
from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import FeaturePyramid


def answers(checkpoint: Path, data: Path, number: int = 32) -> dict[str, Any]:
    """The measures of `aliasing` and `levels`, on the first validation images of a data set.

    Args:
        checkpoint: of a detector with an RPN on all of P2 to P5 of a feature pyramid.
        data: a folder in COCO's layout.
        number: of images, each by itself; numbers are means over them.

    Returns:
        `images`, their number; `spectra`, `above_quarter` and `block_edges` by level and way of enlarging;
        `smoothing` by level, of the trained 3×3 and of a random one, where there is one; `drifts` by pixels
        of shift, P2's also of bilinear enlargement; `likeness` by pair of levels. None stands for numbers
        that are not finite.

    Raises:
        InputError: a file cannot be read, the detector is of another kind or has other categories than the
            data, or there is no image to read.
    """
    trained = load(checkpoint)
    detector = trained.detector.eval()
    if (
        not isinstance(detector, ProposalNetwork)
        or not isinstance(detector.neck, FeaturePyramid)
        or detector.neck.levels != (2, 3, 4, 5)
        or not {2, 3, 4, 5} <= set(detector.rpn.levels)
    ):
        raise InputError(f"{checkpoint} has no RPN on P2 to P5 of a feature pyramid: give one that has")
    if number < 1:
        raise InputError(f"images is {number}: give 1 at least")
    annotations = read_annotations(data / "annotations" / "instances_val2017.json")
    if difference := trained.categories.listed().difference(annotations.categories):
        raise InputError(f"{checkpoint} and {data} have other categories: {difference}; give data of the run")
    images = CocoDataset(annotations, data / "val2017", EvalTransform(trained.image))
    found = []
    for index in range(min(number, len(annotations))):
        batch = collate([images[Pick(index, 0)]], trained.image)
        found.append(_of_image(detector, batch.images))
    told: dict[str, Any] = _mean(found)
    return {"images": len(found)} | told


def _of_image(detector: ProposalNetwork, images: torch.Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {"spectra": {}, "above_quarter": {}, "block_edges": {}}
    for name, maps in merged_maps(detector, images).items():
        for k in (2, 3):  # the coarser have too few cells for a spectrum
            shape = spectrum(maps[k])
            told["spectra"].setdefault(str(k), {})[name] = shape.power.tolist()
            told["above_quarter"].setdefault(str(k), {})[name] = shape.above(0.25)
            told["block_edges"].setdefault(str(k), {})[name] = block_edges(maps[k])
    if smooths_a_sum(detector.neck):
        told["smoothing"] = {
            kind: {str(k): one._asdict() for k, one in smoothing(detector, images, kind == "random").items()}
            for kind in ("trained", "random")
        }
    told["drifts"] = {str(one.shift): one._asdict() for one in drifts(detector, images)}
    for one in drifts(detector, images, (4, 8), upsample=bilinear):
        told["drifts"][str(one.shift)]["map_bilinear"] = one.map
    told["likeness"] = {
        f"{low}-{high}": {"octave": octave, "objectness": objectness, "across": across}
        for (low, high), octave, objectness, across in likenesses(detector, images)
    }
    return told


def _mean(found: list[Any]) -> Any:
    """Of numbers, lists of numbers, or mappings to these, all of one form, over those that are finite."""
    first = found[0]
    if isinstance(first, dict):
        return {key: _mean([one[key] for one in found]) for key in first}
    if isinstance(first, list):
        return [_mean(list(column)) for column in zip(*found, strict=True)]
    finite = [one for one in found if math.isfinite(one)]
    return sum(finite) / len(finite) if finite else None
