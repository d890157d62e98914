"""The field's other detectors: their weights put into ours, ours into torchvision's.

A file tells weights, not what is done with them. Each peer's settings are therefore listed here once, and in
`configs/conventions` for the command line.
"""

import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone

from fpn.data.transforms import ImageSettings
from fpn.errors import InputError
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.models.losses import LossSettings
from fpn.models.msra import from_msra
from fpn.models.postprocess import DetectionSelection, ProposalSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead
from fpn.models.rpn import ANCHOR_SIZES, RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.ops.anchors import cell_anchors
from fpn.weights import as_tensors, check_weights, download, read_any, state_dict

# Beginnings of parameter names, torchvision's and ours. Its pyramid counts from 0, the paper's levels from 2.
_TORCHVISION = {
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
_OLD_TORCHVISION = {
    **{f"backbone.fpn.inner_blocks.{i}.": f"neck.laterals.{i + 2}.0." for i in range(4)},
    **{f"backbone.fpn.layer_blocks.{i}.": f"neck.smooths.{i + 2}.0." for i in range(4)},
    "rpn.head.conv.": "rpn.head.shared.conv.",
}
_DETECTRON2 = {
    **{f"backbone.fpn_lateral{k}.": f"neck.laterals.{k}.0." for k in range(2, 6)},
    **{f"backbone.fpn_output{k}.": f"neck.smooths.{k}.0." for k in range(2, 6)},
    "proposal_generator.rpn_head.conv.": "rpn.head.shared.conv.",
    "proposal_generator.rpn_head.objectness_logits.": "rpn.head.shared.objectness.",
    "proposal_generator.rpn_head.anchor_deltas.": "rpn.head.shared.deltas.",
    "roi_heads.box_head.fc1.": "roi_head.head.shared.fc6.",
    "roi_heads.box_head.fc2.": "roi_head.head.shared.fc7.",
    "roi_heads.box_predictor.cls_score.": "roi_head.head.shared.scores.",
    "roi_heads.box_predictor.bbox_pred.": "roi_head.head.shared.deltas.",
}
_PUBLISHED = re.compile(r"(COCO_V1|fasterrcnn_resnet50_fpn_coco-258fb6c6\.pth)$")
"""Name and file of torchvision's published weights."""
_SCORES = "roi_head.head.shared.scores.bias"
_D = TypeVar("_D", bound=ProposalNetwork)

DETECTRON2_IMAGES = ImageSettings(antialias=True, rounding="nearest")
"""How Detectron2 resizes images; the channels' order and scale are in the weights once these are loaded."""

_ANY_SIZE = 1e-30
"""Pixels. Detectron2 keeps every box that has an area."""

_DETECTRON2_RPN: dict[str, Any] = {
    "rpn": partial(RegionProposalNetwork, rounded=False, grid="stride"),
    "anchor_sampling": AnchorSampling(crowd_overlap=None),
    "training_proposals": ProposalSelection(2000, 1000, min_size=_ANY_SIZE),
    "testing_proposals": ProposalSelection(1000, 1000, min_size=_ANY_SIZE),
    "loss": LossSettings(rpn_beta=0.0, roi_beta=0.0, rpn_per_image=256),
}
_DETECTRON2_ROI: dict[str, Any] = {
    "roi_head": partial(RoIHead, sampling_ratio=0, aligned=True, epsilon=0.0),
    "roi_sampling": RoISampling(crowd_overlap=None),
    "detections": DetectionSelection(min_size=_ANY_SIZE),
}


def load_torchvision(
    weights: str | Path | Mapping[str, Tensor],
    score_threshold: float = 0.05,
    norm_eps: float | None = None,
    **faster_rcnn: Any,
) -> FasterRCNN:
    """Our detector with the weights of torchvision's `fasterrcnn_resnet50_fpn`.

    The number of classes is read from the weights. Labels are numbered as torchvision's: for its COCO weights
    they are COCO's own category ids, 1…90.

    Args:
        weights: a file or a state dict of torchvision's model, or the name of weights it publishes: COCO_V1.
        score_threshold: only detections with a higher score are given.
        norm_eps: epsilon of the BatchNorm, which no file tells. None takes 0 for the weights that torchvision
            publishes, by name or file, and 1e-5, its default, for all others.
        **faster_rcnn: further arguments of `FasterRCNN`.

    Returns:
        The detector, in evaluation mode.

    Raises:
        InputError: no such file, or the weights are not those of this model.
    """
    source, content = _content(weights)
    if norm_eps is None:
        norm_eps = 0.0 if _PUBLISHED.search(Path(source).name) else 1e-5
    state = _from_torchvision(content)
    if _SCORES not in state:
        raise InputError(
            f"{source} is no fasterrcnn_resnet50_fpn of torchvision's: "
            "it has no roi_heads.box_predictor.cls_score.bias"
        )
    arguments: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet50", norm="frozen", norm_eps=norm_eps),
        "detections": DetectionSelection(score_threshold=score_threshold),
    }
    return _filled(FasterRCNN(len(state[_SCORES]) - 1, **(arguments | faster_rcnn)), state, source)


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
    rpn, head = detector.rpn, detector.roi_head
    wanted = {
        "bottom_up.stride_in_1x1": (detector.bottom_up.stride_in_1x1, False),
        "rpn.rounded": (rpn.rounded, True),
        "rpn.grid": (rpn.grid, "spread"),
        "rpn.box_weights": (rpn.box_weights, (1.0, 1.0, 1.0, 1.0)),
        "rpn.levels": (rpn.levels, (2, 3, 4, 5, 6)),
        "roi_head.pooling": (head.pooling, "align"),
        "roi_head.aligned": (head.aligned, False),
        "roi_head.sampling_ratio": (head.sampling_ratio, 2),
        "roi_head.resolution": (head.resolution, 7),
        "roi_head.box_weights": (head.box_weights, (10.0, 10.0, 5.0, 5.0)),
        "roi_head.levels": (head.levels, (2, 3, 4, 5)),
        "roi_head.canonical_size": (head.canonical_size, 224),
        "roi_head.canonical_level": (head.canonical_level, 4),
        "roi_head.epsilon": (head.epsilon, 1e-6),
        "neck.top_down": (getattr(detector.neck, "top_down", None), True),
        "neck.nonlinearity": (any(isinstance(m, torch.nn.ReLU) for m in detector.neck.modules()), False),
    }
    for key, (ours, theirs) in wanted.items():
        if ours != theirs:
            raise InputError(f"torchvision's model cannot have {key} {ours!r}; it has {theirs!r}")
    for level, sizes in ANCHOR_SIZES.items():
        cell = rpn.get_buffer(f"cell{level}")
        if not cell.is_meta and not torch.equal(cell.cpu(), cell_anchors(sizes, (0.5, 1.0, 2.0))):
            raise InputError(
                f"torchvision's model cannot have these rpn.sizes and rpn.ratios on level {level}"
            )
    names = {ours: theirs for theirs, ours in _TORCHVISION.items()}
    state = {_rename(name, names): value for name, value in detector.state_dict().items()}
    with torch.device("meta"):
        backbone = resnet_fpn_backbone(backbone_name=detector.bottom_up.name, weights=None)
        model = TorchvisionFasterRCNN(backbone, detector.classes + 1).state_dict()
    check_weights(model, state, "this detector", "torchvision's FasterRCNN")
    return state


def load_detectron2(
    weights: str | Path | Mapping[str, Any], score_threshold: float = 0.05, **arguments: Any
) -> FasterRCNN | ProposalNetwork:
    """Our detector with the weights, and the settings, of Detectron2's Faster R-CNN or RPN on FPN.

    Those of its model zoo with ResNet-50 or ResNet-101, or trained from their configurations. Prepare images
    as `DETECTRON2_IMAGES` says; they stay RGB and normalised as ours. Labels are 1…K in the order of
    Detectron2's classes, for COCO that of the category ids.

    Args:
        weights: a `.pkl` file of the model zoo, a `.pth` file, or a state dict.
        score_threshold: only detections with a higher score are given.
        **arguments: further arguments of `FasterRCNN`, or of `ProposalNetwork` where the weights end there.

    Returns:
        The detector, in evaluation mode.

    Raises:
        InputError: no such file, the file wants to run code, or the weights are not those of such a model.
    """
    source, content = _content(weights)
    state = _from_detectron2(content, source)
    blocks = sum(re.fullmatch(r"bottom_up\.layer3\.\d+\.conv1\.weight", name) is not None for name in state)
    depths: dict[int, Literal["resnet50", "resnet101"]] = {6: "resnet50", 23: "resnet101"}
    if blocks not in depths:
        raise InputError(
            f"{source} is no FPN detector of Detectron2's on a ResNet-50 or ResNet-101: "
            f"its res4 has {blocks} blocks, not 6 or 23"
        )
    settings = _DETECTRON2_RPN | {"bottom_up": partial(ResNet, depths[blocks], stride_in_1x1=True)}
    if _SCORES not in state or not state[_SCORES].dim():
        return _filled(ProposalNetwork(1, **(settings | arguments)), state, source)
    detections = replace(_DETECTRON2_ROI["detections"], score_threshold=score_threshold)
    settings |= _DETECTRON2_ROI | {"detections": detections}
    return _filled(FasterRCNN(len(state[_SCORES]) - 1, **(settings | arguments)), state, source)


def read_weights(weights: str | Path) -> dict[str, Any]:
    """What lies in a file of weights, or what torchvision publishes under a name.

    Raises:
        InputError: no such file, one that is damaged or wants to run code, or weights that cannot be had.
    """
    name = str(weights).removeprefix(f"{FasterRCNN_ResNet50_FPN_Weights.__name__}.")
    if name in FasterRCNN_ResNet50_FPN_Weights.__members__ and not Path(weights).exists():
        published = FasterRCNN_ResNet50_FPN_Weights[name]
        return dict(download(published, instead="download them elsewhere and give the file"))
    return read_any(weights)


def from_peer(content: Mapping[str, Any], source: str) -> dict[str, Tensor] | None:
    """A detector's weights under our names, whoever of the peers wrote them.

    Args:
        content: of the file.
        source: where that comes from, for messages.

    Returns:
        None where they are neither torchvision's nor Detectron2's.

    Raises:
        InputError: they are of a detector that ours cannot be.
    """
    content = content.get("model", content)
    if not isinstance(content, Mapping):
        return None
    names = [name for name in content if isinstance(name, str)]
    if any(name.startswith("backbone.body.") for name in names):
        return _from_torchvision(as_tensors(content, source))
    if any(name.startswith("backbone.bottom_up.") for name in names):
        return _from_detectron2(as_tensors(content, source), source)
    return None


def _content(weights: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Where weights come from, for messages, and the weights under their own names."""
    if isinstance(weights, Mapping):
        source, content = "the state dict", weights
    else:
        source, content = str(weights), read_weights(weights)
    return source, state_dict(content, source)


def _filled(detector: _D, state: dict[str, Tensor], source: str) -> _D:
    check_weights(detector.state_dict(), state, source)
    detector.load_state_dict(state)
    detector.eval()
    return detector


def _from_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = {name: value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    return {_rename(name, _TORCHVISION | _OLD_TORCHVISION): value for name, value in state.items()}


def _from_detectron2(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    body = "backbone.bottom_up."
    for name, wanted in (("pixel_mean", (103.53, 116.28, 123.675)), ("pixel_std", (1.0, 1.0, 1.0))):
        found = (
            tuple(round(value, 3) for value in state[name].flatten().tolist()) if name in state else wanted
        )
        if found != wanted:
            raise InputError(
                f"{source} is for images prepared otherwise than in Detectron2's model zoo: "
                f"its {name} is {found}, not {wanted}"
            )
    resnet = {name.removeprefix(body): value for name, value in state.items() if name.startswith(body)}
    ours = {f"bottom_up.{name}": value for name, value in from_msra(resnet).items()}
    # What older files hold besides weights.
    others = (body, "pixel_", "proposal_generator.anchor_generator.")
    ours |= {_rename(n, _DETECTRON2): value for n, value in state.items() if not n.startswith(others)}
    for name, value in ours.items():
        if name.startswith("roi_head.head.shared.scores.") and value.dim():
            # The background comes last there, and first here …
            ours[name] = value.roll(1, 0)
        if name.startswith("roi_head.head.shared.deltas.") and value.dim():
            # … where it has deltas, which nothing reads.
            ours[name] = torch.cat((torch.zeros_like(value[:4]), value))
    return ours


def _rename(name: str, table: Mapping[str, str]) -> str:
    for theirs, ours in sorted(table.items(), key=lambda pair: -len(pair[0])):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
