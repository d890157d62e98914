"""torchvision's Faster R-CNN: pycocotools reads the annotations, Pillow the files, torchvision resizes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.inputs import TRAINED, stir
from benchmarks.train import EVERYTHING, LOSSES
from fpn.interop.torchvision import from_torchvision
from parity.peer import Peer
from parity.plan import Plan

NETWORKS: dict[str, tuple[Any, list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}


class Torchvision(Peer):
    """Its learning rate is written out by hand."""

    def __init__(self, plan: Plan, root: Path) -> None:
        self.plan, self.images = plan, root / "train2017"
        self.truth = COCO(root / "annotations" / "instances_train2017.json")
        self.model = network(plan, len(self.truth.cats))
        self.model.get_submodule("transform").register_forward_hook(as_network)
        self.optimiser = torch.optim.SGD(
            [p for p in self.model.parameters() if p.requires_grad],
            lr=plan.lr,
            momentum=plan.momentum,
            weight_decay=plan.weight_decay,
        )
        self.detector = {"anchor_sampling": {"per_image": EVERYTHING}}

    def losses(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """As of a peer."""
        images = [read(self.images / image["file_name"]) for image in self.truth.loadImgs(ids)]
        found = self.model(images, [objects(self.truth, image) for image in ids])
        return {LOSSES[name]: loss for name, loss in found.items()}

    def set_rate(self, step: int) -> None:
        """As of a peer."""
        lr = rate(self.plan.lr, self.plan.warmup, self.plan.milestone, step)
        for group in self.optimiser.param_groups:
            group["lr"] = lr

    def as_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """As of a peer."""
        return from_torchvision(state)

    def detect(self, file: Path) -> list[Tensor]:
        """As of a peer."""
        (found,) = self.model([read(file)])
        return [found[name] for name in ("boxes", "scores", "labels")]


def network(plan: Plan, classes: int) -> FasterRCNN:
    """torchvision's, as its constructor begins, but for frozen norms that are not all alike."""
    torch.manual_seed(0)
    block, depths = NETWORKS[plan.network]
    body = ResNet(block, depths, norm_layer=FrozenBatchNorm2d)
    trained = tuple(f"layer{i}" for i in range(5 - TRAINED, 5))
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    stir(FrozenBatchNorm2d, body)
    return FasterRCNN(
        with_pyramid(body, plan.channels),
        min_size=plan.short_side,
        max_size=plan.max_side,
        rpn_post_nms_top_n_train=plan.proposals,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        box_score_thresh=0.0,
        box_head=TwoMLPHead(plan.channels * 7**2, plan.hidden),
        box_predictor=FastRCNNPredictor(plan.hidden, classes + 1),
    )


def with_pyramid(body: ResNet, channels: int) -> BackboneWithFPN:
    """A ResNet and its feature pyramid."""
    widths = [body.inplanes // 2**i for i in (3, 2, 1, 0)]
    return BackboneWithFPN(body, {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}, widths, channels)


def rate(lr: float, warmup: int, milestone: int, step: int) -> float:
    """The learning rate of a step counted from 0: it grows from a thousandth, and falls to a tenth."""
    if step < warmup:
        return lr * (0.001 + 0.999 * step / warmup)
    return lr if step < milestone else lr / 10


def as_network(module: nn.Module, given: Any, made: tuple[Any, Any]) -> tuple[Any, Any]:
    """What torchvision's transform has made, in the default precision."""
    (images, targets), dtype = made, torch.get_default_dtype()
    images.tensors = images.tensors.to(dtype)
    if targets is not None:
        targets = [one | {"boxes": one["boxes"].to(dtype)} for one in targets]
    return images, targets


def read(file: Path) -> Tensor:
    """An image in [0, 1], by Pillow, in float32."""
    return pil_to_tensor(Image.open(file).convert("RGB")).to(torch.float32) / 255


def objects(truth: COCO, image: int) -> dict[str, Tensor]:
    """Boxes and labels 1…K of an image, as torchvision wants them."""
    labels = {category: 1 + i for i, category in enumerate(sorted(truth.cats))}
    listed = truth.loadAnns(truth.getAnnIds(image))
    boxes = torch.tensor([one["bbox"] for one in listed], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    return {"boxes": boxes, "labels": torch.tensor([labels[one["category_id"]] for one in listed])}
