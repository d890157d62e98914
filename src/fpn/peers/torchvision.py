"""torchvision's Faster R-CNN on FPN: its weights into our detector, ours into its."""

import re
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from fpn.errors import InputError
from fpn.models.detectors import FasterRCNN
from fpn.models.resnet import ResNet
from fpn.models.rpn import ANCHOR_SIZES
from fpn.peers.files import SCORES, content_of, filled, renamed, with_threshold
from fpn.peers.settings import differences, settings_of
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
SETTINGS: dict[str, Any] = {
    "bottom_up.stride_in_1x1": False,
    "neck.top_down": True,
    "neck.nonlinearity": False,
    "rpn.levels": (2, 3, 4, 5, 6),
    "rpn.sizes": {level: tuple(sizes) for level, sizes in ANCHOR_SIZES.items()},
    "rpn.ratios": (0.5, 1.0, 2.0),
    "rpn.rounded": True,
    "rpn.grid": "spread",
    "rpn.box_weights": (1.0, 1.0, 1.0, 1.0),
    "roi_head.levels": (2, 3, 4, 5),
    "roi_head.pooling": "align",
    "roi_head.resolution": 7,
    "roi_head.sampling_ratio": 2,
    "roi_head.aligned": False,
    "roi_head.canonical_size": 224.0,
    "roi_head.canonical_level": 4,
    "roi_head.epsilon": 1e-6,
    "roi_head.box_weights": (10.0, 10.0, 5.0, 5.0),
}
"""What `fasterrcnn_resnet50_fpn` does with its weights."""
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
    if "bottom_up" not in faster_rcnn:
        eps = settings_of_file(source).get("bottom_up.norm_eps", 1e-5) if norm_eps is None else norm_eps
        faster_rcnn["bottom_up"] = partial(ResNet, "resnet50", norm="frozen", norm_eps=eps)
    elif norm_eps is not None:
        raise InputError(f"norm_eps {norm_eps} is of the bottom-up, which is given too: say it there")
    return filled(
        FasterRCNN(len(state[SCORES]) - 1, **with_threshold(faster_rcnn, score_threshold)), state, source
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
    for key, (ours, theirs) in differences(settings_of(detector), SETTINGS).items():
        raise InputError(f"torchvision's model cannot have {key} {ours!r}; it has {theirs!r}")
    names = {ours: theirs for theirs, ours in _NAMES.items()}
    state = {renamed(name, names): value for name, value in detector.state_dict().items()}
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name=detector.bottom_up.name, weights=None)
        model = TorchvisionFasterRCNN(backbone, detector.classes + 1).state_dict()
    check_weights(model, state, "this detector", "torchvision's FasterRCNN")
    return state


def from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Its weights under our names."""
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return {renamed(name, _NAMES | _OLD_NAMES): value for name, value in state.items()}


def config_of(source: str) -> str:
    """The configuration file that has these settings."""
    name = (
        "interop/torchvision_coco_v1" if _PUBLISHED.search(Path(source).name) else "conventions/torchvision"
    )
    return f"configs/{name}.yaml"


def settings_of_file(source: str) -> dict[str, Any]:
    """What its model does with the weights of a file or a published name, as far as is known."""
    return SETTINGS | ({"bottom_up.norm_eps": 0.0} if _PUBLISHED.search(Path(source).name) else {})
