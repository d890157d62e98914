"""Small detectors with random weights that find much in noise, and nothing in a flat picture."""

from functools import partial
from typing import Any

import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from fpn.data.transforms import ImageSettings
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.models.mobilenet import MobileNetV3
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import ProposalSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork

IMAGE = ImageSettings(96, 160)
SIZES = {2: [16], 3: [32], 4: [64], 5: [128], 6: [256]}
_GAINS = {"objectness": 100.0, "scores": 600.0, "deltas": 20.0}


def small(kind: type[ProposalNetwork] = FasterRCNN, loudness: float = 1.0, **parts: Any) -> ProposalNetwork:
    """One of five classes on a ResNet-18, an eighth as wide."""
    given: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet18", width=8),
        "neck": partial(FeaturePyramid, channels=16),
        "rpn": partial(RegionProposalNetwork, sizes=SIZES),
        "testing_proposals": ProposalSelection(100, 100),
    }
    if issubclass(kind, FasterRCNN):
        given["roi_head"] = partial(RoIHead, head=partial(TwoFCHead, hidden=32), canonical_size=56.0)
    return lively(kind(5, **given | parts), loudness)


def lively(detector: ProposalNetwork, loudness: float = 1.0) -> ProposalNetwork:
    """The same with scores that are spread, a background that wins in flat pictures, and norms that count."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for module in detector.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.get_buffer("running_var").uniform_(0.5, 2.0, generator=generator)
                module.get_buffer("weight").uniform_(0.5, 1.0, generator=generator)
        for name, parameter in detector.named_parameters():
            part, _, kind = name.rpartition(".")
            last = part.rpartition(".")[2]
            if name.startswith(("rpn.", "roi_head.", "later_heads.")) and last in _GAINS:
                if kind == "weight":
                    parameter.mul_(_GAINS[last] * loudness)
                elif last == "scores":
                    parameter[0] = 8.0
    return detector.eval()


def calibrated(detector: ProposalNetwork) -> ProposalNetwork:
    """The same with a MobileNetV3 whose norms are of noise: else so many layers leave no differences."""
    network = MobileNetV3(norm="batch")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None  # what is seen now counts alone
    network(torch.randn(4, 3, 96, 160, generator=torch.Generator().manual_seed(6)))
    detector.bottom_up.load_state_dict(network.state_dict(), strict=False)
    return detector
