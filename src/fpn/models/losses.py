"""The four losses of Faster R-CNN, in float32 (Fast R-CNN, eq. 1; Faster R-CNN, eq. 1).

Each is a mean over all that was sampled in the batch, and 0 with zero gradients where nothing was. The box
losses are modules that a detector is given: a `BoxLoss` of one's own is one class.

Of several processes each takes the mean over its own batch, as in torchvision and Detectron2.
The average of their gradients is that of one process with all the images wherever they sampled
equal numbers, as they do but for images with fewer anchors or RoIs than are wanted.

Symbols: N images, A anchors of all levels, R RoIs, K classes, F foreground: anchors or RoIs with an object.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import complete_box_iou_loss, distance_box_iou_loss, generalized_box_iou_loss

from fpn.described import Described
from fpn.models.targets import AnchorTargets, RoITargets
from fpn.ops.boxes import decode_boxes
from fpn.settings import NonNegativeFloat


class BoxLoss(Described, nn.Module, ABC):
    """What it costs to put boxes beside the objects; the base class of all box losses."""

    @abstractmethod
    def forward(
        self, predicted: Tensor, wanted: Tensor, references: Tensor, box_weights: Sequence[float]
    ) -> Tensor:
        """The sum over the foreground, which the detector divides by the number of all that was sampled.

        Args:
            predicted: (F, 4) deltas.
            wanted: (F, 4) deltas to the objects.
            references: (F, 4) anchors or RoIs that the deltas move, in pixels of the network's input.
            box_weights: factors that both kinds of deltas carry.

        Returns:
            A scalar; with F = 0 it is 0, with gradients of zero.
        """


class SmoothL1(BoxLoss):
    """The smooth L1 of the deltas (Fast R-CNN, eq. 3).

    Args:
        beta: where it turns from square to straight; 0 makes it plain L1.
    """

    def __init__(self, beta: NonNegativeFloat = 1 / 9) -> None:
        super().__init__()
        self.beta = beta

    def forward(
        self, predicted: Tensor, wanted: Tensor, references: Tensor, box_weights: Sequence[float]
    ) -> Tensor:
        """As of `BoxLoss`."""
        return F.smooth_l1_loss(predicted, wanted, reduction="sum", beta=self.beta)


class L1(SmoothL1):
    """The L1 of the deltas, as in Detectron2."""

    def __init__(self) -> None:
        super().__init__(0.0)


class IoULoss(BoxLoss):
    """A loss of the boxes themselves, which the deltas make; the base class of such losses.

    Args:
        weight: factor of the loss.
    """

    def __init__(self, weight: NonNegativeFloat = 1.0) -> None:
        super().__init__()
        self.weight = weight

    def forward(
        self, predicted: Tensor, wanted: Tensor, references: Tensor, box_weights: Sequence[float]
    ) -> Tensor:
        """As of `BoxLoss`."""
        boxes, objects = (decode_boxes(deltas, references, box_weights) for deltas in (predicted, wanted))
        return self.weight * self.of_boxes(boxes, objects)

    @abstractmethod
    def of_boxes(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """The sum over boxes (F, 4) and the objects (F, 4) that they should be."""


class GIoU(IoULoss):
    """The generalized IoU loss (Rezatofighi et al., 2019)."""

    def of_boxes(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """As of `IoULoss`."""
        return generalized_box_iou_loss(boxes, objects, reduction="sum")


class DIoU(IoULoss):
    """The distance IoU loss (Zheng et al., 2020)."""

    def of_boxes(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """As of `IoULoss`."""
        return distance_box_iou_loss(boxes, objects, reduction="sum")


class CIoU(IoULoss):
    """The complete IoU loss (Zheng et al., 2020)."""

    def of_boxes(self, boxes: Tensor, objects: Tensor) -> Tensor:
        """As of `IoULoss`."""
        # Of a box without width and height, the angle of its diagonal would be no number.
        least = boxes[:, :2] + 1e-3
        boxes = torch.cat((boxes[:, :2], boxes[:, 2:].maximum(least)), dim=1)
        return complete_box_iou_loss(boxes, objects, reduction="sum")


def rpn_losses(
    objectness: Tensor,
    deltas: Tensor,
    anchors: Tensor,
    targets: AnchorTargets,
    box_loss: BoxLoss,
    box_weights: Sequence[float],
    per_image: int | None = None,
) -> dict[str, Tensor]:
    """Losses of the RPN.

    Args:
        objectness: (N, A) logits.
        deltas: (N, A, 4).
        anchors: (A, 4).
        targets: the sampled anchors.
        box_loss: of the foreground's deltas.
        box_weights: factors of the deltas.
        per_image: anchors an image that both losses are divided by; None for those that were sampled.

    Returns:
        `rpn_objectness` and `rpn_box`, scalars.
    """
    positive, negative = (objectness.flatten()[rows] for rows in (targets.foreground, targets.background))
    logits = torch.cat((positive, negative))
    truth = torch.cat((torch.ones_like(positive), torch.zeros_like(negative)))
    predicted = deltas.flatten(0, 1)[targets.foreground]
    references = anchors[targets.foreground % len(anchors)]
    number = max(len(logits), 1) if per_image is None else per_image * len(objectness)
    return {
        "rpn_objectness": F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / number,
        "rpn_box": box_loss(predicted, targets.deltas, references, box_weights) / number,
    }


def fast_rcnn_losses(
    scores: Tensor, deltas: Tensor, targets: RoITargets, box_loss: BoxLoss, box_weights: Sequence[float]
) -> dict[str, Tensor]:
    """Losses of the Fast R-CNN head.

    Args:
        scores: (R, K + 1) logits.
        deltas: (R, K + 1, 4), or (R, 1, 4) where all classes have one box.
        targets: the sampled RoIs.
        box_loss: of the foreground's deltas.
        box_weights: factors of the deltas.

    Returns:
        `roi_class` and `roi_box`, scalars.
    """
    some = targets.foreground
    predicted = deltas[some, 0] if deltas.shape[1] == 1 else deltas[some, targets.labels[some]]
    references = targets.rois.boxes[some]
    number = max(len(scores), 1)
    return {
        "roi_class": F.cross_entropy(scores, targets.labels, reduction="sum") / number,
        "roi_box": box_loss(predicted, targets.deltas, references, box_weights) / number,
    }
