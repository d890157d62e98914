"""torchvision's Faster R-CNNs on FPN: their weights into our detector, ours into theirs."""

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torchvision.models import detection, list_models
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from fpn.errors import InputError
from fpn.interop.files import SCORES, content_of, filled, published, renamed, with_threshold
from fpn.interop.settings import arguments_in, detector_settings, differences, settings_in
from fpn.models.detectors import FasterRCNN
from fpn.models.mobilenet import MobileNetV3
from fpn.models.resnet import ResNet
from fpn.weights import check_weights

# Beginnings of parameter names, torchvision's and ours.
_NAMES = {
    "backbone.body.": "bottom_up.",
    "rpn.head.conv.0.0.": "rpn.head.shared.conv.",
    "rpn.head.conv.1.0.": "rpn.head.shared.more.0.",
    "rpn.head.cls_logits.": "rpn.head.shared.objectness.",
    "rpn.head.bbox_pred.": "rpn.head.shared.deltas.",
    "roi_heads.box_head.": "roi_head.head.shared.",
    **{f"roi_heads.box_head.{i}.": f"roi_head.head.shared.convs.{i}." for i in range(4)},
    "roi_heads.box_head.5.": "roi_head.head.shared.fc.",
    "roi_heads.box_predictor.cls_score.": "roi_head.head.shared.scores.",
    "roi_heads.box_predictor.bbox_pred.": "roi_head.head.shared.deltas.",
}
# Of the necks: torchvision counts their levels from 0.
_NECKS = {
    levels: {
        f"backbone.fpn.{theirs}.{i}.": f"neck.{ours}.{k}."
        for theirs, ours in (("inner_blocks", "laterals"), ("layer_blocks", "smooths"))
        for i, k in enumerate(levels)
    }
    for levels in ((2, 3, 4, 5), (5, 6))
}
# Files of torchvision before 0.13.
_OLD_NAMES = {
    **{
        f"{theirs}{end}": f"{ours}0.{end}"
        for theirs, ours in _NECKS[2, 3, 4, 5].items()
        for end in ("weight", "bias")
    },
    "rpn.head.conv.weight": "rpn.head.shared.conv.weight",
    "rpn.head.conv.bias": "rpn.head.shared.conv.bias",
}
_Model = Literal["resnet", "v2", "mobilenet"]
_SIGNS: dict[_Model, tuple[str, ...]] = {
    "mobilenet": ("backbone.body.16.0.",),
    "v2": ("backbone.fpn.inner_blocks.0.1.", "rpn.head.conv.1.", "roi_heads.box_head.0."),
    "resnet": ("backbone.body.layer1.",),
}
"""Beginnings of names by which each is known, where it is none of those before it."""


def load_torchvision(
    weights: str | Path | Mapping[str, Tensor],
    score_threshold: float | None = None,
    norm_eps: float | None = None,
    **faster_rcnn: Any,
) -> FasterRCNN:
    """Our detector with the weights of one of torchvision's Faster R-CNNs.

    These are `fasterrcnn_resnet50_fpn`, `…_resnet50_fpn_v2`, `…_mobilenet_v3_large_fpn` and
    `…_mobilenet_v3_large_320_fpn`. The weights tell which, but for the last two, whose weights are alike: the
    last is meant where they are its published ones, by name or file. The number of classes is read from the
    weights. Labels are numbered as torchvision's: for its COCO weights they are COCO's category ids, 1…90.

    Args:
        weights: a file or a state dict of torchvision's model, or the name of weights it publishes, as
            FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1; COCO_V1 alone is that of `fasterrcnn_resnet50_fpn`.
        score_threshold: only detections with a higher score are given; None for that of `detections`, 0.05.
        norm_eps: epsilon of the bottom-up's BatchNorm, which no file tells. None takes 0 for the weights that
            torchvision publishes of `fasterrcnn_resnet50_fpn`, and 1e-5, its default, for all others.
        **faster_rcnn: further arguments of `FasterRCNN`.

    Returns:
        The detector, in evaluation mode.

    Raises:
        InputError: no such file, or the weights are not of such a model.
    """
    source, content = content_of(weights)
    state = from_torchvision(content, source)
    if SCORES not in state:
        raise InputError(
            f"{source} is no Faster R-CNN of torchvision's: it has no roi_heads.box_predictor.cls_score.bias"
        )
    arguments = arguments_in(*configs_of(source, content)) | faster_rcnn
    if norm_eps is not None:
        arguments["bottom_up"] = partial(arguments["bottom_up"], norm_eps=norm_eps)
    return filled(
        FasterRCNN(len(state[SCORES]) - 1, **with_threshold(arguments, score_threshold)), state, source
    )


def to_torchvision(detector: FasterRCNN) -> dict[str, Tensor]:
    """The weights of our detector, for torchvision's model of the same number of classes to load strictly.

    The model is one that `load_torchvision` knows, or `torchvision.models.detection.FasterRCNN` on
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
    known = isinstance(bottom_up, MobileNetV3) or (
        isinstance(bottom_up, ResNet) and bottom_up.name in list_models()
    )
    if not known:
        raise InputError(
            f"torchvision's model cannot have a bottom-up {bottom_up.name}; "
            "it has a ResNet or MobileNetV3 of its own"
        )
    names = _NAMES | _NECKS[(5, 6) if isinstance(bottom_up, MobileNetV3) else (2, 3, 4, 5)]
    back = {ours: theirs for theirs, ours in names.items()}
    state = {renamed(name, back): value for name, value in detector.state_dict().items()}
    theirs = settings_of("", state)
    theirs.pop("bottom_up.norm_eps", None)
    for key, (ours, other) in differences(detector_settings(detector), theirs).items():
        raise InputError(f"torchvision's model cannot have {key} {ours!r}; it has {other!r}")
    with torch.device("meta"):
        model = _made(_model_of(state, "this detector"), detector.classes + 1, bottom_up.name)
    check_weights(model.state_dict(), state, "this detector", "torchvision's FasterRCNN")
    return state


def from_torchvision(state: Mapping[str, Tensor], source: str = "the state dict") -> dict[str, Tensor]:
    """Its weights under our names.

    Raises:
        InputError: they are of no model that is known here.
    """
    levels = (5, 6) if _model_of(state, source) == "mobilenet" else (2, 3, 4, 5)
    names = _NAMES | _NECKS[levels] | _OLD_NAMES
    return {renamed(n, names): value for n, value in state.items() if not n.endswith("num_batches_tracked")}


def configs_of(source: str, state: Mapping[str, Tensor]) -> list[str]:
    """The configuration files of what its model does with its weights.

    Args:
        source: where they come from: some of what it does is known of published names and files only.
        state: the weights, under torchvision's names.
    """
    weights, model = published(source), _model_of(state, source)
    config = {
        "resnet": "torchvision_coco_v1",
        "v2": "torchvision_v2",
        "mobilenet": "torchvision_mobilenet",
    }[model]
    if isinstance(weights, detection.FasterRCNN_MobileNet_V3_Large_320_FPN_Weights):
        config += "_320"
    known = model != "resnet" or weights is not None
    return ["conventions/torchvision", *([f"interop/{config}"] if known else [])]


def settings_of(source: str, state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What its model does with its weights, as far as is known; the arguments are those of `configs_of`."""
    configs = configs_of(source, state)
    known = settings_in(*configs)
    # The epsilon of its first model's BatchNorm is known of the published weights only.
    return {key: value for key, value in known.items() if len(configs) > 1 or key != "bottom_up.norm_eps"}


def _model_of(names: Iterable[str], source: str) -> _Model:
    names = list(names)
    for model, signs in _SIGNS.items():
        if any(name.startswith(signs) for name in names):
            return model
    raise InputError(f"{source} is no Faster R-CNN of torchvision's on a ResNet or MobileNetV3-Large")


def _made(model: _Model, classes: int, bottom_up: str) -> nn.Module:
    """torchvision's own."""
    if model == "resnet":
        made: nn.Module = detection.FasterRCNN(
            resnet_fpn_backbone(backbone_name=bottom_up, weights=None), classes
        )
        return made
    make = {
        "v2": detection.fasterrcnn_resnet50_fpn_v2,
        "mobilenet": detection.fasterrcnn_mobilenet_v3_large_fpn,
    }
    return make[model](weights=None, weights_backbone=None, num_classes=classes)
