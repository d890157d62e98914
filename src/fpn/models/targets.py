"""What the network should say: labels of anchors (Sec. 4.1) and RoIs (Sec. 4.2), and which are learned from.

Symbols: A anchors of all levels, R RoIs, G ground-truth boxes of one image.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fpn.ops.boxes import encode_boxes, intersection_over_own_area
from fpn.ops.matching import BACKGROUND, IGNORED, match_boxes
from fpn.ops.sampling import sample_balanced
from fpn.settings import PositiveInt, Share
from fpn.types import RoIs, Size, Targets


@dataclass(frozen=True)
class AnchorSampling:
    """Which anchors the RPN learns from.

    Args:
        foreground_iou: an anchor that overlaps an object this much is one; so is the best of every object.
        background_iou: one with less overlap than this with every object is background.
        per_image: anchors sampled from each image.
        fg_fraction: largest share of foreground among them.
        include_border_anchors: learn from anchors that cross the image's border too.
        crowd_overlap: background with this share of its area in a crowd region is left out; null leaves
            none out.
    """

    foreground_iou: Share = 0.7
    background_iou: Share = 0.3
    per_image: PositiveInt = 256
    fg_fraction: Share = 0.5
    include_border_anchors: bool = True
    crowd_overlap: Share | None = 0.7


@dataclass(frozen=True)
class RoISampling:
    """Which RoIs the Fast R-CNN head learns from.

    Args:
        foreground_iou: an RoI with this overlap with an object is one.
        background_iou: one with less overlap than this with every object is background.
        per_image: RoIs sampled from each image.
        fg_fraction: largest share of foreground among them.
        include_ground_truth: take the true boxes as RoIs too.
        crowd_overlap: background with this share of its area in a crowd region is left out; null leaves
            none out.
    """

    foreground_iou: Share = 0.5
    background_iou: Share = 0.5
    per_image: PositiveInt = 512
    fg_fraction: Share = 0.25
    include_ground_truth: bool = True
    crowd_overlap: Share | None = 0.7


class AnchorTargets(NamedTuple):
    """The sampled anchors of one image."""

    foreground: Tensor
    """Indices of the foreground."""
    background: Tensor
    """Indices of the background."""
    deltas: Tensor
    """(foreground, 4) to the objects."""


class RoITargets(NamedTuple):
    """The sampled RoIs of a batch."""

    rois: RoIs
    """R RoIs, image after image."""
    labels: Tensor
    """(R,) int64 in 0…K."""
    foreground: Tensor
    """Indices of the RoIs with a label above 0."""
    deltas: Tensor
    """(foreground, 4) to the objects."""


def sample_anchors(
    anchors: Tensor,
    targets: Targets,
    size: Size,
    sampling: AnchorSampling,
    box_weights: Sequence[float],
    generator: torch.Generator | None = None,
) -> AnchorTargets:
    """Label the anchors of one image and sample those to learn from.

    Args:
        anchors: (A, 4) of all levels.
        targets: the image's ground truth.
        size: the image's, without padding.
        sampling: thresholds and numbers.
        box_weights: factors of the deltas.
        generator: source of randomness.
    """
    match = torch.full((len(anchors),), IGNORED, device=anchors.device)
    eligible = torch.ones_like(match, dtype=torch.bool)
    if not sampling.include_border_anchors:
        x1, y1, x2, y2 = anchors.unbind(1)
        eligible = (x1 >= 0) & (y1 >= 0) & (x2 <= size[1]) & (y2 <= size[0])
    match[eligible] = match_boxes(
        targets.boxes, anchors[eligible], sampling.foreground_iou, sampling.background_iou, rescue=True
    )
    match = _ignore_crowds(match, anchors, targets.crowds, sampling.crowd_overlap)
    labels = torch.where(match >= 0, 1, torch.where(match == BACKGROUND, 0, -1))
    foreground, background = sample_balanced(labels, sampling.per_image, sampling.fg_fraction, generator)
    deltas = encode_boxes(targets.boxes[match[foreground]], anchors[foreground], box_weights)
    return AnchorTargets(foreground, background, deltas)


def sample_rois(
    proposals: Sequence[Tensor],
    targets: Sequence[Targets],
    sampling: RoISampling,
    box_weights: Sequence[float],
    generator: torch.Generator | None = None,
) -> RoITargets:
    """Label the proposals of a batch and sample those to learn from.

    Args:
        proposals: for each image (P, 4), in pixels of the network's input.
        targets: for each image its ground truth.
        sampling: thresholds and numbers.
        box_weights: factors of the deltas.
        generator: source of randomness.
    """
    boxes, labels, deltas = [], [], []
    for candidates, target in zip(proposals, targets, strict=True):
        if sampling.include_ground_truth:
            candidates = torch.cat((candidates, target.boxes))
        match = match_boxes(
            target.boxes, candidates, sampling.foreground_iou, sampling.background_iou, rescue=False
        )
        match = _ignore_crowds(match, candidates, target.crowds, sampling.crowd_overlap)
        label = torch.where(match == BACKGROUND, 0, -1)
        label[match >= 0] = target.labels[match[match >= 0]]
        foreground, background = sample_balanced(label, sampling.per_image, sampling.fg_fraction, generator)
        chosen = torch.cat((foreground, background)).sort().values
        boxes.append(candidates[chosen])
        labels.append(label[chosen])
        deltas.append(encode_boxes(target.boxes[match[foreground]], candidates[foreground], box_weights))
    image = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)])
    label = torch.cat(labels)
    return RoITargets(RoIs(torch.cat(boxes), image), label, torch.where(label > 0)[0], torch.cat(deltas))


def _ignore_crowds(match: Tensor, boxes: Tensor, crowds: Tensor, overlap: float | None) -> Tensor:
    if overlap is None or not len(crowds):
        return match
    inside = intersection_over_own_area(boxes, crowds).amax(dim=1) >= overlap
    return match.masked_fill(inside & (match == BACKGROUND), IGNORED)
