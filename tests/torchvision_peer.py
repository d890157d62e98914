"""torchvision's detector as the independent truth: the same weights, random but made to find much."""

import torch
from torch import Tensor, nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from fpn.types import Batch, Targets


def peer(classes: int = 91, **arguments: object) -> FasterRCNN:
    """fasterrcnn_resnet50_fpn with a frozen BatchNorm (eps 0) and weights that yield many detections."""
    body = resnet50(weights=None, norm_layer=lambda channels: FrozenBatchNorm2d(channels, eps=0.0))
    model = FasterRCNN(_resnet_fpn_extractor(body, 5), classes, **arguments)
    generator = torch.Generator().manual_seed(7)
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.running_var.uniform_(0.5, 2.0, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.weight.uniform_(0.3, 0.6, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear) and ("rpn" in name or "roi_heads" in name):
            gain = {"cls_logits": 30.0, "bbox_pred": 3.0, "cls_score": 60.0}.get(name.rsplit(".", 1)[-1], 1.0)
            with torch.no_grad():
                module.weight.mul_(gain)
                module.bias.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


def peer_targets(targets: list[Targets]) -> list[dict[str, Tensor]]:
    return [{"boxes": t.boxes, "labels": t.labels} for t in targets]


def as_batch(model: FasterRCNN, images: list[Tensor], targets: list[Targets] | None = None) -> Batch:
    """The batch that torchvision's own transform makes of images, as ours."""
    padded, resized = model.transform(images, None if targets is None else peer_targets(targets))
    ours = None
    if targets is not None:
        ours = [t._replace(boxes=r["boxes"]) for t, r in zip(targets, resized, strict=True)]
    sizes = [tuple(size) for size in padded.image_sizes]
    originals = [tuple(image.shape[-2:]) for image in images]
    return Batch(padded.tensors, sizes, originals, list(range(len(images))), ours)
