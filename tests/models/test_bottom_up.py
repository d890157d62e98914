"""A bottom-up of one's own: what the base class gives to a few plain convolutions."""

import copy
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from fpn.errors import InputError
from fpn.models.bottom_up import BottomUp
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.models.necks import SingleLevel
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.types import Batch, Targets


class Plain(BottomUp):
    """As a user writes it, with a BatchNorm in each stage."""

    def __init__(
        self,
        width: int = 4,
        frozen_stages: int = 0,
        frozen_norms: bool = False,
        weights: str | None = None,
    ) -> None:
        channels = {level: width * level for level in range(1, 6)}
        stages = {
            k: nn.Sequential(
                nn.Conv2d(channels.get(k - 1, 3), c, 3, stride=2, padding=1), nn.BatchNorm2d(c), nn.ReLU()
            )
            for k, c in channels.items()
        }
        super().__init__(stages, channels, frozen_stages, frozen_norms, weights)


C4 = partial(
    FasterRCNN,
    3,
    neck=SingleLevel,
    rpn=partial(RegionProposalNetwork, sizes={4: [32, 64]}),
    roi_head=partial(RoIHead, head=Conv5Head),
)


def batch() -> Batch:
    images = torch.randn(2, 3, 96, 64)
    truth = Targets(torch.tensor([[4.0, 4, 50, 60]]), torch.tensor([2]), torch.zeros(0, 4))
    return Batch(images, [(96, 64)] * 2, [(96, 64)] * 2, [0, 1], [truth, truth])


def test_its_maps_are_its_stages_one_after_the_other() -> None:
    plain = Plain()
    images = torch.rand(1, 3, 65, 98)
    features = plain(images)
    assert {k: c.shape[1] for k, c in features.items()} == plain.channels
    x = images
    for level, stage in enumerate((plain.get_submodule(f"stage{k}") for k in range(1, 6)), 1):
        x = stage(x)
        torch.testing.assert_close(features[level], x)
        assert x.shape[-2:] == (-(-65 // 2**level), -(-98 // 2**level))


@pytest.mark.parametrize("frozen", range(6))
@pytest.mark.parametrize("norms", [False, True])
def test_what_is_frozen_neither_learns_nor_counts(frozen: int, norms: bool) -> None:
    plain = Plain(frozen_stages=frozen, frozen_norms=norms).eval().train()
    assert plain.fixed == (frozen > 0 or norms)
    before = copy.deepcopy(plain.state_dict())
    total = sum(c.sum() for c in plain(torch.rand(2, 3, 64, 64)).values())
    if frozen < 5:
        total.backward()
    for level in range(1, 6):
        conv, norm, _ = plain.get_submodule(f"stage{level}")
        assert (conv.weight.grad is not None) == (level > frozen)
        assert (norm.weight.grad is not None) == (level > frozen and not norms)
        mean = f"stage{level}.1.running_mean"
        assert torch.equal(before[mean], plain.state_dict()[mean]) == (level <= frozen or norms)


def test_frozen_stages_are_counted_alike() -> None:
    for bottom_up in (Plain(), ResNet("resnet10", width=4)):
        with pytest.raises(InputError, match="frozen_stages is 6: this bottom-up has 5 stages"):
            type(bottom_up)(frozen_stages=6)
    resnet, plain = ResNet("resnet10", norm="batch", width=4, frozen_stages=2), Plain(frozen_stages=2)
    for bottom_up in (resnet, plain):
        images = torch.rand(2, 3, 64, 64)
        trained = {k: c.requires_grad for k, c in bottom_up(images).items() if k > 1}
        assert trained == {2: False, 3: True, 4: True, 5: True}


def test_it_ends_where_nothing_reads_on() -> None:
    plain = Plain(frozen_stages=4)
    expected = plain.train()(images := torch.rand(2, 3, 64, 64))
    taken = plain.end_at(3)
    assert plain.channels == {1: 4, 2: 8, 3: 12}
    assert not any(name.startswith(("stage4", "stage5")) for name in plain.state_dict())
    assert taken.channels == 20
    assert len(taken) == 2
    # Stage 4 is frozen there too, stage 5 is not; its norm has the batch's statistics.
    torch.testing.assert_close(taken.train()(plain(images)[3]), expected[5])
    assert [stage.training for stage in taken] == [False, True]
    assert len(plain.end_at(3)) == 0


def test_a_stage_of_several_modules_is_one() -> None:
    parts = {"conv": nn.Conv2d(3, 4, 3, stride=2, padding=1), "norm": nn.BatchNorm2d(4)}
    bottom_up = BottomUp({1: parts, 2: nn.MaxPool2d(2), 3: parts["norm"]}, {1: 4})
    assert list(bottom_up.state_dict())[:2] == ["conv.weight", "conv.bias"]
    first = BottomUp(
        {1: nn.Conv2d(3, 4, 3, stride=2, padding=1), 2: {"a": nn.ReLU(), "b": nn.AvgPool2d(2)}}, {1: 4, 2: 4}
    )
    x = torch.rand(1, 3, 32, 32)
    expected = first(x)[2]
    taken = first.end_at(1)
    assert torch.equal(taken(first(x)[1]), expected)


def test_a_map_of_another_stride_is_named() -> None:
    wrong = BottomUp({2: nn.Conv2d(3, 4, 3, stride=2, padding=1)}, {2: 4})
    with pytest.raises(InputError, match=r"map of level 2 is \(32, 32\) for an image of \(64, 64\)"):
        wrong(torch.rand(1, 3, 64, 64))


class Whole(Plain):
    """One that makes its maps together."""

    def __init__(self) -> None:
        super().__init__()
        BottomUp.__init__(self, {5: nn.Identity()}, {4: 16, 5: 20})


def test_one_that_cannot_end_says_so() -> None:
    with pytest.raises(InputError, match=r"Whole cannot end there: .* bottom_up\.levels \[4\]"):
        Whole().end_at(4)


def test_weights_are_loaded_when_asked_for_and_not_before(tmp_path: Path) -> None:
    trained = Plain()
    file = tmp_path / "plain.pth"
    torch.save(trained.state_dict(), file)
    plain = Plain(weights=str(file))
    detector = ProposalNetwork(
        3,
        bottom_up=lambda: plain,
        neck=partial(SingleLevel, level=3),
        rpn=partial(RegionProposalNetwork, sizes={3: [32]}),
    )
    assert not torch.equal(plain.stage1[0].weight, trained.stage1[0].weight)
    detector.bottom_up.load_weights()
    for name, value in plain.state_dict().items():
        assert torch.equal(value, trained.state_dict()[name])
    assert not any(name.startswith("stage4") for name in plain.state_dict())
    Plain().load_weights()
    for weights, message in (
        ("absent.pth", "absent.pth does not exist"),
        (str(file), "does not fit Plain: stage1"),
    ):
        with pytest.raises(InputError, match=message):
            Plain(width=5, weights=weights).load_weights()


@pytest.mark.parametrize("shared", [True, False])
def test_stages_in_a_head_get_the_weights_too(tmp_path: Path, shared: bool) -> None:
    trained = ResNet("resnet18", width=4)
    for value in trained.state_dict().values():
        value.uniform_(0.5, 1.5)
    file = tmp_path / "resnet.pth"
    torch.save(trained.state_dict(), file)
    detector = C4(
        bottom_up=partial(ResNet, "resnet18", width=4, weights=str(file)),
        roi_head=partial(RoIHead, head=Conv5Head, shared=shared),
    )
    for one in (detector, copy.deepcopy(detector)):
        one.bottom_up.load_weights()
        (head,) = one.roi_head.head.values()
        for name, value in trained.layer4.state_dict().items():
            assert torch.equal(head.conv5[0].state_dict()[name], value)


def test_a_c4_detector_on_it_learns() -> None:
    detector = C4(bottom_up=Plain)
    losses = detector.losses(batch())
    sum(losses.values()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
    names = [name for name, _ in detector.named_parameters() if "conv5" in name]
    assert names[0] == "roi_head.head.shared.conv5.0.0.weight"
