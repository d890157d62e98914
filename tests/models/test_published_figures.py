"""Parameters and operations, as torchvision publishes, Detectron2 tests and MMDetection counts them."""

from functools import partial
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import detection

from fpn import FasterRCNN
from fpn.interop.settings import arguments_in
from fpn.models.necks import FeaturePyramid
from fpn.models.resnet import ResNet

# In torchvision_v2 norms stay as they are; torchvision counts them among what is trained.
TRAINED: dict[str, Any] = {
    "bottom_up": partial(ResNet, "resnet50", norm="batch"),
    "neck": partial(FeaturePyramid, norm="batch"),
}


@pytest.mark.parametrize(
    ("name", "config", "changed", "side", "rois"),
    [
        ("ResNet50_FPN", "torchvision_coco_v1", {}, 800, 1000),
        ("ResNet50_FPN_V2", "torchvision_v2", TRAINED, 800, 1000),
        ("MobileNet_V3_Large_FPN", "torchvision_mobilenet", {}, 800, 0),
        ("MobileNet_V3_Large_320_FPN", "torchvision_mobilenet_320", {}, 320, 0),
    ],
)
def test_as_torchvision_publishes(
    name: str, config: str, changed: dict[str, Any], side: int, rois: int
) -> None:
    """Operations are multiply-adds of convolutions and linear layers, in 10⁹.

    Its docs do not say what they were counted on. All four come out, to the last digit, on a square image of
    the model's usual short side; the ResNets with their 1000 proposals, the MobileNets, which make proposals
    of scores of 0.05 only, with none.
    """
    meta = getattr(detection, f"FasterRCNN_{name}_Weights").COCO_V1.meta
    arguments = arguments_in("conventions/torchvision", f"interop/{config}") | changed
    with torch.device("meta"):
        detector = FasterRCNN(len(meta["categories"]) - 1, **arguments).eval()
        assert sum(p.numel() for p in detector.parameters()) == meta["num_params"]
        images, pooled = torch.empty(1, 3, side, side), torch.empty(rois, 256, 7, 7)
        with FlopCounterMode(display=False) as counter:
            detector.rpn(detector.neck(detector.bottom_up(images)), (side, side))
            if rois:
                detector.roi_head.head["shared"](pooled)
    digits = len(str(meta["_ops"]).partition(".")[2])
    assert round(counter.get_total_flops() / 2e9, digits) == meta["_ops"]


def test_as_detectron2_publishes() -> None:
    """The figures of its own tests (tests/test_model_analysis.py) for faster_rcnn_R_50_FPN_1x.

    It counts multiply-adds of convolutions, on an image of 800 × 800 and without the RoI head.
    """
    arguments = arguments_in("conventions/detectron2", "interop/detectron2_r50_1x")
    with torch.device("meta"):
        detector = FasterRCNN(80, **arguments).eval()
        with FlopCounterMode(display=False) as counter:
            detector.rpn(detector.neck(detector.bottom_up(torch.empty(1, 3, 800, 800))), (800, 800))
    assert int(counter.get_total_flops() / 2e9) == 117

    def parameters(*modules: nn.Module) -> int:
        return sum(p.numel() for module in modules for p in module.parameters())

    assert parameters(detector.bottom_up, detector.neck) == 26_799_296
    background_box = 4 * (1024 + 1)  # a box of the background, as in Fast R-CNN; Detectron2 has none
    assert parameters(detector) - background_box == 41_699_936


def test_as_mmdetection_counts() -> None:
    """What its `get_flops.py` prints of faster_rcnn_r50_fpn_1x_coco: 207.07 GFLOPs and 41.53 M parameters.

    It counts modules by rules of its own (mmcv's flops_counter), on an image of 1280 × 800 and 1000 RoIs: of
    norms two operations for each number, of ReLUs and of pooling one. Parameters are those that are trained,
    with the norms' and without those of the stem and the first stage.
    """
    arguments = arguments_in("conventions/detectron2", "interop/detectron2_r50_1x")
    arguments["bottom_up"] = partial(ResNet, "resnet50", norm="batch", frozen_stages=2)
    counted = [0]

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        of_one = {
            nn.BatchNorm2d: 2 * inputs[0].numel(),
            nn.ReLU: output.numel(),
            nn.MaxPool2d: inputs[0].numel(),
        }
        if isinstance(module, nn.Conv2d):
            taps = module.weight[0].numel() + (module.bias is not None)
            counted[0] += output.numel() * taps
        elif isinstance(module, nn.Linear):
            counted[0] += inputs[0].numel() * module.out_features
        else:
            counted[0] += of_one[type(module)]

    with torch.device("meta"):
        detector = FasterRCNN(80, **arguments).eval()
        for module in detector.modules():
            if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.ReLU | nn.MaxPool2d):
                module.register_forward_hook(count)
        detector.rpn(detector.neck(detector.bottom_up(torch.empty(1, 3, 800, 1280))), (800, 1280))
        detector.roi_head.head["shared"](torch.empty(1000, 256, 7, 7))
    background_box = 4 * (1024 + 1)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad) - background_box
    theirs = 2 * 1000 * 1024  # the head's two ReLUs, which are modules there and functions here
    ours = 1000 * 1024 * 4  # the background's box
    assert round((counted[0] + theirs - ours) / 1e9, 2) == 207.07
    assert round(trained / 1e6, 2) == 41.53
