"""From scores and deltas to proposals and to detections.

All numbers are per image: no image's boxes depend on how many its neighbours in the batch have.

Symbols: N images, A_k anchors of level k, P proposals, R RoIs, K classes, D detections.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms, clip_boxes_to_image, remove_small_boxes

from fpn.ops.boxes import decode_boxes
from fpn.settings import NonNegativeFloat, NonNegativeInt, PositiveInt, Share
from fpn.types import Detections, RPNOutput, Size


@dataclass(frozen=True)
class ProposalSelection:
    """Which boxes of the RPN become proposals.

    Args:
        pre_nms_top_n: best boxes of each level that enter non-maximum suppression.
        post_nms_top_n: best boxes of each image that leave it.
        nms_iou: of two boxes of one level with a larger overlap, the worse goes.
        min_size: smaller boxes go, in pixels of the network's input.
    """

    pre_nms_top_n: PositiveInt = 1000
    post_nms_top_n: PositiveInt = 1000
    nms_iou: Share = 0.7
    min_size: NonNegativeFloat = 1e-3


@dataclass(frozen=True)
class DetectionSelection:
    """Which boxes of the Fast R-CNN head become detections.

    Args:
        score_threshold: only boxes with a higher score stay.
        nms_iou: of two boxes of one class with a larger overlap, the worse goes.
        max_detections: best boxes of each image that stay.
        min_size: smaller boxes go, in pixels of the network's input.
    """

    score_threshold: Share = 0.05
    nms_iou: Share = 0.5
    max_detections: NonNegativeInt = 100
    min_size: NonNegativeFloat = 1e-2


def select_proposals(
    output: RPNOutput, sizes: Sequence[Size], box_weights: Sequence[float], selection: ProposalSelection
) -> list[Detections]:
    """The proposals of each image, best first, in pixels of the network's input.

    No gradient flows through them (Faster R-CNN, Sec. 3.2). What is not of finite numbers is none of them.

    Args:
        output: what the RPN says.
        sizes: of the N images, without padding.
        box_weights: factors the deltas carry.
        selection: thresholds and numbers.
    """
    boxes, logits, levels = [], [], []
    for k, objectness in output.objectness.items():
        finite = objectness.detach().masked_fill(~objectness.isfinite(), -torch.inf)
        top, index = finite.topk(min(selection.pre_nms_top_n, objectness.shape[1]), dim=1)
        deltas = output.deltas[k].detach().gather(1, index[..., None].expand(-1, -1, 4))
        box = decode_boxes(deltas, output.anchors[k][index], box_weights)
        # A NaN is smaller than any box that stays.
        boxes.append(box.masked_fill(top.isinf()[..., None], torch.nan))
        logits.append(top)
        levels.append(torch.full_like(index[0], k))
    level = torch.cat(levels)
    proposals = []
    for image_boxes, image_logits, size in zip(torch.cat(boxes, 1), torch.cat(logits, 1), sizes, strict=True):
        box = clip_boxes_to_image(image_boxes, size)
        keep = remove_small_boxes(box, selection.min_size)
        box, score = box[keep], image_logits[keep].sigmoid()
        keep = batched_nms(box, score, level[keep], selection.nms_iou)[: selection.post_nms_top_n]
        proposals.append(Detections(box[keep], score[keep], torch.ones_like(keep)))
    return proposals


def select_detections(
    scores: Tensor,
    deltas: Tensor,
    proposals: Sequence[Tensor],
    sizes: Sequence[Size],
    box_weights: Sequence[float],
    selection: DetectionSelection,
) -> list[Detections]:
    """The detections of each image, best first, in pixels of the network's input.

    Args:
        scores: (R, K + 1) logits, image after image.
        deltas: (R, K + 1, 4).
        proposals: of the N images, R in all.
        sizes: of the N images, without padding.
        box_weights: factors the deltas carry.
        selection: thresholds and numbers.
    """
    probabilities = scores.softmax(dim=-1)
    numbers = [len(p) for p in proposals]
    detections = []
    for probability, delta, proposal, size in zip(
        probabilities.split(numbers), deltas.split(numbers), proposals, sizes, strict=True
    ):
        roi, label = torch.where(probability[:, 1:] > selection.score_threshold)
        label = label + 1
        score = probability[roi, label]
        box = clip_boxes_to_image(decode_boxes(delta[roi, label], proposal[roi], box_weights), size)
        keep = remove_small_boxes(box, selection.min_size)
        box, score, label = box[keep], score[keep], label[keep]
        keep = batched_nms(box, score, label, selection.nms_iou)[: selection.max_detections]
        detections.append(Detections(box[keep], score[keep], label[keep]))
    return detections


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
