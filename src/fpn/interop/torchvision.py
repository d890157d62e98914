"""torchvision's Faster R-CNN on FPN: its weights into our detector, ours into its."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import list_models
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from fpn.errors import InputError
from fpn.interop.files import SCORES, content_of, filled, renamed, with_threshold
from fpn.interop.settings import arguments_in, detector_settings, differences, settings_in
from fpn.models.detectors import FasterRCNN
from fpn.models.resnet import ResNet
from fpn.weights import check_weights

# Beginnings of parameter names, torchvision's and ours. Its pyramid counts from 0, the paper's levels from 2.
_NAMES = {
    "backbone.body.": "bottom_up.",
    **{f"backbone.fpn.inner_blocks.{i}.0.": f"neck.laterals.{i + 2}.0." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.0.": f"neck.smooths.{i + 2}.0." for i in range(4)},
    "rpn.head.conv.0.0.": "rpn.head.shared.conv.",
    "rpn.head.cls_logits.": "rpn.head.shared.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.shared.deltas.",
    "roi_heads.box_head.": "roi_head.head.shared.",
    "roi_heads.box_predictor.cls_score.": "roi_head.head.shared.scores.",
    "roi_heads.box_predictor.bbox_pred.": "roi_head.head.shared.deltas.",
}
# Files of torchvision before 0.13.
_OLD_NAMES = {
    **{f"backbone.fpn.inner_blocks.{i}.": f"neck.laterals.{i + 2}.0." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"neck.smooths.{i + 2}.0." for i in range(4)},
    "rpn.head.conv.": "rpn.head.shared.conv.",
}
_PUBLISHED = re.compile(r"(COCO_V1|fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth)$")
"""Name and file of torchvision's published weights."""


def load_torchvision(
    weights: str | Path | Mapping[str, Tensor],
    score_threshold: float | None = None,
    norm_eps: float | None = None,
    **faster_rcnn: Any,
) -> FasterRCNN:
    """Our detector with the weights of torchvision's `fasterrcnn_resnet50_fpn`.

    The number of classes is read from the weights. Labels are numbered as torchvision's: for its COCO weights
    they are COCO's own category ids, 1…90.

    Args:
        weights: a file or a state dict of torchvision's model, or the name of weights it publishes: COCO_V1.
        score_threshold: only detections with a higher score are given; None for that of `detections`, 0.05.
        norm_eps: epsilon of the BatchNorm, which no file tells. None takes 0 for the weights that torchvision
            publishes, by name or file, and 1e-5, its default, for all others.
        **faster_rcnn: further arguments of `FasterRCNN`.

    Returns:
        The detector, in evaluation mode.

    Raises:
        InputError: no such file, the weights are not those of this model, or norm_eps beside a bottom_up.
    """
    source, content = content_of(weights)
    state = from_torchvision(content)
    if SCORES not in state:
        raise InputError(
            f"{source} is no fasterrcnn_resnet50_fpn of torchvision's: "
            "it has no roi_heads.box_predictor.cls_score.bias"
        )
    arguments = arguments_in(*configs_of(source)) | faster_rcnn
    if norm_eps is not None:
        if "bottom_up" in faster_rcnn:
            raise InputError(f"norm_eps {norm_eps} is of the bottom-up, which is given too: say it there")
        arguments["bottom_up"] = partial(arguments["bottom_up"], norm_eps=norm_eps)
    return filled(
        FasterRCNN(len(state[SCORES]) - 1, **with_threshold(arguments, score_threshold)), state, source
    )


def to_torchvision(detector: FasterRCNN) -> dict[str, Tensor]:
    """The weights of our detector, for torchvision's model of the same number of classes to load strictly.

    The model is `fasterrcnn_resnet50_fpn`, or `torchvision.models.detection.FasterRCNN` on
    `resnet_fpn_backbone` of another ResNet, with our K + 1 classes. The epsilon of its BatchNorm, thresholds
    and numbers of boxes are settings that no weights carry.

    Args:
        detector: with torchvision's architecture.

    Returns:
        The state dict; its tensors share their memory with the detector's.

    Raises:
        InputError: torchvision's model has no such part, or does something else with the same weights.
    """
    if type(detector) is not FasterRCNN:
        raise InputError(f"torchvision has no {type(detector).__name__}; give a FasterRCNN")
    bottom_up = detector.bottom_up
    if not isinstance(bottom_up, ResNet) or bottom_up.name not in list_models():
        name = getattr(bottom_up, "name", type(bottom_up).__name__)
        raise InputError(f"torchvision's model cannot have a bottom-up {name}; it has a ResNet of its own")
    for key, (ours, theirs) in differences(detector_settings(detector), settings_of_file("")).items():
        raise InputError(f"torchvision's model cannot have {key} {ours!r}; it has {theirs!r}")
    names = {ours: theirs for theirs, ours in _NAMES.items()}
    state = {renamed(name, names): value for name, value in detector.state_dict().items()}
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name=bottom_up.name, weights=None)
        model = TorchvisionFasterRCNN(backbone, detector.classes + 1).state_dict()
    check_weights(model, state, "this detector", "torchvision's FasterRCNN")
    return state


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its weights under our names."""
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return {renamed(name, _NAMES | _OLD_NAMES): value for name, value in state.items()}


def configs_of(source: str) -> list[str]:
    """The configuration files of what its model does with the weights of a file or a published name."""
    published = ["interop/torchvision_coco_v1"] if _PUBLISHED.search(Path(source).name) else []
    return ["conventions/torchvision", *published]


def settings_of_file(source: str) -> dict[str, Any]:
    """What its model does with the weights of a file or a published name, as far as is known."""
    configs = configs_of(source)
    known = settings_in(*configs)
    # No file tells the epsilon of its BatchNorm; that of the published one is known.
    return {key: value for key, value in known.items() if len(configs) > 1 or key != "bottom_up.norm_eps"}
