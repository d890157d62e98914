"""From scores and deltas to proposals and to detections.

All numbers are per image: no image's boxes depend on how many its neighbours in the batch have.

Symbols: N images, A_k anchors of level k, P places for proposals of an image, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms

from fpn.ops.boxes import clip_boxes, decode_boxes
from fpn.ops.counting import padded
from fpn.ops.suppression import soft_suppress, suppress
from fpn.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt, Share
from fpn.types import Detections, Found, RPNOutput


@dataclass(frozen=True)
class ProposalSelection:
    """Which boxes of the RPN become proposals.

    Args:
        pre_nms_top_n: best boxes of each level that enter non-maximum suppression.
        post_nms_top_n: best boxes of each image that leave it.
        nms_iou: of two boxes of one level with a larger overlap, the worse goes.
        min_size: smaller boxes go, in pixels of the network's input.
        score_threshold: boxes with a lower score go, before non-maximum suppression.
    """

    pre_nms_top_n: PositiveInt = 1000
    post_nms_top_n: PositiveInt = 1000
    nms_iou: Share = 0.7
    min_size: NonNegativeFloat = 1e-3
    score_threshold: Share = 0.0


@dataclass(frozen=True)
class DetectionSelection:
    """Which boxes of the Fast R-CNN head become detections.

    Args:
        score_threshold: only boxes with a higher score stay.
        nms_iou: of two boxes of one class with a larger overlap, the worse goes.
        max_detections: best boxes of each image that stay.
        min_size: smaller boxes go, in pixels of the network's input.
        suppression: hard, or Soft-NMS (Bodla et al., 2017): what a better box of its class overlaps loses
            score in place of going, and goes if it no longer passes `score_threshold`. gaussian multiplies
            scores by exp(-IoU² / sigma); linear by 1 - IoU, at overlaps above `nms_iou`.
        sigma: of gaussian alone.
    """

    score_threshold: Share = 0.05
    nms_iou: Share = 0.5
    max_detections: NonNegativeInt = 100
    min_size: NonNegativeFloat = 1e-2
    suppression: Literal["hard", "gaussian", "linear"] = "hard"
    sigma: PositiveFloat = 0.5


def ranked(boxes: Sequence[Tensor]) -> Found:
    """Sets of boxes (·, 4), best first, as what is found: scored by rank, from 1 to 0, and labelled 1."""
    scores = padded([torch.linspace(1, 0, len(one), device=one.device) for one in boxes], -1)
    labels = torch.ones_like(scores, dtype=torch.int64)
    return Found(padded(boxes, 0), scores.clamp(min=0), labels, scores >= 0)


def select_proposals(
    output: RPNOutput, sizes: Tensor, box_weights: Sequence[float], selection: ProposalSelection
) -> Found:
    """The proposals of each image, best first, in pixels of the network's input.

    No gradient flows through them (Faster R-CNN, Sec. 3.2). What is not of finite numbers is none of them.

    Args:
        output: what the RPN says.
        sizes: (N, 2) of the images, without padding.
        box_weights: factors the deltas carry.
        selection: thresholds and numbers.
    """
    number = selection.pre_nms_top_n
    if not torch.compiler.is_exporting():
        number = min(number, max(anchors.shape[0] for anchors in output.anchors.values()))
    objectness = torch.cat(list(output.objectness.values()), dim=1).detach()
    finite = objectness.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
    logits, indices, first = [], [], 0
    for anchors in output.anchors.values():
        end = first + anchors.shape[0]
        # As many places on each level, although the coarsest may have fewer anchors.
        top, index = F.pad(finite[:, first:end], (0, number), value=-torch.inf).topk(number, dim=1)
        logits.append(top)
        indices.append((index + first).clamp(max=end - 1))
        first = end
    logit, index = torch.stack(logits, dim=1), torch.stack(indices, dim=1)
    deltas = torch.cat(list(output.deltas.values()), dim=1).detach()
    deltas = deltas.gather(1, index.flatten(1)[..., None].expand(-1, -1, 4)).view(*index.shape, 4)
    box = decode_boxes(deltas, torch.cat(list(output.anchors.values()))[index], box_weights)
    box = clip_boxes(box, sizes)
    score = logit.sigmoid()
    there = (logit > -torch.inf) & _large(box, selection.min_size)
    if selection.score_threshold > 0:
        there &= score >= selection.score_threshold
    found = _best(box, score, there, selection.nms_iou, selection.post_nms_top_n)
    return found._replace(labels=torch.ones_like(found.labels))


def select_detections(
    scores: Tensor,
    deltas: Tensor,
    proposals: Found,
    sizes: Tensor,
    box_weights: Sequence[float],
    selection: DetectionSelection,
) -> Found:
    """The detections of each image, best first, in pixels of the network's input.

    Args:
        scores: (N, P, K + 1) logits of the proposals; of places that are not taken, anything.
        deltas: (N, P, K + 1, 4), or (N, P, 1, 4) where all classes have one box.
        proposals: P places an image.
        sizes: (N, 2) of the images, without padding.
        box_weights: factors the deltas carry.
        selection: thresholds and numbers.
    """
    probability = scores.softmax(dim=-1)[..., 1:].transpose(1, 2)
    moves = deltas if deltas.shape[2] == 1 else deltas[:, :, 1:]
    box = decode_boxes(moves.transpose(1, 2), proposals.boxes[:, None], box_weights)
    box = clip_boxes(box, sizes)
    there = (probability > selection.score_threshold) & proposals.there[:, None]
    there &= _large(box, selection.min_size)
    if box.shape[1] < probability.shape[1]:
        box = box.expand(*probability.shape, 4)
    if selection.suppression != "hard":
        return _softened(box, probability.where(there, 0), selection)
    return _best(box, probability, there, selection.nms_iou, selection.max_detections)


def _large(boxes: Tensor, min_size: float) -> Tensor:
    """Which boxes (..., 4) are not small; a box of NaN is."""
    return (boxes[..., 2:] - boxes[..., :2] >= min_size).all(dim=-1)


def _best(boxes: Tensor, scores: Tensor, there: Tensor, nms_iou: float, number: int) -> Found:
    """What non-maximum suppression leaves, over all groups of an image.

    Args:
        boxes: (N, groups, each, 4); only boxes of one group suppress one another.
        scores: (N, groups, each).
        there: (N, groups, each) which of these places are taken.
        nms_iou: of two boxes with a larger overlap, the worse goes.
        number: best boxes of each image that stay.

    Returns:
        The best, labelled by their groups, from 1.
    """
    scores = scores.where(there, -torch.inf)
    keep = suppress(boxes.flatten(0, 1), scores.flatten(0, 1), nms_iou)
    scores = scores.flatten(1).where(keep.reshape(scores.shape[0], -1), -torch.inf)
    if torch.compiler.is_exporting():
        best, index = scores.topk(min(number, scores.shape[1]), dim=1)
    else:  # of equal scores the same, however many places there are: those depend on an image's neighbours
        best, index = (part[:, :number] for part in scores.sort(dim=1, descending=True, stable=True))
    there = best > -torch.inf
    box = boxes.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
    return Found(box.where(there[..., None], 0), best.where(there, 0), index // boxes.shape[2] + 1, there)


def _softened(boxes: Tensor, scores: Tensor, selection: DetectionSelection) -> Found:
    """As `_best`, by Soft-NMS; scores are 0 in places that are not taken."""
    sigma = selection.sigma if selection.suppression == "gaussian" else None
    number = selection.max_detections
    if not torch.compiler.is_exporting():
        number = min(number, boxes.shape[1] * boxes.shape[2])
    index, best = soft_suppress(boxes, scores, number, selection.nms_iou, sigma)
    there = best > selection.score_threshold
    box = boxes.flatten(1, 2).gather(1, index[..., None].expand(-1, -1, 4))
    return Found(box.where(there[..., None], 0), best.where(there, 0), index // boxes.shape[2] + 1, there)


def merge_detections(found: Sequence[Detections], nms_iou: float, number: int) -> Detections:
    """What was found in one image several times over, once and best first.

    Args:
        found: in pixels of one and the same image.
        nms_iou: of two boxes of one label with a larger overlap, the worse goes.
        number: best boxes that stay.
    """
    boxes, scores, labels = (torch.cat(part) for part in zip(*found, strict=True))
    keep = batched_nms(boxes, scores, labels, nms_iou)[:number]
    return Detections(boxes[keep], scores[keep], labels[keep])
