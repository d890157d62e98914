from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models._utils import IntermediateLayerGetter
from torchvision.models.resnet import BasicBlock
from torchvision.ops import FrozenBatchNorm2d

from fpn.errors import InputError
from fpn.models.resnet import BLOCKS, ResNet


def published(name: str) -> nn.Module:
    """torchvision's ResNet, or one of its blocks; its norm statistics are not those of a new one."""
    model: nn.Module
    if name == "resnet10":
        model = torchvision.models.ResNet(BasicBlock, [1, 1, 1, 1])
    else:
        model = getattr(torchvision.models, name)(weights=None)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.weight, 0.3, 0.6)
    return model.eval()


@pytest.mark.parametrize("name", list(BLOCKS))
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_maps_are_torchvisions(name: str, norm: str, tmp_path: Path) -> None:
    peer = published(name)
    file = tmp_path / "imagenet.pth"
    torch.save(peer.state_dict(), file)
    ours = ResNet(name, weights=str(file), norm=norm).eval()  # type: ignore[arg-type]
    ours.load_weights()
    images = torch.randn(2, 3, 65, 98)
    layers = IntermediateLayerGetter(peer, {f"layer{k - 1}": k for k in range(2, 6)})
    with torch.no_grad():
        expected, got = layers(images), ours(images)
    assert list(got) == [2, 3, 4, 5]
    for k in got:
        torch.testing.assert_close(got[k], expected[k], atol=1e-5, rtol=1e-5)
        assert got[k].shape[1] == ours.channels[k]
        assert got[k].shape[-2:] == (-(-65 // 2**k), -(-98 // 2**k))


def test_stride_in_1x1_moves_only_the_stride() -> None:
    on_3x3, on_1x1 = ResNet("resnet50"), ResNet("resnet50", stride_in_1x1=True)
    assert on_1x1.state_dict().keys() == on_3x3.state_dict().keys()
    for stage in (2, 3, 4):
        block = on_1x1.get_submodule(f"layer{stage}.0")
        assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))
        block = on_3x3.get_submodule(f"layer{stage}.0")
        assert (block.conv1.stride, block.conv2.stride) == ((1, 1), (2, 2))
    x = torch.randn(1, 3, 64, 64)
    on_1x1.load_state_dict(on_3x3.state_dict())
    shapes = [{k: v.shape for k, v in m.eval()(x).items()} for m in (on_1x1, on_3x3)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("frozen", range(6))
@pytest.mark.parametrize("as_built", [True, False])
def test_frozen_stages_do_not_learn(frozen: int, as_built: bool) -> None:
    resnet = ResNet("resnet18", norm="batch", frozen_stages=frozen, width=16)
    if not as_built:
        resnet.eval().train()
    parts = [[resnet.conv1, resnet.bn1], *[[resnet.get_submodule(f"layer{i}")] for i in range(1, 5)]]
    before = {k: v.clone() for k, v in resnet.state_dict().items()}
    total = sum(c.sum() for c in resnet(torch.randn(2, 3, 64, 64)).values())
    if frozen < 5:
        total.backward()
    after = resnet.state_dict()
    for index, part in enumerate(parts):
        for module in part:
            assert all(p.requires_grad == (index >= frozen) for p in module.parameters())
            assert all((p.grad is None) == (index < frozen) for p in module.parameters())
    moved = {key.split(".")[0] for key in before if not torch.equal(before[key], after[key])}
    learning = {"bn1"} if frozen == 0 else set()
    assert moved == learning | {f"layer{i}" for i in range(max(frozen, 1), 5)}


def test_norms_and_width() -> None:
    kinds = {"frozen": FrozenBatchNorm2d, "batch": nn.BatchNorm2d, "group": nn.GroupNorm}
    for norm, kind in kinds.items():
        resnet = ResNet("resnet18", norm=norm, width=16)  # type: ignore[arg-type]
        assert isinstance(resnet.bn1, kind)
        assert resnet.channels == {2: 16, 3: 32, 4: 64, 5: 128}
    assert ResNet("resnet50", stages=3).channels == {2: 256, 3: 512, 4: 1024}


def test_mistakes_are_named(tmp_path: Path) -> None:
    file = tmp_path / "wrong.pth"
    torch.save(published("resnet18").state_dict(), file)
    for name, weights, message in (
        ("resnet50", str(file), r"weights .*wrong\.pth does not fit resnet50"),
        ("resnet50", str(tmp_path / "absent.pth"), r"absent\.pth does not exist"),
        ("resnet50", "IMAGENET1K_V9", "no weights 'IMAGENET1K_V9'; there are IMAGENET1K_V1"),
        ("resnet10", "IMAGENET1K_V1", "resnet10 has no weights 'IMAGENET1K_V1'; none are published: give a"),
    ):
        resnet = ResNet(name, weights=weights)  # type: ignore[arg-type]
        with pytest.raises(InputError, match=message):
            resnet.load_weights()
    with pytest.raises(InputError, match="'resnet7' is not known"):
        ResNet("resnet7")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="frozen_stages is 6: this bottom-up has 5 stages"):
        ResNet("resnet18", frozen_stages=6)


def test_a_weights_name_is_torchvisions(monkeypatch: pytest.MonkeyPatch) -> None:
    peer = published("resnet18")
    weights = torchvision.models.ResNet18_Weights
    asked = []

    def fetch(self: object, **options: object) -> dict[str, torch.Tensor]:
        asked.append((self, options))
        return peer.state_dict()

    monkeypatch.setattr(weights, "get_state_dict", fetch)
    ours = ResNet("resnet18", weights="IMAGENET1K_V1")
    assert not asked
    ours.load_weights()
    assert asked[0][0] is weights.IMAGENET1K_V1
    assert asked[0][1]["check_hash"] is True
    assert torch.equal(ours.conv1.weight, peer.conv1.weight)

    def offline(self: object, **options: object) -> dict[str, torch.Tensor]:
        raise OSError("no route to host")

    monkeypatch.setattr(weights, "get_state_dict", offline)
    with pytest.raises(InputError, match="could not be downloaded"):
        ours.load_weights()
