"""Numbers that make no sense are refused by name, the same from Python and from the command line."""

import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from fpn import FastRCNN, InputError
from fpn.lit.schedule import Schedule
from fpn.models.losses import LossSettings
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import DetectionSelection, ProposalSelection
from fpn.models.resnet import ResNet, Stages
from fpn.models.roi_head import HeadInput, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling

NECK = FeaturePyramid({2: 4, 3: 4, 4: 4, 5: 4}, channels=4)
RPN = partial(RegionProposalNetwork, NECK)
HEAD = partial(RoIHead, NECK, 3)
PYRAMID = partial(FeaturePyramid, {2: 4, 3: 4}, levels=(2, 3))
HIDDEN = partial(TwoFCHead, HeadInput(4, 2, 3, Stages(channels=0)))
FASTER = partial(FastRCNN, 3, bottom_up=partial(ResNet, "resnet10", norm="batch", width=2))
SLIM = partial(ResNet, "resnet10", norm="batch")


@pytest.mark.parametrize(
    ("make", "name", "wrong", "right"),
    [
        (Schedule, "schedule.steps", [0, -5], 1),
        (Schedule, "schedule.reference_images", [0], 1),
        (Schedule, "schedule.length", [0.0, -1.0, math.nan, math.inf], 1e-6),
        (Schedule, "schedule.milestones", [(-1, 5)], (0,)),
        (Schedule, "schedule.warmup_steps", [-1], 0),
        (ProposalSelection, "training_proposals or testing_proposals: pre_nms_top_n", [0, -1], 1),
        (ProposalSelection, "training_proposals or testing_proposals: post_nms_top_n", [0, -1], 1),
        (ProposalSelection, "training_proposals or testing_proposals: nms_iou", [-0.1, 1.1, math.nan], 1.0),
        (DetectionSelection, "detections.max_detections", [-1], 0),
        (DetectionSelection, "detections.score_threshold", [-0.1, 70], 0.0),
        (AnchorSampling, "anchor_sampling.per_image", [0, -1], 1),
        (AnchorSampling, "anchor_sampling.fg_fraction", [-1, 2], 1.0),
        (AnchorSampling, "anchor_sampling.crowd_overlap", [70], None),
        (RoISampling, "roi_sampling.per_image", [0, -1], 1),
        (RoISampling, "roi_sampling.foreground_iou", [50], 0.5),
        (LossSettings, "loss.rpn_beta", [-1], 0),
        (LossSettings, "loss.rpn_per_image", [0], None),
        (SLIM, "bottom_up.width", [0], 1),
        (PYRAMID, "neck.channels", [0], 1),
        (RPN, "rpn.ratios", [[], [1.0, 0.0]], [1.0]),
        (RPN, "rpn.sizes", [{2: []}, {2: [-8]}], {2: [8]}),
        (RPN, "rpn.size_factor", [0], 0.5),
        (RPN, "rpn.box_weights", [(1, 1, 1, 0)], (1, 1, 1, 1)),
        (HEAD, "roi_head.resolution", [0], 1),
        (HEAD, "roi_head.canonical_size", [0, -224], 56),
        (HIDDEN, "roi_head.head.hidden", [0], 1),
        (FASTER, "training_top_n", [-1], 0),
        (FASTER, "testing_top_n", [-1], 0),
        (HEAD, "roi_head.box_weights", [(10, 10, -5, 5)], (1, 1, 1, 1)),
    ],
)
def test_a_number_out_of_its_bounds_is_named(
    make: Callable[..., Any], name: str, wrong: list[Any], right: Any
) -> None:
    key = re.split(r"[. ]", name)[-1]
    for value in wrong:
        with pytest.raises(InputError, match=rf"^{name} is .*: give "):
            make(**{key: value})
    make(**{key: right})
