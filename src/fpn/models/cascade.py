"""Cascade R-CNN: heads of growing demands, each on the boxes of the one before (Cai & Vasconcelos, 2018).

    proposals → roi_head → boxes → later_heads[0] → boxes → later_heads[1] → detections

What the paper leaves open is as in Detectron2: all RoIs that the first stage samples, true boxes among them,
go through all stages, and each stage labels them anew; the features get the mean of the stages' gradients.
Left out of what the later stages learn from are RoIs without area and, by `roi_sampling.crowd_overlap` as in
the first stage, background in crowds.

Symbols: N images, S places of a sample, K classes, B boxes of an RoI (K + 1, or 1 for all classes).
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fpn.models.bottom_up import Stages
from fpn.models.detectors import FasterRCNN, Learned, SampledRoIs, roi_head_on
from fpn.models.necks import Neck
from fpn.models.postprocess import select_detections
from fpn.models.roi_head import RoIHead
from fpn.models.targets import Sample, all_rois
from fpn.ops.boxes import clip_boxes, decode_boxes
from fpn.ops.counting import counts
from fpn.settings import Share
from fpn.types import Features, Found


def _loss_names(stages: int) -> tuple[str, ...]:
    of_heads = [f"roi_{kind}_{number}" for number in range(1, stages + 1) for kind in ("class", "box")]
    return ("rpn_objectness", "rpn_box", *of_heads)


class CascadeRCNN(FasterRCNN):
    """Faster R-CNN whose detections are refined by further heads of the same kind.

    In testing the scores of an RoI are the mean over all heads, its boxes those of the last. The paper's
    heads have one box for all classes, `roi_head.class_agnostic`. Where they have one for each, an RoI
    goes on as that of the class it scores best.

    To `lr_factors`, `frozen_parts` and `start_parts` the first head is `roi_head`, the others `later_heads`.

    Each stage behind the first waits for the device once, to learn how many RoIs it pools from each level:
    not to wait, it would have to pool all of them from every level.

    Args:
        classes: K of the data.
        roi_head: of every stage. Its box weights are the first one's, the second has them twice, and so on.
        later_ious: of each stage behind the first: an RoI with this overlap with an object is one, with less
            it is background. The first one's is that of `roi_sampling`.
        **faster_rcnn: the arguments of `FasterRCNN`.
    """

    loss_names: tuple[str, ...] = _loss_names(3)

    def __init__(
        self,
        classes: int,
        roi_head: Callable[[Neck, int, Stages], RoIHead] = RoIHead,
        later_ious: Sequence[Share] = (0.6, 0.7),
        **faster_rcnn: Any,
    ) -> None:
        super().__init__(classes, roi_head=roi_head, **faster_rcnn)
        self.later_ious = tuple(later_ious)
        self.later_heads = nn.ModuleList(
            roi_head_on(roi_head, self.neck, classes, self.bottom_up) for _ in self.later_ious
        )
        for number, head in enumerate(self.heads, 1):
            head.box_weights = tuple(number * weight for weight in head.box_weights)
        self.loss_names = _loss_names(len(self.heads))

    @property
    def heads(self) -> list[RoIHead]:
        """Those of all stages."""
        return [self.roi_head, *self.later_heads]

    def _roi_losses(
        self, p: Features, rois: SampledRoIs, numbers: Sequence[int], sizes: Tensor
    ) -> dict[str, Tensor]:
        shared = {k: _Shared.apply(x, len(self.heads)) for k, x in p.items()}
        learned = rois.learned(shared, numbers)
        losses = _named(learned.losses(self.roi_box_loss), 1)
        for number, (iou, head) in enumerate(zip(self.later_ious, self.heads[1:], strict=True), 2):
            sampling = replace(self.roi_sampling, foreground_iou=iou, background_iou=iou)
            boxes = clip_boxes(_moved_places(rois.sample, learned), sizes)
            rois = SampledRoIs(head, rois.truth, *all_rois(boxes, rois.truth, sampling))
            learned = rois.learned(shared, counts(*rois.masks))
            losses |= _named(learned.losses(self.roi_box_loss), number)
        return losses

    def _find_objects(self, p: Features, proposals: Found, sizes: Tensor) -> Found:
        found = proposals
        scores, deltas = self.roi_head.on_places(p, found.boxes, found.there)
        said = [scores.log_softmax(dim=-1)]
        for before, head in pairwise(self.heads):
            boxes = _moved(found.boxes, scores, deltas, before.box_weights)
            found = found._replace(boxes=clip_boxes(boxes, sizes))
            scores, deltas = head.on_places(p, found.boxes, found.there)
            said.append(scores.log_softmax(dim=-1))
        # The logarithm of the mean but for a constant, which a softmax passes over.
        mean = torch.stack(said).logsumexp(dim=0)
        return select_detections(mean, deltas, found, sizes, self.heads[-1].box_weights, self.detections)


class _Shared(torch.autograd.Function):
    """A map that several heads read, whose gradient is to be the mean of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, readers: int) -> Tensor:
        ctx.readers = readers
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient / ctx.readers, None


def _named(losses: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    return {f"{name}_{number}": loss for name, loss in losses.items()}


def _moved_places(sample: Sample, learned: Learned) -> Tensor:
    """The boxes (N, S, 4) that a head makes of what it learned from; elsewhere one without area."""
    rois, scores, deltas = learned.targets.rois.boxes, learned.scores.detach(), learned.deltas.detach()
    moved = _moved(rois, scores, deltas, learned.box_weights)
    whole = moved.new_zeros(sample.match.numel(), 4).index_copy(0, learned.targets.places, moved)
    return whole.view(*sample.match.shape, 4)


def _moved(boxes: Tensor, scores: Tensor, deltas: Tensor, box_weights: Sequence[float]) -> Tensor:
    """RoIs (..., 4) where a head with logits (..., K + 1) and deltas (..., B, 4) sees the object."""
    if deltas.shape[-2] > 1:
        best = scores[..., 1:].argmax(dim=-1) + 1
        deltas = deltas.gather(-2, best[..., None, None].expand(*best.shape, 1, 4))
    return decode_boxes(deltas.squeeze(-2), boxes, box_weights)
