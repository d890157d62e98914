"""What the network should say: labels of anchors (Sec. 4.1) and RoIs (Sec. 4.2), and which are learned from.

A sample has a fixed number of places an image, of which some are not taken. What is learned from is made of
it once the host knows how many are (`fpn.ops.counting`).

Symbols: N images, A anchors of all levels, P proposals and G ground-truth boxes of an image, S places of a
sample, R RoIs and F foreground of the whole batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from fpn.ops.boxes import encode_boxes, intersection_over_own_area
from fpn.ops.counting import padded, places
from fpn.ops.matching import BACKGROUND, IGNORED, blocks, match_boxes
from fpn.ops.sampling import sample_balanced
from fpn.settings import PositiveInt, Share
from fpn.types import Found, RoIs, Targets


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


NOBODY = -(2**62)
"""The label in a place without an object."""


class GroundTruth(NamedTuple):
    """The ground truth of a batch, as many places in each image."""

    boxes: Tensor
    """(N, G, 4) in pixels of the network's input."""
    labels: Tensor
    """(N, G) int64 in 1…K; NOBODY where an image has fewer objects."""
    crowds: Tensor
    """(N, ·, 4); NaN where an image has fewer."""

    @classmethod
    def of(cls, targets: Sequence[Targets]) -> "GroundTruth":
        """That of each image in one."""
        boxes, labels, crowds = (list(part) for part in zip(*targets, strict=True))
        return cls(padded(boxes, 0, least=1), padded(labels, NOBODY, least=1), padded(crowds, torch.nan))

    @property
    def there(self) -> Tensor:
        """(N, G) which places are taken."""
        return self.labels != NOBODY

    @property
    def unfit(self) -> Tensor:
        """(N, G) objects without width or height, not of finite numbers, or with a label below 1."""
        sides = self.boxes[..., 2:] - self.boxes[..., :2]
        fit = ((sides > 0) & (sides < torch.inf)).all(dim=-1) & (self.labels > 0)
        return self.there & ~fit


class Sample(NamedTuple):
    """The candidates that a batch learns from, as many places in each image."""

    chosen: Tensor
    """(N, S) indices of candidates, ascending in each image."""
    match: Tensor
    """(N, S) its object, BACKGROUND, or IGNORED where the place is not taken."""

    @property
    def masks(self) -> tuple[Tensor, Tensor]:
        """(N, S) which places are foreground, and which are background."""
        return self.match >= 0, self.match == BACKGROUND

    @property
    def taken(self) -> Tensor:
        """(N, S) which places are one or the other."""
        return self.match != IGNORED


class AnchorTargets(NamedTuple):
    """The sampled anchors of a batch."""

    foreground: Tensor
    """(F,) indices of the foreground among N · A."""
    background: Tensor
    """Indices of the background among N · A."""
    deltas: Tensor
    """(F, 4) to the objects."""


class RoITargets(NamedTuple):
    """The sampled RoIs of a batch."""

    rois: RoIs
    """R RoIs, image after image."""
    labels: Tensor
    """(R,) int64 in 0…K."""
    foreground: Tensor
    """(F,) indices of the RoIs with a label above 0."""
    deltas: Tensor
    """(F, 4) to the objects."""
    places: Tensor
    """(R,) where the RoIs were among the N · S places of the sample."""


def sample_anchors(
    anchors: Tensor,
    truth: GroundTruth,
    sizes: Tensor,
    sampling: AnchorSampling,
    generator: torch.Generator | None = None,
) -> Sample:
    """Label the anchors of a batch and sample those to learn from.

    Args:
        anchors: (A, 4) of all levels.
        truth: the ground truth.
        sizes: (N, 2) of the images, without padding.
        sampling: thresholds and numbers.
        generator: source of randomness.
    """
    eligible = None
    if not sampling.include_border_anchors:
        bottom_right = anchors[:, 2:] <= sizes.flip(1)[:, None]
        eligible = ((anchors[:, :2] >= 0) & bottom_right).all(dim=-1)
    return _sample(anchors, truth, sampling, generator, eligible, rescue=True)


def sample_rois(
    proposals: Found, truth: GroundTruth, sampling: RoISampling, generator: torch.Generator | None = None
) -> tuple[Sample, Tensor]:
    """Label the proposals of a batch and sample those to learn from.

    Args:
        proposals: P places an image, in pixels of the network's input.
        truth: the ground truth.
        sampling: thresholds and numbers.
        generator: source of randomness.

    Returns:
        The sample, and its candidates (N, ·, 4): the proposals, and the true boxes where these take part.
    """
    candidates, there = proposals.boxes, proposals.there
    if sampling.include_ground_truth:
        candidates = torch.cat((candidates, truth.boxes), dim=1)
        there = torch.cat((there, truth.there), dim=1)
    return _sample(candidates, truth, sampling, generator, there, rescue=False), candidates


def all_rois(boxes: Tensor, truth: GroundTruth, sampling: RoISampling) -> tuple[Sample, Tensor]:
    """Label RoIs that are learned from without another choice, as of a cascade's later stages.

    Args:
        boxes: (N, S, 4); those without width or height are in places that are not taken.
        truth: the ground truth.
        sampling: thresholds, of which the numbers do not matter.

    Returns:
        As `sample_rois`.
    """
    there = (boxes[..., 2:] > boxes[..., :2]).all(dim=-1)
    match = _match(boxes, truth, sampling, there, rescue=False)
    every = torch.arange(match.shape[1], device=boxes.device).expand(match.shape)
    return Sample(every, match), boxes


def anchor_targets(
    sample: Sample,
    anchors: Tensor,
    truth: GroundTruth,
    box_weights: Sequence[float],
    foreground: int,
    background: int,
) -> AnchorTargets:
    """What the RPN learns from.

    Args:
        sample: of the anchors.
        anchors: (A, 4) of all levels.
        truth: the ground truth.
        box_weights: factors of the deltas.
        foreground: how many places of the sample are foreground …
        background: … and background.
    """
    rows = _rows(sample.chosen, len(anchors))
    some, others = (places(mask, n) for mask, n in zip(sample.masks, (foreground, background), strict=True))
    references = anchors[sample.chosen.flatten()[some]]
    objects = truth.boxes.flatten(0, 1)[_objects(sample, truth)[some]]
    deltas = encode_boxes(objects, references, box_weights)
    return AnchorTargets(rows[some], rows[others], deltas)


def roi_targets(
    sample: Sample,
    candidates: Tensor,
    truth: GroundTruth,
    box_weights: Sequence[float],
    foreground: int,
    number: int,
) -> RoITargets:
    """What the Fast R-CNN head learns from.

    Args:
        sample: of the candidates.
        candidates: (N, ·, 4) proposals, in pixels of the network's input.
        truth: the ground truth.
        box_weights: factors of the deltas.
        foreground: how many places of the sample are foreground …
        number: … and how many are taken.
    """
    taken = places(sample.taken, number)
    boxes = candidates.flatten(0, 1)[_rows(sample.chosen, candidates.shape[1])[taken]]
    objects = _objects(sample, truth)[taken]
    labels = truth.labels.flatten()[objects].masked_fill(sample.match.flatten()[taken] < 0, 0)
    some = places(labels > 0, foreground)
    deltas = encode_boxes(truth.boxes.flatten(0, 1)[objects[some]], boxes[some], box_weights)
    return RoITargets(RoIs(boxes, taken // sample.chosen.shape[1]), labels, some, deltas, taken)


def _sample(
    candidates: Tensor,
    truth: GroundTruth,
    sampling: AnchorSampling | RoISampling,
    generator: torch.Generator | None,
    eligible: Tensor | None,
    rescue: bool,
) -> Sample:
    match = _match(candidates, truth, sampling, eligible, rescue)
    # Objects, BACKGROUND and IGNORED as 1, 0 and -1.
    index, taken = sample_balanced(
        match.clamp(max=0) + 1, sampling.per_image, sampling.fg_fraction, generator
    )
    return Sample(index, match.gather(1, index).masked_fill(~taken, IGNORED))


def _match(
    candidates: Tensor,
    truth: GroundTruth,
    sampling: AnchorSampling | RoISampling,
    eligible: Tensor | None,
    rescue: bool,
) -> Tensor:
    match = match_boxes(
        truth.boxes,
        candidates,
        sampling.foreground_iou,
        sampling.background_iou,
        rescue,
        there=truth.there,
        eligible=eligible,
    )
    return _ignore_crowds(match, candidates, truth.crowds, sampling.crowd_overlap)


def _rows(index: Tensor, number: int) -> Tensor:
    """(N · S,) indices into N tables of `number` rows, in one table of all."""
    number = max(number, 1)  # where there is no row, no index is of one
    first = torch.arange(0, len(index) * number, number, device=index.device)
    return (index + first[:, None]).flatten()


def _objects(sample: Sample, truth: GroundTruth) -> Tensor:
    """(N · S,) each place's object among N · G; that of a place without one is anything."""
    return _rows(sample.match.clamp(min=0), truth.labels.shape[1])


def _ignore_crowds(match: Tensor, boxes: Tensor, crowds: Tensor, overlap: float | None) -> Tensor:
    """The matches, without the background in crowds; boxes are (..., A, 4), crowds (N, ·, 4)."""
    if overlap is None:
        return match
    inside = torch.zeros_like(match, dtype=torch.bool)
    for part in blocks(crowds, match.numel()):
        inside |= (intersection_over_own_area(boxes, crowds[:, part]) >= overlap).any(dim=-1)
    return match.masked_fill(inside & (match == BACKGROUND), IGNORED)
