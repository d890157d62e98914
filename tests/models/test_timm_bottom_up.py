"""timm's networks as bottom-ups, with random weights and small images."""

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from fpn.errors import InputError
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.optimized import optimized
from fpn.models.roi_head import Conv5Head, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.timm_bottom_up import TimmBottomUp
from fpn.types import Batch, Targets

NAMES = ["resnet18", "mobilenetv3_small_050", "efficientnet_lite0", "convnext_atto"]


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"^TimmBottomUp needs timm: pip install 'fpn\[timm\]'$"):
        TimmBottomUp("resnet18")


@pytest.fixture
def timm() -> Any:
    return pytest.importorskip("timm")


@pytest.mark.parametrize("name", [*NAMES, "hrnet_w18_small"])
def test_its_maps_are_timms(timm: Any, name: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, features_only=True).eval()
    torch.manual_seed(0)
    ours = TimmBottomUp(name).eval()
    # timm's own extractors of some networks leave out other parts, and so draw other weights.
    state = {re.sub(r"^blocks\.", "blocks_", key): value for key, value in theirs.state_dict().items()}
    if "hrnet" in name:
        state = {f"body.{key}": value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state)
    images = torch.rand(1, 3, 96, 64)
    strides = theirs.feature_info.reduction()
    with torch.no_grad():
        expected = {s.bit_length() - 1: c for s, c in zip(strides, theirs(images), strict=True) if s > 2}
        found = ours(images)
    assert list(found) == list(ours.channels) == [2, 3, 4, 5]
    for k, c in found.items():
        torch.testing.assert_close(c, expected[k])
        assert c.shape[1] == ours.channels[k]


def batch() -> Batch:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(2, 3, 64, 64, generator=generator)
    truth = Targets(torch.tensor([[4.0, 4, 50, 60]]), torch.tensor([2]), torch.zeros(0, 4))
    return Batch(images, [(64, 64)] * 2, [(64, 64)] * 2, [0, 1], [truth, truth])


SMALL: dict[str, Any] = {
    "neck": partial(FeaturePyramid, channels=16),
    "roi_head": partial(RoIHead, head=partial(TwoFCHead, hidden=16)),
}


@pytest.mark.parametrize("name", NAMES)
def test_a_pyramid_on_it_learns(timm: Any, name: str) -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(3, bottom_up=partial(TimmBottomUp, name, norm="live"), **SMALL).train()
    optimizer = torch.optim.SGD(detector.parameters(), lr=0.002, momentum=0.9)
    totals = []
    for _ in range(4):
        total = sum(detector.losses(batch(), torch.Generator().manual_seed(0)).values())
        assert isinstance(total, torch.Tensor)
        optimizer.zero_grad()
        total.backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in detector.parameters())
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < totals[0]


@pytest.mark.parametrize("name", NAMES)
def test_frozen_stages_and_norms_stay(timm: Any, name: str) -> None:
    bottom_up = TimmBottomUp(name, frozen_stages=2).train()
    before = {key: value.clone() for key, value in bottom_up.state_dict().items()}
    features = bottom_up(batch().images)
    # A ConvNeXt has no map of stride 2: its second stage makes C3.
    first = {k for k, c in features.items() if not c.requires_grad}
    assert first == ({2, 3} if "convnext" in name else {2})
    sum(c.square().mean() for c in features.values()).backward()
    for module in bottom_up.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert not module.training
            assert module.weight.grad is None
    assert all(torch.equal(value, before[key]) for key, value in bottom_up.state_dict().items())
    live = TimmBottomUp(name, norm="live").train()
    assert live.fixed is False
    assert all(module.training for module in live.modules())


@pytest.mark.parametrize("name", ["mobilenetv3_small_050", "convnext_atto"])
def test_it_ends_and_a_head_goes_on(timm: Any, name: str) -> None:
    whole = TimmBottomUp(name).eval()
    images = batch().images
    with torch.no_grad():
        expected = whole(images)
        above = whole.end_at(4).eval()
        torch.testing.assert_close(above(whole(images)[4]), expected[5])
    assert list(whole.channels) == [2, 3, 4]
    detector = FasterRCNN(
        3,
        bottom_up=partial(TimmBottomUp, name),
        neck=SingleLevel,
        rpn=partial(RegionProposalNetwork, sizes={4: [32, 64]}),
        roi_head=partial(RoIHead, head=Conv5Head),
    )
    sum(detector.losses(batch()).values()).backward()
    assert all(p.grad is not None for p in detector.parameters() if p.requires_grad)


def test_one_that_is_no_chain_gives_the_levels_it_is_asked_for(timm: Any) -> None:
    with pytest.raises(
        InputError, match=r"hrnet_w18_small cannot end there: .*bottom_up\.levels \[2, 3, 4\]"
    ):
        TimmBottomUp("hrnet_w18_small").end_at(4)
    assert list(TimmBottomUp("hrnet_w18_small", levels=[3, 4])(batch().images)) == [3, 4]
    with pytest.raises(InputError, match="frozen_stages is 2: this bottom-up has 1 stages"):
        TimmBottomUp("hrnet_w18_small", frozen_stages=2)


@pytest.mark.parametrize("name", NAMES)
@torch.inference_mode()
def test_an_optimized_detector_finds_the_same(timm: Any, name: str) -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(3, bottom_up=partial(TimmBottomUp, name), **SMALL).eval()
    (expected, _), (found, _) = (d(batch()).proposals for d in (detector, optimized(detector)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("ending", [".pth", ".safetensors"])
def test_weights_of_a_file(timm: Any, tmp_path: Path, name: str, ending: str) -> None:
    trained = timm.create_model(name, num_classes=7)
    file = str(tmp_path / f"trained{ending}")
    if ending == ".pth":
        torch.save({"state_dict": trained.state_dict(), "epoch": 3}, file)
    else:
        pytest.importorskip("safetensors.torch").save_file(trained.state_dict(), file)
    ours = TimmBottomUp(name, weights=file)
    ours.end_at(4)
    ours.load_weights()
    theirs = {key.replace(".", "_"): value for key, value in trained.state_dict().items()}
    assert all(torch.equal(value, theirs[key.replace(".", "_")]) for key, value in ours.state_dict().items())


def test_mistakes_are_named(timm: Any, tmp_path: Path) -> None:
    other, damaged = tmp_path / "other.pth", tmp_path / "damaged.safetensors"
    torch.save(timm.create_model("resnet10t").state_dict(), other)
    damaged.write_bytes(b"nothing")
    for arguments, message in (
        ({"name": "resnet19"}, "has no network 'resnet19'"),
        ({"name": "hf-hub:someone/model"}, "has no network 'hf-hub:someone/model'"),
        (
            {"levels": [2, 7]},
            r"bottom_up.levels \[2, 7\]: the maps of resnet18 have strides of \[2, 4, 8, 16, 32\]",
        ),
        ({"options": {"depth": 3}}, "timm cannot make maps of resnet18 .*depth"),
        ({"options": {"checkpoint_path": "x.pth"}}, "bottom_up.options cannot have checkpoint_path"),
    ):
        with pytest.raises(InputError, match=message):
            TimmBottomUp(**({"name": "resnet18"} | arguments))
    for weights, message in (
        (str(other), "of resnet18 cannot be loaded .*(Missing|Unexpected) key"),
        (str(damaged), r"damaged\.safetensors cannot be read"),
        ("absent.pth", "absent.pth does not exist"),
        ("absent.safetensors", "absent.safetensors does not exist"),
        ("IMAGENET1K_V1", "resnet18 has no weights 'IMAGENET1K_V1': there are default, .*a1_in1k"),
    ):
        with pytest.raises(InputError, match=message) as caught:
            TimmBottomUp("resnet18", weights=weights).load_weights()
        assert "\n" not in str(caught.value)


def test_a_tag_is_timms(timm: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = timm.create_model("resnet18")
    asked = []

    def download(*where: Any, **_: Any) -> dict[str, torch.Tensor]:
        asked.append(where)
        return dict(trained.state_dict())

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", download)
    for weights, repository in (
        ("default", "timm/resnet18.a1_in1k"),
        ("fb_swsl_ig1b_ft_in1k", "timm/resnet18.fb_swsl_ig1b_ft_in1k"),
    ):
        asked.clear()
        ours = TimmBottomUp("resnet18", weights=weights)
        assert not asked
        ours.load_weights()
        assert repository in str(asked[0])
        assert torch.equal(ours.layer1[0].conv1.weight, trained.layer1[0].conv1.weight)

    def offline(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    with pytest.raises(InputError, match=r"cannot be loaded \(no route to host\): give others"):
        TimmBottomUp("resnet18", weights="default").load_weights()


def test_what_pixels_its_weights_were_trained_on(timm: Any, tmp_path: Path) -> None:
    """As timm's own pre-processing is told."""
    for name, weights, tagged in (
        ("vit_tiny_patch16_224", "default", "vit_tiny_patch16_224"),
        ("resnet18", "fb_swsl_ig1b_ft_in1k", "resnet18.fb_swsl_ig1b_ft_in1k"),
    ):
        told = timm.data.resolve_data_config(timm.create_model(tagged).pretrained_cfg)
        assert TimmBottomUp(name, weights=weights).pixels == (told["mean"], told["std"])
    assert TimmBottomUp("resnet18").pixels is None
    assert TimmBottomUp("resnet18", weights=str(tmp_path / "own.pth")).pixels is None
