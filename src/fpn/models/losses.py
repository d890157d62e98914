"""The four losses of Faster R-CNN, in float32 (Fast R-CNN, eq. 1; Faster R-CNN, eq. 1).

Each is a mean over all that was sampled in the batch, and 0 with zero gradients where nothing was. With β = 0
the box losses are plain L1.

Of several processes each takes the mean over its own batch, as in torchvision and Detectron2.
The average of their gradients is that of one process with all the images wherever they sampled
equal numbers, as they do but for images with fewer anchors or RoIs than are wanted.

Symbols: N images, A anchors of all levels, R RoIs, K classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fpn.errors import at_least
from fpn.models.targets import AnchorTargets, RoITargets


@dataclass(frozen=True)
class LossSettings:
    """Shape of the box losses.

    Args:
        rpn_beta: where the RPN's smooth L1 turns from square to straight.
        roi_beta: the same of the Fast R-CNN head.
        rpn_per_image: the RPN's losses are divided by so many anchors an image, as in Detectron2 by
            AnchorSampling's number even where fewer are found; null for those that were sampled.
    """

    rpn_beta: float = 1 / 9
    roi_beta: float = 1 / 9
    rpn_per_image: int | None = None

    def __post_init__(self) -> None:
        at_least(0, "loss.", rpn_beta=self.rpn_beta, roi_beta=self.roi_beta)
        at_least(1, "loss.", rpn_per_image=self.rpn_per_image)


def rpn_losses(
    objectness: Tensor, deltas: Tensor, targets: Sequence[AnchorTargets], settings: LossSettings
) -> dict[str, Tensor]:
    """Losses of the RPN.

    Args:
        objectness: (N, A) logits.
        deltas: (N, A, 4).
        targets: for each image the sampled anchors.
        settings: shape of the box loss.

    Returns:
        `rpn_objectness` and `rpn_box`, scalars.
    """
    positive = torch.cat([objectness[i, t.foreground] for i, t in enumerate(targets)])
    negative = torch.cat([objectness[i, t.background] for i, t in enumerate(targets)])
    logits = torch.cat((positive, negative))
    truth = torch.cat((torch.ones_like(positive), torch.zeros_like(negative)))
    predicted = torch.cat([deltas[i, t.foreground] for i, t in enumerate(targets)])
    wanted = torch.cat([t.deltas for t in targets])
    number = max(len(logits), 1)
    if settings.rpn_per_image is not None:
        number = settings.rpn_per_image * len(objectness)
    return {
        "rpn_objectness": F.binary_cross_entropy_with_logits(logits, truth, reduction="sum") / number,
        "rpn_box": F.smooth_l1_loss(predicted, wanted, reduction="sum", beta=settings.rpn_beta) / number,
    }


def fast_rcnn_losses(
    scores: Tensor, deltas: Tensor, targets: RoITargets, settings: LossSettings
) -> dict[str, Tensor]:
    """Losses of the Fast R-CNN head.

    Args:
        scores: (R, K + 1) logits.
        deltas: (R, K + 1, 4).
        targets: the sampled RoIs.
        settings: shape of the box loss.

    Returns:
        `roi_class` and `roi_box`, scalars.
    """
    predicted = deltas[targets.foreground, targets.labels[targets.foreground]]
    number = max(len(scores), 1)
    return {
        "roi_class": F.cross_entropy(scores, targets.labels, reduction="sum") / number,
        "roi_box": F.smooth_l1_loss(predicted, targets.deltas, reduction="sum", beta=settings.roi_beta)
        / number,
    }
