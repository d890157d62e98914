"""All that is measured of a trained detector for a reader's questions, as JSON holds it."""

from pathlib import Path
from typing import Any

import torch

from fpn.analysis.aliasing import block_edges, drifts, gain, merged_maps, pyramid_of, spectrum
from fpn.analysis.levels import likenesses
from fpn.checkpoints import load
from fpn.data.coco import CocoDataset, read_annotations
from fpn.data.samplers import Pick
from fpn.data.transforms import EvalTransform, collate
from fpn.errors import InputError
from fpn.models.detectors import ProposalNetwork


def answers(checkpoint: Path, data: Path, number: int = 32) -> dict[str, Any]:
    """The measures of `aliasing` and `levels`, on the first validation images of a data set.

    Args:
        checkpoint: of a detector with a feature pyramid and an RPN.
        data: a folder in COCO's layout.
        number: of images, each by itself; numbers are means over them.

    Returns:
        `spectra`, `above_quarter` and `block_edges` by level and way of enlarging ("smoothed" is after the
        3×3), `gains` of the 3×3 by level, `drifts` by pixels of shift, `likeness` by pair of levels.

    Raises:
        InputError: a file cannot be read, or the detector is of another kind.
    """
    trained = load(checkpoint)
    detector = trained.detector.eval()
    if not isinstance(detector, ProposalNetwork):
        raise InputError(f"{checkpoint} has no RPN: give one of a ProposalNetwork or a FasterRCNN")
    annotations = read_annotations(data / "annotations" / "instances_val2017.json")
    images = CocoDataset(annotations, data / "val2017", EvalTransform(trained.image))
    found = []
    for index in range(min(number, len(annotations))):
        batch = collate([images[Pick(index, 0)]], trained.image)
        found.append(_of_image(detector, batch.images))
    told = _mean(found)
    if neck := getattr(pyramid_of(detector), "smooths", None):
        told["gains"] = {k: gain(layer[0]).power.tolist() for k, layer in neck.items()}
    return told


def _of_image(detector: ProposalNetwork, images: torch.Tensor) -> dict[str, Any]:
    told: dict[str, Any] = {"spectra": {}, "above_quarter": {}, "block_edges": {}}
    for name, maps in merged_maps(detector, images).items():
        for k in sorted(maps)[:2]:  # P2 and P3; the coarser have too few cells for a spectrum
            shape = spectrum(maps[k])
            told["spectra"].setdefault(str(k), {})[name] = shape.power.tolist()
            told["above_quarter"].setdefault(str(k), {})[name] = shape.above(0.25)
            told["block_edges"].setdefault(str(k), {})[name] = block_edges(maps[k])
    told["drifts"] = {str(one.shift): one._asdict() for one in drifts(detector, images)}
    told["likeness"] = {
        f"{low}-{high}": {"octave": octave, "objectness": objectness, "across": across}
        for (low, high), octave, objectness, across in likenesses(detector, images)
    }
    return told


def _mean(found: list[Any]) -> Any:
    """Of numbers, lists of numbers, or mappings to these, all of one form; of NaN as if it were not there."""
    first = found[0]
    if isinstance(first, dict):
        return {key: _mean([one[key] for one in found]) for key in first}
    if isinstance(first, list):
        return [_mean(list(column)) for column in zip(*found, strict=True)]
    return float(torch.tensor(found, dtype=torch.float64).nanmean())
