"""Detectron2's Faster R-CNN and RPN on FPN, by its own code: its model zoo's configurations, its readers of
annotations and images, its network, losses, optimiser and schedule. Its compiled part is not called for.

Two roundings are ours, as a last bit decides much. Pillow resizes some pixels to another grey level than
torchvision, which therefore does it on both sides. And of anchors that fit an object equally well all are
positive in both codes, but which are equal depends on the last bit of the object's box.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import detectron2
import numpy as np
import torch
from detectron2.config import get_cfg
from detectron2.data import DatasetMapper, MetadataCatalog
from detectron2.data import transforms as T
from detectron2.data.datasets import load_coco_json
from detectron2.layers import FrozenBatchNorm2d
from detectron2.modeling import build_model
from detectron2.solver import build_lr_scheduler, build_optimizer
from detectron2.structures import Boxes
from detectron2.utils.events import EventStorage
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional as image_ops

from benchmarks.comparison import DisagreementError
from benchmarks.inputs import TRAINED, stir
from benchmarks.train import EVERYTHING
from fpn import InputError
from fpn.interop.detectron2 import CONVENTION, from_detectron2
from fpn.ops.boxes import rescale_boxes
from parity.peer import Peer
from parity.plan import Plan

LOSSES = {
    "loss_rpn_cls": "rpn_objectness",
    "loss_rpn_loc": "rpn_box",
    "loss_cls": "roi_class",
    "loss_box_reg": "roi_box",
}
"""Names of the losses, Detectron2's and ours."""
BRIGHTNESS = 57.0
"""By which its images, of 0…255, vary more than ours."""
BOXES = 1e-3
"""Pixels by which rounding may move a box."""


class Detectron2(Peer):
    """Its configuration is a file of its model zoo, with what the plan makes smaller."""

    configs = (CONVENTION,)

    def __init__(
        self, plan: Plan, root: Path, config: str = "faster_rcnn_R_50_FPN_1x", frozen: int = 5 - TRAINED
    ) -> None:
        depth = int(plan.network.removeprefix("resnet"))
        if depth == 10:
            raise InputError("Detectron2 has no resnet10: give network resnet18 or resnet50")
        annotations = root / "annotations" / "instances_train2017.json"
        # Labels count from 0 only in a data set that has a name.
        listed = load_coco_json(str(annotations), str(root / "train2017"), str(root))
        self.listed = {one["image_id"]: one for one in listed}
        # The RPN's losses are divided by this number, so it is the most anchors that there can be.
        side = math.ceil(plan.max_side / 32) * 32
        most = sum(3 * math.ceil(side / 2**level) ** 2 for level in range(2, 7))
        self.detector = {"anchor_sampling": {"per_image": most}, "rpn_loss_per_image": most}
        cfg = get_cfg()
        cfg.merge_from_file(str(file_of(config)))
        cfg.merge_from_list(
            [
                *("MODEL.DEVICE", "cpu"),
                *("MODEL.BACKBONE.FREEZE_AT", frozen),
                *("MODEL.RESNETS.DEPTH", depth),
                *("MODEL.RESNETS.RES2_OUT_CHANNELS", 256 if depth >= 50 else 64),
                *("MODEL.FPN.OUT_CHANNELS", plan.channels),
                *("MODEL.RPN.BATCH_SIZE_PER_IMAGE", most),
                *("MODEL.RPN.POST_NMS_TOPK_TRAIN", plan.proposals),
                *("MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE", EVERYTHING),
                *("MODEL.ROI_HEADS.NUM_CLASSES", len(MetadataCatalog.get(str(root)).thing_classes)),
                *("MODEL.ROI_HEADS.SCORE_THRESH_TEST", 0.0),
                *("MODEL.ROI_BOX_HEAD.FC_DIM", plan.hidden),
                *("INPUT.MIN_SIZE_TRAIN", (plan.short_side,)),
                *("INPUT.MAX_SIZE_TRAIN", plan.max_side),
                *("INPUT.MIN_SIZE_TEST", plan.short_side),
                *("INPUT.MAX_SIZE_TEST", plan.max_side),
                *("INPUT.RANDOM_FLIP", "none"),
                *("SOLVER.BASE_LR", plan.lr),
                *("SOLVER.MOMENTUM", plan.momentum),
                *("SOLVER.WEIGHT_DECAY", plan.weight_decay),
                *("SOLVER.MAX_ITER", plan.steps),
                *("SOLVER.STEPS", (plan.milestone,)),
                *("SOLVER.WARMUP_ITERS", plan.warmup),
            ]
        )
        torch.manual_seed(0)
        self.model = build_model(cfg)
        stir(FrozenBatchNorm2d, self.model)
        with torch.no_grad():
            self.model.get_parameter("backbone.bottom_up.stem.conv1.weight").div_(BRIGHTNESS)
        # Where the network reckons in float64 too, as ours are.
        self.model.get_submodule("proposal_generator.anchor_generator").to(torch.float32)
        self.optimiser = build_optimizer(cfg, self.model)
        self.scheduler = build_lr_scheduler(cfg, self.optimiser)
        self.mappers = {train: DatasetMapper(cfg, is_train=train) for train in (True, False)}

    def prepared(self, image: dict[str, Any], train: bool) -> dict[str, Any]:
        """What its network is given of an image in its own list.

        Raises:
            DisagreementError: boxes are not where ours are.
        """
        with patch.object(T.ResizeTransform, "apply_image", resized):
            given: dict[str, Any] = self.mappers[train](image)
        if train:
            boxes = torch.tensor([one["bbox"] for one in image["annotations"]], dtype=torch.float64)
            boxes[:, 2:] += boxes[:, :2]
            old = (image["height"], image["width"])
            boxes = boxes.clamp(min=0).minimum(torch.tensor(old[::-1] * 2)).to(torch.float32)
            ours, theirs = rescale_boxes(boxes, old, given["image"].shape[1:]), given["instances"].gt_boxes
            if theirs.tensor.shape != ours.shape or (theirs.tensor - ours).abs().max() > BOXES:
                raise DisagreementError(f"{image['file_name']}: its boxes are not ours")
            theirs.tensor = ours.to(torch.get_default_dtype())
        return given

    def grey_levels(self) -> tuple[int, float]:
        """By how much Pillow resizes the training images otherwise, at most and in the mean."""
        apart = [
            (self.mappers[False](one)["image"].int() - self.prepared(one, False)["image"]).abs().flatten()
            for one in self.listed.values()
        ]
        return int(max(one.max() for one in apart)), float(torch.cat(apart).double().mean())

    def losses(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """As of a peer."""
        given = [self.prepared(self.listed[image], True) for image in ids]
        with EventStorage(), patch.object(Boxes, "__init__", of_any_precision):
            found = self.model(given)
        return {LOSSES[name]: loss for name, loss in found.items()}

    def set_rate(self, step: int) -> None:
        """As of a peer."""
        if step:
            self.scheduler.step()

    def as_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As of a peer."""
        return from_detectron2(state, "Detectron2's model")

    def detect(self, file: Path) -> list[Tensor]:
        """As of a peer."""
        with Image.open(file) as image:
            w, h = image.size
        (found,) = self.model([self.prepared({"file_name": str(file), "height": h, "width": w}, False)])
        if "instances" in found:
            objects = found["instances"]
            return [objects.pred_boxes.tensor, objects.scores, objects.pred_classes + 1]
        boxes, logits = found["proposals"].proposal_boxes.tensor, found["proposals"].objectness_logits
        return [boxes, logits.sigmoid(), torch.ones(len(boxes), dtype=torch.int64)]


def of_any_precision(boxes: Boxes, tensor: Tensor) -> None:
    """Begin boxes as Detectron2 does, but not in float32 where the network reckons in float64."""
    boxes.tensor = tensor.reshape(-1, 4)


def resized(resize: T.ResizeTransform, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """An image (H, W, 3) in the size that a transform of Detectron2's has chosen."""
    pixels = torch.from_numpy(np.ascontiguousarray(image)).permute(2, 0, 1)
    return image_ops.resize(pixels, [resize.new_h, resize.new_w], antialias=True).permute(1, 2, 0).numpy()


def file_of(config: str) -> Path:
    """A file of the model zoo's, in an installation or in a checkout."""
    package = Path(detectron2.__file__).parent
    for configs in (package / "model_zoo" / "configs", package.parent / "configs"):
        if (file := configs / "COCO-Detection" / f"{config}.yaml").is_file():
            return file
    raise InputError(f"Detectron2 is there, but not {config}.yaml of its model zoo")
