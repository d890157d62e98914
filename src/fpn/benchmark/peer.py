"""torchvision's `fasterrcnn_resnet50_fpn` as the peer, and random weights for both that find much."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from fpn.interop.torchvision import load_torchvision
from fpn.models.detectors import FasterRCNN
from fpn.models.resnet import ResNet

CLASSES = 91
"""torchvision's for COCO, the background among them."""
TRAINED = 3
"""Stages of the bottom-up that are trained, torchvision's default: conv1 and conv2 are frozen."""


def peer(classes: int = CLASSES, trained: int = 5, **arguments: Any) -> TorchvisionFasterRCNN:
    """fasterrcnn_resnet50_fpn with a frozen BatchNorm (eps 0) and weights that yield many detections.

    Args:
        classes: the background among them.
        trained: stages of the bottom-up that are trained, from the last; 5 are all.
        **arguments: further ones of torchvision's `FasterRCNN`.

    Returns:
        The model, in evaluation mode.
    """
    body = resnet50(weights=None, norm_layer=lambda channels: FrozenBatchNorm2d(channels, eps=0.0))
    model = TorchvisionFasterRCNN(_resnet_fpn_extractor(body, trained), classes, **arguments)
    generator = torch.Generator().manual_seed(7)
    for name, module in model.named_modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.get_buffer("running_var").uniform_(0.5, 2.0, generator=generator)
            module.get_buffer("running_mean").normal_(0, 0.1, generator=generator)
            module.get_buffer("weight").uniform_(0.3, 0.6, generator=generator)
            module.get_buffer("bias").normal_(0, 0.1, generator=generator)
        elif isinstance(module, nn.Conv2d | nn.Linear) and ("rpn" in name or "roi_heads" in name):
            gain = {"cls_logits": 30.0, "bbox_pred": 3.0, "cls_score": 60.0}.get(name.rsplit(".", 1)[-1], 1.0)
            with torch.no_grad():
                module.weight.mul_(gain)
                module.get_parameter("bias").uniform_(-0.1, 0.1, generator=generator)
    return model.eval()


def write_weights(file: Path) -> None:
    """Write the peer's weights, the same at every call."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        torch.save(peer().state_dict(), file)


def load_theirs(weights: Path, **arguments: Any) -> TorchvisionFasterRCNN:
    """torchvision's model with weights of a file."""
    model = peer(trained=TRAINED, **arguments)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def load_ours(weights: Path) -> FasterRCNN:
    """Our detector with the same."""
    bottom_up = partial(ResNet, "resnet50", norm="frozen", norm_eps=0.0, frozen_stages=5 - TRAINED)
    return load_torchvision(weights, bottom_up=bottom_up)
