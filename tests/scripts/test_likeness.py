"""Likeness of levels, of maps made alike and unlike by hand."""

from functools import partial

import pytest
import torch
from torch import Tensor, nn

from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import FeaturePyramid
from fpn.models.resnet import ResNet
from fpn.types import Features
from likeness import likenesses


class Averages(nn.Module):
    """Level k is the image averaged over 2**k pixels, so that an octave more gives the next level."""

    def __init__(self, turned: int | None = None) -> None:
        super().__init__()
        self.turned = turned

    def forward(self, images: Tensor) -> Features:
        maps = {k: nn.functional.avg_pool2d(images, 2**k) for k in (2, 3, 4, 5)}
        return {k: -x if k == self.turned else x for k, x in maps.items()}


def detector(bottom_up: nn.Module) -> ProposalNetwork:
    torch.manual_seed(0)
    network = ProposalNetwork(
        1,
        bottom_up=partial(ResNet, "resnet10", norm="frozen", width=8),
        neck=partial(FeaturePyramid, channels=3, top_down=False, smooth=False),
    ).eval()
    for lateral in network.neck.laterals.values():
        lateral[0] = nn.Identity()
    network.bottom_up = bottom_up
    return network


def test_levels_of_one_make() -> None:
    images = nn.functional.interpolate(torch.randn(1, 3, 16, 24), scale_factor=8)  # 128 × 192
    found = likenesses(detector(Averages()), images)
    assert [one.levels for one in found] == [(2, 3), (3, 4), (4, 5)]
    for one in found:
        assert one.octave > 0.95
        assert one.objectness > 0.95
    # Blocks of 8 pixels: P2 is P3 with its cells repeated; P4 averages four of them.
    assert found[0].across == pytest.approx(1, abs=1e-5)
    assert 0.2 < found[1].across < 0.8


def test_a_level_that_says_the_contrary() -> None:
    images = nn.functional.interpolate(torch.randn(1, 3, 16, 24), scale_factor=8)
    found = {one.levels: one for one in likenesses(detector(Averages(turned=3)), images)}
    assert found[2, 3].octave < -0.95
    assert found[2, 3].across == pytest.approx(-1, abs=1e-5)
    assert found[2, 3].objectness < 0.5
    assert found[4, 5].octave > 0.95
