"""The detectors: one straight line from images to losses, one from images to boxes.

    images → bottom_up → C2…C5 → neck → P2…P5 → rpn → proposals → roi_head → detections

`ProposalNetwork` is this line up to the proposals, `FasterRCNN` all of it, `FastRCNN` the line without
the RPN, on proposals from a file. `fpn.models.cascade` has a detector of several heads.

Symbols: N images, K classes, R RoIs, B boxes of an RoI (K + 1, or 1 for all classes).
"""

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from fpn.described import Described
from fpn.errors import InputError
from fpn.models.bottom_up import BottomUp, Stages, checked
from fpn.models.losses import BoxLoss, SmoothL1, fast_rcnn_losses, rpn_losses
from fpn.models.necks import FeaturePyramid, Neck
from fpn.models.postprocess import (
    DetectionSelection,
    ProposalSelection,
    merge_detections,
    ranked,
    select_detections,
    select_proposals,
)
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import (
    AnchorSampling,
    GroundTruth,
    RoISampling,
    RoITargets,
    Sample,
    anchor_targets,
    roi_targets,
    sample_anchors,
    sample_rois,
)
from fpn.ops.counting import counts, on_device
from fpn.settings import NonNegativeInt, PositiveInt
from fpn.types import Batch, Detections, Features, Found, Inference, RPNOutput


class Detector(Described, nn.Module, ABC):
    """What a training loop needs of a detector."""

    bottom_up: BottomUp
    finds_objects: ClassVar[bool]
    """Whether it ends in detections with a class, and not in proposals."""
    loss_names: tuple[str, ...] = ()
    """Of its losses, by which callbacks may watch them."""
    reads_proposals: ClassVar[bool] = False
    """Whether it needs `Batch.proposals`."""
    takes_settings_over: ClassVar[bool] = True
    """In a configuration, of parts that both have, from the detector whose place it takes."""

    @abstractmethod
    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """The losses of a batch by name; their sum is to be minimised.

        Args:
            batch: images with their ground truth.
            generator: source of the sampling's randomness, on the images' device.
        """

    @abstractmethod
    def forward(self, batch: Batch) -> Inference:
        """All that is found in a batch, in pixels of the original images."""

    @abstractmethod
    def over_scales(self, batches: Sequence[Batch]) -> Inference:
        """The featurized image pyramid of Fig. 1 (a): what is found in the same images at several sizes.

        Args:
            batches: the same N images, of other sizes in each.

        Returns:
            As `forward`, the results at all sizes merged by non-maximum suppression.
        """

    def find_with_losses(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Inference, dict[str, Tensor]]:
        """What `forward` and `losses` give, for a validation that asks for both.

        The detectors here run their network once for it, but for the head on the RoIs that are sampled.
        """
        return self(batch), self.losses(batch, generator)

    @property
    def toggles(self) -> dict[str, bool]:
        """What its parts were built with or without, by name: true where all that know it were."""
        found: dict[str, bool] = {}
        for part in self.children():
            for name, on in getattr(part, "toggles", {}).items():
                found[name] = on and found.get(name, True)
        return found

    @property
    def counted(self) -> str:
        """The number of its parameters, in words: of each part, in all, and of those that are trained."""
        parts = {name: _size(part.parameters()) for name, part in self.named_children()}
        trained = _size(one for one in self.parameters() if one.requires_grad)
        listed = ", ".join(f"{name} {size:,}" for name, size in parts.items() if size)
        total = f"{_size(self.parameters()):,} parameters"
        return f"{type(self).__name__}: {total}, {trained:,} of them trained: {listed}"

    def detect(self, batch: Batch) -> list[Detections]:
        """The N results of the last stage, in pixels of the original images."""
        found: Inference = self(batch)
        return found.proposals if found.detections is None else found.detections


class _OnPyramid(Detector):
    """A detector that begins with a bottom-up pathway and a neck."""

    neck: Neck
    roi_head: RoIHead
    detections: DetectionSelection
    _kept: list[tuple[Tensor, Any]] | None = None
    """Where more than one thing is asked of the same images: those, and what `_look` has made of them."""

    def find_with_losses(
        self, batch: Batch, generator: torch.Generator | None = None
    ) -> tuple[Inference, dict[str, Tensor]]:
        """As of `Detector`."""
        self._kept = []
        try:
            return super().find_with_losses(batch, generator)
        finally:
            self._kept = None

    def _outputs(self, batch: Batch) -> Any:
        for images, outputs in self._kept or ():
            if images is batch.images:
                return outputs
        outputs = self._look(batch)
        if self._kept is not None:
            self._kept.append((batch.images, outputs))
        return outputs

    def _look(self, batch: Batch) -> Any:
        p: Features = self.neck(self.bottom_up(batch.images))
        known = min(self.bottom_up.strides, default=max(p) + 1)
        return {k: checked(x, k, batch.images, part="neck") if k < known else x for k, x in p.items()}

    def _find_objects(self, p: Features, proposals: Found, sizes: Tensor) -> Found:
        scores, deltas = self.roi_head.on_places(p, proposals.boxes, proposals.there)
        return select_detections(scores, deltas, proposals, sizes, self.roi_head.box_weights, self.detections)


class ProposalNetwork(_OnPyramid):
    """The region proposal network alone: Table 1.

    Args:
        classes: K of the data. Proposals are class-agnostic: every class is an object.
        bottom_up: the bottom-up pathway.
        neck: from the bottom-up's maps to those the RPN reads.
        rpn: anchors and head.
        anchor_sampling: which anchors the RPN learns from.
        training_proposals: which boxes of the RPN are proposals in training.
        testing_proposals: which boxes of the RPN are proposals in testing.
        rpn_box_loss: of the RPN's boxes: a class of them, or one.
        rpn_loss_per_image: the RPN's losses are divided by so many anchors an image, as in Detectron2 by
            those of `anchor_sampling` even where fewer are found; null for those that were sampled.
    """

    finds_objects = False
    loss_names: tuple[str, ...] = ("rpn_objectness", "rpn_box")

    def __init__(
        self,
        classes: int,
        bottom_up: Callable[[], BottomUp] = ResNet,
        neck: Callable[[Mapping[int, int]], Neck] = FeaturePyramid,
        rpn: Callable[[Neck], RegionProposalNetwork] = RegionProposalNetwork,
        anchor_sampling: AnchorSampling = AnchorSampling(),
        training_proposals: ProposalSelection = ProposalSelection(2000, 2000),
        testing_proposals: ProposalSelection = ProposalSelection(1000, 1000),
        rpn_box_loss: Callable[[], BoxLoss] = SmoothL1,
        rpn_loss_per_image: PositiveInt | None = None,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.bottom_up = bottom_up()
        self.neck = neck(self.bottom_up.channels)
        self.rpn = rpn(self.neck)
        self.anchor_sampling = anchor_sampling
        self.training_proposals, self.testing_proposals = training_proposals, testing_proposals
        self.rpn_box_loss, self.rpn_loss_per_image = _made(rpn_box_loss), rpn_loss_per_image
        if not self.finds_objects:
            self.bottom_up.end_at(max(self.neck.inputs))
            _refuse_unread(self.neck, self.rpn.levels)
        if (odd := self.bottom_up.strides.keys() & self.rpn.levels) and self.rpn.grid == "stride":
            raise InputError(_other_stride(self.bottom_up, min(odd), "rpn.grid stride", "take spread"))

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`rpn_objectness` and `rpn_box`."""
        _, output = self._outputs(batch)
        truth = _ground_truth(batch)
        anchors = self._sample_anchors(output, truth, size_table(batch), generator)
        unfit, *numbers = counts(truth.unfit, *anchors.masks)
        _refuse_unfit(truth, unfit)
        return self._rpn_losses(output, anchors, truth, *numbers)

    def forward(self, batch: Batch) -> Inference:
        """What `found` gives, in pixels of the original images."""
        return _handed_over(batch, *self.found(batch, size_table(batch)))

    def found(self, batch: Batch, sizes: Tensor) -> tuple[Found, ...]:
        """What each stage finds, in fixed shapes and in pixels of the network's input.

        Args:
            batch: of which only the images are looked at.
            sizes: (N, 2) of these, without padding.
        """
        _, output = self._outputs(batch)
        return (self._propose(output, sizes),)

    def over_scales(self, batches: Sequence[Batch]) -> Inference:
        """Proposals only, as many as at one size."""
        selection = self.testing_proposals
        found = [self.forward(batch).proposals for batch in batches]
        return Inference(_merge(found, selection.nms_iou, selection.post_nms_top_n), None)

    def _look(self, batch: Batch) -> tuple[Features, RPNOutput]:
        p = super()._look(batch)
        return p, self.rpn(p, batch.images.shape[-2:])

    def _propose(self, output: RPNOutput, sizes: Tensor) -> Found:
        return select_proposals(output, sizes, self.rpn.box_weights, self.testing_proposals)

    def _sample_anchors(
        self, output: RPNOutput, truth: GroundTruth, sizes: Tensor, generator: torch.Generator | None
    ) -> Sample:
        anchors = torch.cat(list(output.anchors.values()))
        return sample_anchors(anchors, truth, sizes, self.anchor_sampling, generator)

    def _rpn_losses(
        self, output: RPNOutput, sample: Sample, truth: GroundTruth, foreground: int, background: int
    ) -> dict[str, Tensor]:
        anchors = torch.cat(list(output.anchors.values()))
        weights = self.rpn.box_weights
        return rpn_losses(
            torch.cat(list(output.objectness.values()), dim=1),
            torch.cat(list(output.deltas.values()), dim=1),
            anchors,
            anchor_targets(sample, anchors, truth, weights, foreground, background),
            self.rpn_box_loss,
            weights,
            self.rpn_loss_per_image,
        )


class FasterRCNN(ProposalNetwork):
    """RPN and Fast R-CNN on one pyramid, trained jointly: Tables 3 to 5.

    Args:
        classes: K of the data.
        roi_head: RoI pooling, head and predictor.
        roi_sampling: which RoIs the head learns from.
        detections: which boxes of the head are detections.
        roi_box_loss: of the head's boxes: a class of them, or one.
        **proposal_network: the arguments of `ProposalNetwork`.
    """

    finds_objects = True
    loss_names: tuple[str, ...] = ("rpn_objectness", "rpn_box", "roi_class", "roi_box")

    def __init__(
        self,
        classes: int,
        roi_head: Callable[[Neck, int, Stages], RoIHead] = RoIHead,
        roi_sampling: RoISampling = RoISampling(),
        detections: DetectionSelection = DetectionSelection(),
        roi_box_loss: Callable[[], BoxLoss] = SmoothL1,
        **proposal_network: Any,
    ) -> None:
        super().__init__(classes, **proposal_network)
        self.roi_head = roi_head_on(roi_head, self.neck, classes, self.bottom_up)
        self.roi_sampling, self.detections, self.roi_box_loss = roi_sampling, detections, _made(roi_box_loss)
        _refuse_unread(self.neck, self.rpn.levels + self.roi_head.levels)

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`rpn_objectness`, `rpn_box`, `roi_class` and `roi_box`."""
        p, output = self._outputs(batch)
        truth = _ground_truth(batch)
        sizes = size_table(batch)
        anchors = self._sample_anchors(output, truth, sizes, generator)
        proposals = select_proposals(output, sizes, self.rpn.box_weights, self.training_proposals)
        sample = sample_rois(proposals, truth, self.roi_sampling, generator)
        rois = SampledRoIs(self.roi_head, truth, *sample)
        unfit, foreground, background, *numbers = counts(truth.unfit, *anchors.masks, *rois.masks)
        _refuse_unfit(truth, unfit)
        losses = self._rpn_losses(output, anchors, truth, foreground, background)
        return losses | self._roi_losses(p, rois, numbers, sizes)

    def found(self, batch: Batch, sizes: Tensor) -> tuple[Found, ...]:
        """Proposals and detections, as of `ProposalNetwork`."""
        p, output = self._outputs(batch)
        proposals = self._propose(output, sizes)
        return proposals, self._find_objects(p, proposals, sizes)

    def over_scales(self, batches: Sequence[Batch]) -> Inference:
        """Proposals and detections, each as many as at one size."""
        found = [self.forward(batch) for batch in batches]
        selection = self.testing_proposals
        return Inference(
            _merge([f.proposals for f in found], selection.nms_iou, selection.post_nms_top_n),
            _merge_objects([f.detections for f in found], self.detections),
        )

    def _roi_losses(
        self, p: Features, rois: "SampledRoIs", numbers: Sequence[int], sizes: Tensor
    ) -> dict[str, Tensor]:
        return rois.learned(p, numbers).losses(self.roi_box_loss)


class FastRCNN(_OnPyramid):
    """Fast R-CNN on a pyramid, on proposals from a file: Table 2, and half of alternating training.

    Args:
        classes: K of the data.
        bottom_up: the bottom-up pathway.
        neck: from the bottom-up's maps to those the head reads.
        roi_head: RoI pooling, head and predictor.
        roi_sampling: which RoIs the head learns from.
        detections: which boxes of the head are detections.
        training_top_n: best proposals of each image that are used in training …
        testing_top_n: … and in testing.
        roi_box_loss: of the head's boxes: a class of them, or one.
    """

    finds_objects = True
    loss_names: tuple[str, ...] = ("roi_class", "roi_box")
    reads_proposals = True

    def __init__(
        self,
        classes: int,
        bottom_up: Callable[[], BottomUp] = ResNet,
        neck: Callable[[Mapping[int, int]], Neck] = FeaturePyramid,
        roi_head: Callable[[Neck, int, Stages], RoIHead] = RoIHead,
        roi_sampling: RoISampling = RoISampling(),
        detections: DetectionSelection = DetectionSelection(),
        training_top_n: NonNegativeInt = 2000,
        testing_top_n: NonNegativeInt = 1000,
        roi_box_loss: Callable[[], BoxLoss] = SmoothL1,
    ) -> None:
        super().__init__()
        self.bottom_up = bottom_up()
        self.neck = neck(self.bottom_up.channels)
        self.roi_head = roi_head_on(roi_head, self.neck, classes, self.bottom_up)
        _refuse_unread(self.neck, self.roi_head.levels)
        self.roi_sampling, self.detections, self.roi_box_loss = roi_sampling, detections, _made(roi_box_loss)
        self.training_top_n, self.testing_top_n = training_top_n, testing_top_n

    def losses(self, batch: Batch, generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """`roi_class` and `roi_box`."""
        proposals = _given_proposals(batch, self.training_top_n)
        p = self._outputs(batch)
        truth = _ground_truth(batch)
        sample = sample_rois(proposals, truth, self.roi_sampling, generator)
        rois = SampledRoIs(self.roi_head, truth, *sample)
        unfit, *numbers = counts(truth.unfit, *rois.masks)
        _refuse_unfit(truth, unfit)
        return rois.learned(p, numbers).losses(self.roi_box_loss)

    def forward(self, batch: Batch) -> Inference:
        """The given proposals, scored by their rank, and the detections made of them."""
        proposals = _given_proposals(batch, self.testing_top_n)
        p = self._outputs(batch)
        detections = self._find_objects(p, proposals, size_table(batch))
        return _handed_over(batch, proposals, detections)

    def over_scales(self, batches: Sequence[Batch]) -> Inference:
        """The given proposals, and detections, as many as at one size."""
        found = [self.forward(batch) for batch in batches]
        return Inference(found[0].proposals, _merge_objects([f.detections for f in found], self.detections))


def roi_head_on(
    make: Callable[[Neck, int, Stages], RoIHead], neck: Neck, classes: int, bottom_up: BottomUp
) -> RoIHead:
    """A head on a neck; a further one has a copy of the bottom-up's stages that the first one took.

    Raises:
        InputError: it cannot pool from a level it reads.
    """
    above = copy.deepcopy(bottom_up.taken[0]) if bottom_up.taken else bottom_up.end_at(max(neck.inputs))
    head = make(neck, classes, above)
    if odd := [k for k in head.levels if k >= min(bottom_up.strides, default=k + 1)]:
        remedy = f"leave it out of roi_head.levels {list(head.levels)}"
        raise InputError(_other_stride(bottom_up, odd[0], "pooling of RoIs", remedy))
    # Their weights are the bottom-up's to load.
    bottom_up.taken += tuple(module for module in head.modules() if isinstance(module, Stages))
    return head


def _other_stride(bottom_up: BottomUp, level: int, what: str, remedy: str) -> str:
    return f"level {level} of {bottom_up.name} has no stride of {2**level} pixels, as {what} needs: {remedy}"


def size_table(batch: Batch) -> Tensor:
    """(N, 2) float32 sizes of a batch's images without padding, on their device."""
    return on_device(batch.sizes, batch.images.device, torch.float32)


def _given_proposals(batch: Batch, number: int) -> Found:
    if batch.proposals is None:
        raise InputError(
            "FastRCNN needs proposals: give data.train.proposals, data.val.proposals or data.test.proposals "
            "(`fpn predict --annotations` writes them)"
        )
    return ranked([boxes[:number] for boxes in batch.proposals])


class SampledRoIs:
    """The RoIs that a head learns from, before the host knows how many they are.

    Args:
        head: which.
        truth: the ground truth.
        sample: labels and places of the RoIs …
        candidates: … among these boxes (N, ·, 4).
    """

    def __init__(self, head: RoIHead, truth: GroundTruth, sample: Sample, candidates: Tensor) -> None:
        self.head, self.truth, self.sample, self.candidates = head, truth, sample, candidates
        boxes = candidates.gather(1, sample.chosen[..., None].expand(-1, -1, 4))
        self.level = head.level_of(boxes).masked_fill(~sample.taken, -1)
        self.masks = (*sample.masks, *head.masks(self.level))
        """Whose numbers `learned` takes."""

    def learned(self, p: Features, numbers: Sequence[int]) -> "Learned":
        """What the head says of them, and should say.

        Args:
            p: the maps.
            numbers: how many are true in each of `masks`.
        """
        foreground, background, *by_level = numbers
        weights = self.head.box_weights
        targets = roi_targets(
            self.sample, self.candidates, self.truth, weights, foreground, foreground + background
        )
        rois = targets.rois._replace(level=self.level.flatten()[targets.places], by_level=by_level)
        scores, deltas = self.head(p, rois)
        return Learned(scores, deltas, targets, weights)


class Learned(NamedTuple):
    """What a head says of the RoIs it learns from."""

    scores: Tensor
    """(R, K + 1) logits."""
    deltas: Tensor
    """(R, B, 4)."""
    targets: RoITargets
    """What it should say."""
    box_weights: Sequence[float]
    """Factors of the deltas."""

    def losses(self, box_loss: BoxLoss) -> dict[str, Tensor]:
        """`roi_class` and `roi_box`."""
        return fast_rcnn_losses(self.scores, self.deltas, self.targets, box_loss, self.box_weights)


def _handed_over(batch: Batch, *found: Found) -> Inference:
    """What was found, in pixels of the original images; the host waits for it."""
    numbers = torch.stack([one.there.sum(dim=1) for one in found]).tolist()
    factors = [
        (new[1] / old[1], new[0] / old[0]) * 2
        for old, new in zip(batch.sizes, batch.original_sizes, strict=True)
    ]
    scale = on_device(factors, batch.images.device, torch.float32)[:, None]
    sets = [
        one._replace(boxes=one.boxes * scale).split(number)
        for one, number in zip(found, numbers, strict=True)
    ]
    return Inference(sets[0], sets[1] if len(sets) > 1 else None)


def _merge(found: Sequence[list[Detections]], nms_iou: float, number: int) -> list[Detections]:
    """The sets of each image over all sizes, from those of each size over all images."""
    return [merge_detections(of_image, nms_iou, number) for of_image in zip(*found, strict=True)]


def _merge_objects(
    found: Sequence[list[Detections] | None], selection: DetectionSelection
) -> list[Detections]:
    """As `_merge`, of detections."""
    if selection.suppression != "hard":  # scores that are lowered already would be lowered once more
        raise InputError("an image pyramid needs detections.suppression hard")
    sets = [of_size for of_size in found if of_size is not None]
    return _merge(sets, selection.nms_iou, selection.max_detections)


def _made(loss: Callable[[], BoxLoss] | BoxLoss) -> BoxLoss:
    return loss if isinstance(loss, BoxLoss) else loss()


def _refuse_unread(neck: Neck, levels: tuple[int, ...]) -> None:
    # Its layers would have no gradient, which distributed training does not forgive.
    if unread := [k for k in neck.levels if k not in levels and not (k == neck.levels[-1] < max(levels))]:
        raise InputError(f"no head reads level {unread[0]} of the neck: leave it out of neck.levels")


def _ground_truth(batch: Batch) -> GroundTruth:
    if batch.targets is None:
        raise InputError("this batch has no ground truth to learn from")
    return GroundTruth.of(batch.targets)


def _refuse_unfit(truth: GroundTruth, unfit: int) -> None:
    if unfit:
        labels = truth.labels[truth.unfit]
        if (labels < 1).any():
            raise InputError(
                f"a true box has the label {labels.min()}: objects have 1…K, 0 is the background"
            )
        x1, y1, x2, y2 = truth.boxes[truth.unfit][0].tolist()
        raise InputError(
            f"a true box has no width or height, or is not finite: x1 {x1:g}, y1 {y1:g}, x2 {x2:g}, y2 {y2:g}"
        )


def _size(parameters: Iterable[Tensor]) -> int:
    return sum(parameter.numel() for parameter in parameters)
