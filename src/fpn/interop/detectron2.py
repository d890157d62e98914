"""Detectron2's Faster R-CNN and RPN on FPN: their weights, and settings, for our detectors."""

import re
from collections.abc import Mapping
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fpn.data.transforms import ImageSettings
from fpn.errors import InputError
from fpn.interop.files import SCORES, content_of, filled, renamed, with_threshold
from fpn.interop.settings import arguments_in
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.models.msra import from_msra

_NAMES = {
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
DETECTRON2_IMAGES = ImageSettings(antialias=True, rounding="nearest")
"""How Detectron2 resizes images; the channels' order and scale are in the weights once these are loaded."""

CONVENTION = "conventions/detectron2"
"""The configuration file of what its detectors do with their weights."""


def load_detectron2(
    weights: str | Path | Mapping[str, Any], score_threshold: float | None = None, **arguments: Any
) -> FasterRCNN | ProposalNetwork:
    """Our detector with the weights, and the settings, of Detectron2's Faster R-CNN or RPN on FPN.

    Those of its model zoo with ResNet-50 or ResNet-101, or trained from their configurations. Prepare images
    as `DETECTRON2_IMAGES` says; they stay RGB and normalised as ours. Labels are 1…K in the order of
    Detectron2's classes, for COCO that of the category ids.

    Args:
        weights: a `.pkl` file of the model zoo, a `.pth` file, or a state dict.
        score_threshold: only detections with a higher score are given; None for that of `detections`, 0.05.
        **arguments: further arguments of `FasterRCNN`, or of `ProposalNetwork` where the weights end there.

    Returns:
        The detector, in evaluation mode.

    Raises:
        InputError: no such file, the file wants to run code, or the weights are not those of such a model.
    """
    source, content = content_of(weights)
    state = from_detectron2(content, source)
    blocks = sum(re.fullmatch(r"bottom_up\.layer3\.\d+\.conv1\.weight", name) is not None for name in state)
    depths: dict[int, Literal["resnet50", "resnet101"]] = {6: "resnet50", 23: "resnet101"}
    if blocks not in depths:
        raise InputError(
            f"{source} is no FPN detector of Detectron2's on a ResNet-50 or ResNet-101: "
            f"its res4 has {blocks} blocks, not 6 or 23"
        )
    settings = arguments_in(CONVENTION)
    settings |= {"bottom_up": partial(settings["bottom_up"], depths[blocks])} | arguments
    if SCORES not in state or not state[SCORES].dim():
        taken = signature(ProposalNetwork).parameters
        settings = {key: value for key, value in settings.items() if key in taken or key in arguments}
        return filled(ProposalNetwork(1, **settings), state, source)
    return filled(
        FasterRCNN(len(state[SCORES]) - 1, **with_threshold(settings, score_threshold)), state, source
    )


def from_detectron2(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Its weights under our names.

    Raises:
        InputError: they are for images prepared otherwise.
    """
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
    ours |= {renamed(n, _NAMES): value for n, value in state.items() if not n.startswith(others)}
    for name, value in ours.items():
        if name.startswith("roi_head.head.shared.scores.") and value.dim():
            # The background comes last there, and first here …
            ours[name] = value.roll(1, 0)
        if name.startswith("roi_head.head.shared.deltas.") and value.dim():
            # … where it has deltas, which nothing reads.
            ours[name] = torch.cat((torch.zeros_like(value[:4]), value))
    return ours
