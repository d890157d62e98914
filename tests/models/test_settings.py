"""Numbers that make no sense are refused by name, the same from Python and from the command line."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from fpn import InputError
from fpn.lit.schedule import Schedule
from fpn.models.losses import LossSettings
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import DetectionSelection, ProposalSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling

NECK = FeaturePyramid({2: 4, 3: 4, 4: 4, 5: 4}, channels=4)
RPN = partial(RegionProposalNetwork, NECK)
HEAD = partial(RoIHead, NECK, 3)
PYRAMID = partial(FeaturePyramid, {2: 4, 3: 4}, levels=(2, 3))
SLIM = partial(ResNet, "resnet10", norm="batch")


@pytest.mark.parametrize(
    ("make", "name", "wrong", "right"),
    [
        (Schedule, "steps", [0, -5], 1),
        (Schedule, "reference_images", [0], 1),
        (Schedule, "length", [0.0, -1.0, math.nan], 1e-6),
        (Schedule, "milestones", [(-1, 5)], (0,)),
        (Schedule, "warmup_steps", [-1], 0),
        (ProposalSelection, "pre_nms_top_n", [0, -1], 1),
        (ProposalSelection, "post_nms_top_n", [0, -1], 1),
        (ProposalSelection, "nms_iou", [-0.1, 1.1, math.nan], 1.0),
        (DetectionSelection, "max_detections", [-1], 0),
        (DetectionSelection, "score_threshold", [-0.1, 70], 0.0),
        (AnchorSampling, "per_image", [0, -1], 1),
        (AnchorSampling, "fg_fraction", [-1, 2], 1.0),
        (AnchorSampling, "crowd_overlap", [70], None),
        (RoISampling, "per_image", [0, -1], 1),
        (RoISampling, "foreground_iou", [50], 0.5),
        (LossSettings, "rpn_beta", [-1], 0),
        (LossSettings, "rpn_per_image", [0], None),
        (SLIM, "width", [0], 1),
        (PYRAMID, "channels", [0], 1),
        (RPN, "ratios", [[], [1.0, 0.0]], [1.0]),
        (RPN, "sizes", [{2: []}, {2: [-8]}], {2: [8]}),
        (RPN, "size_factor", [0], 0.5),
        (RPN, "box_weights", [(1, 1, 1, 0)], (1, 1, 1, 1)),
        (HEAD, "resolution", [0], 1),
        (HEAD, "sampling_ratio", [-1], 0),
        (HEAD, "canonical_size", [0, -224], 56),
        (HEAD, "box_weights", [(10, 10, -5, 5)], (1, 1, 1, 1)),
    ],
)
def test_a_number_out_of_its_bounds_is_named(
    make: Callable[..., Any], name: str, wrong: list[Any], right: Any
) -> None:
    for value in wrong:
        with pytest.raises(InputError, match=rf"{name} is .*: give "):
            make(**{name: value})
    make(**{name: right})
