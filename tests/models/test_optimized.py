import copy
import pickle
import warnings
from functools import partial
from threading import Lock
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torchvision.models import resnet18
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import FrozenBatchNorm2d

from fpn.models.bottom_up import BottomUp
from fpn.models.detectors import FasterRCNN
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.norms import FrozenBatchNorm, NormedConv2d, fold_norms
from fpn.models.optimized import accelerate, optimized
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.types import Batch, Features, Targets


def stir(network: nn.Module) -> None:
    """Give norms something to do."""
    generator = torch.Generator().manual_seed(1)
    for module in network.modules():
        if hasattr(module, "running_var"):
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.running_mean.normal_(0, 0.3, generator=generator)
            with torch.no_grad():
                module.weight.uniform_(0.5, 1.5, generator=generator)
                module.bias.normal_(0, 0.3, generator=generator)


def batch() -> Batch:
    images = torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))
    return Batch(images, [(96, 64), (90, 50)], [(96, 64), (90, 50)], [0, 1])


def test_a_convolution_with_its_norm_is_both_of_torchvision() -> None:
    theirs = resnet18(norm_layer=lambda channels: FrozenBatchNorm2d(channels, eps=1e-3)).double()
    ours = ResNet("resnet18", norm_eps=1e-3).double()
    stir(theirs)
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.startswith("fc.")})
    image = torch.rand(1, 3, 40, 50, dtype=torch.float64)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(image))))
    expected = theirs.layer2(theirs.layer1(x))
    found = ours(image)[3]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    towards = torch.rand_like(expected)
    found.backward(towards)
    expected.backward(towards)
    gradients = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    assert "layer2.0.downsample.0.weight" in gradients
    for name, p in ours.named_parameters():
        if name in gradients:
            torch.testing.assert_close(p.grad, gradients[name], rtol=1e-10, atol=1e-10)


def small(norm: Literal["frozen", "batch", "group"], conv5: bool) -> FasterRCNN:
    torch.manual_seed(0)
    body = partial(ResNet, "resnet18", norm=norm, width=8)
    if not conv5:
        return FasterRCNN(3, bottom_up=body)
    return FasterRCNN(
        3,
        bottom_up=body,
        neck=SingleLevel,
        rpn=partial(RegionProposalNetwork, sizes={4: [32, 64]}),
        roi_head=partial(RoIHead, head=Conv5Head),
    )


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@pytest.mark.parametrize("conv5", [False, True])
@torch.inference_mode()
def test_finds_the_same_and_leaves_the_detector_alone(
    norm: Literal["frozen", "batch", "group"], conv5: bool
) -> None:
    detector = small(norm, conv5).train()
    stir(detector)
    before = {name: (value.data_ptr(), value.clone()) for name, value in detector.state_dict().items()}
    layout = detector.bottom_up.conv1.weight.stride()
    quick = optimized(detector)
    assert detector.training
    assert not quick.training
    expected, found = detector.eval()(batch()), quick(batch())
    for one, other in zip(found.detections, expected.detections, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
    assert sum(len(one.boxes) for one in found.proposals)
    for name, value in detector.state_dict().items():
        assert value.data_ptr() == before[name][0]
        assert torch.equal(value, before[name][1])
    assert detector.bottom_up.conv1.weight.stride() == layout
    folded = [m for m in quick.modules() if isinstance(m, NormedConv2d | FrozenBatchNorm | nn.BatchNorm2d)]
    assert not folded
    own = {value.data_ptr() for value in quick.state_dict().values() if value.numel()}
    assert own.isdisjoint(pointer for pointer, _ in before.values() if pointer)


class Listener:
    """A hook with what cannot be copied, as a profiler's has."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.heard: list[str] = []

    def before(self, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.heard.append(f"before {type(module).__name__}")

    def __call__(self, module: nn.Module, inputs: tuple[Tensor, ...], output: object) -> None:
        self.heard.append(f"after {type(module).__name__}")


@torch.inference_mode()
def test_who_listens_to_the_detector_hears_its_copy() -> None:
    detector, listener = small("batch", conv5=False), Listener()
    detector.neck.register_forward_hook(listener)
    detector.rpn.register_forward_pre_hook(listener.before)
    quick = optimized(detector)
    later = quick.neck.register_forward_hook(listener)
    quick(batch())
    assert listener.heard == [*2 * ["after FeaturePyramid"], "before RegionProposalNetwork"]
    later.remove()
    detector.eval()(batch())
    assert listener.heard[3:] == ["after FeaturePyramid", "before RegionProposalNetwork"]


def test_shortcuts_and_their_norms_are_folded_too() -> None:
    body = ResNet("resnet50", width=8, norm="batch").eval()
    stir(body)
    image = torch.rand(1, 3, 64, 64)
    expected: dict[int, Tensor] = body(image)
    fold_norms(body)
    assert isinstance(body.layer1[0].downsample[1], nn.Identity)
    for level, c in body(image).items():
        torch.testing.assert_close(c, expected[level], rtol=1e-4, atol=1e-4)


class FoldableStages(BottomUp):
    """torchvision's blocks, with settings of a convolution that the ResNet has not."""

    def __init__(self) -> None:
        wide = Bottleneck(8, 8, groups=2, base_width=128, dilation=2)
        wide.conv1.bias = nn.Parameter(torch.randn(32))
        wide.conv2.padding_mode = "reflect"
        odd = BasicBlock(32, 32)
        odd.bn2 = nn.BatchNorm2d(32, affine=False)
        stem = nn.Conv2d(3, 8, 3, stride=4, padding=1)
        shortcut = nn.Sequential(nn.Conv2d(8, 32, 1), nn.BatchNorm2d(32))
        wide.downsample = shortcut
        super().__init__({2: {"conv1": stem, "bn1": nn.BatchNorm2d(8), "wide": wide, "odd": odd}}, {2: 32})

    def fold_norms(self) -> None:
        fold_norms(self)


def test_a_fold_respects_every_setting_of_a_convolution() -> None:
    network = FoldableStages().double().eval()
    stir(network.get_submodule("wide"))
    stir(network.get_submodule("bn1"))
    image = torch.rand(1, 3, 64, 64, dtype=torch.float64)
    expected = network(image)[2]
    quick = optimized(network)
    torch.testing.assert_close(quick(image)[2], expected, rtol=1e-10, atol=1e-10)
    kept = [name for name, module in quick.named_modules() if isinstance(module, nn.BatchNorm2d)]
    assert kept == ["odd.bn2"]


class Twice(nn.Module):
    """A convolution and its norm that two places share."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = self.conv1, nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        # In another order than their names say.
        return self.bn1(self.bn2(self.conv2(torch.relu(self.conv1(x)))))


def block(kind: str, c: int) -> nn.Module:
    settings: dict[str, dict[str, Any]] = {
        "bias": {"padding": 1},
        "dilated": {"padding": 3, "dilation": 3},
        "depthwise": {"padding": 1, "groups": c},
        "reflecting": {"padding": 1, "padding_mode": "reflect"},
    }
    if kind == "shared":
        return Twice(c)
    if kind == "weight norm":
        return nn.Sequential(weight_norm(nn.Conv2d(c, c, 3, padding=1)), nn.BatchNorm2d(c))
    if kind == "transposed":
        return nn.Sequential(nn.ConvTranspose2d(c, c, 3, padding=1), nn.BatchNorm2d(c), nn.ReLU())
    return nn.Sequential(nn.Conv2d(c, c, 3, **settings[kind]), nn.BatchNorm2d(c), nn.ReLU())


class Foreign(FeaturePyramid):
    """A neck of a user's, with a block behind each level."""

    def __init__(self, *args: Any, kind: str = "bias", tied: bool = False, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        one = block(kind, self.channels)
        self.after = nn.ModuleList(one if tied else block(kind, self.channels) for _ in self.levels)

    def forward(self, c: Features) -> Features:
        return {k: after(p) for (k, p), after in zip(super().forward(c).items(), self.after, strict=True)}


KINDS = ["bias", "dilated", "depthwise", "reflecting", "shared", "weight norm", "transposed"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [False, True])
@torch.no_grad()
def test_foreign_networks_do_what_they_did(kind: str, tied: bool) -> None:
    torch.manual_seed(0)
    detector = FasterRCNN(
        3,
        bottom_up=partial(ResNet, "resnet10", norm="batch", width=8),
        neck=partial(Foreign, channels=8, kind=kind, tied=tied),
        roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=8)),
    ).eval()
    stir(detector)
    quick = optimized(detector)
    images = batch().images
    (c, p), (quick_c, quick_p) = ((c := d.bottom_up(images), d.neck(c)) for d in (detector, quick))
    for level in c:
        torch.testing.assert_close(quick_c[level], c[level], rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(quick_p[level], p[level], rtol=1e-4, atol=1e-4)
        # What is not folded has not changed at all.
        for one in (detector, quick):
            torch.testing.assert_close(one.neck(c)[level], p[level], rtol=1e-5, atol=1e-5)
    assert [m for m in quick.neck.modules() if isinstance(m, nn.BatchNorm2d)]


@pytest.mark.parametrize("norm", ["frozen", "batch", "group"])
@torch.no_grad()
def test_weights_changed_afterwards_change_nothing(norm: Literal["frozen", "batch", "group"]) -> None:
    detector = small(norm, conv5=False).eval()
    expected = detector(batch()).detections
    quick = optimized(detector)
    for value in detector.state_dict().values():
        value.copy_(torch.rand(value.shape))
    detector.bottom_up.train()(batch().images)
    for one, other in zip(quick(batch()).detections, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)


def test_gradients_are_not_copied() -> None:
    detector = small("batch", conv5=False)
    sum(p.sum() for p in detector.parameters()).backward()
    assert all(p.grad is None for p in optimized(detector).parameters())
    assert all(p.grad is not None for p in detector.parameters())


class Keeping(FeaturePyramid):
    """Keeps the last maps, and looks at how they lie."""

    def forward(self, c: Features) -> Features:
        self.last = p = super().forward(c)
        for features in p.values():
            features.view(len(features), -1)
        return p


def test_a_network_that_keeps_what_it_computed() -> None:
    """And one that needs its maps in their usual order in memory."""
    neck = partial(Keeping, channels=8)
    detector = FasterRCNN(3, bottom_up=partial(ResNet, "resnet18", width=8, norm="batch"), neck=neck)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch has another way by now, which few use
        detector.neck.laterals["2"][0] = nn.utils.weight_norm(detector.neck.laterals["2"][0])
    images = torch.randn(1, 3, 64, 96)
    detector.neck(detector.bottom_up(images))
    fast = optimized(detector.eval())
    with torch.no_grad():
        one, other = (network.neck(network.bottom_up(images)) for network in (detector, fast))
    for level, features in one.items():
        torch.testing.assert_close(other[level], features, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("change", ["in place", "loaded", "moved", "replaced", "in inference mode"])
def test_a_frozen_norm_is_what_its_buffers_are_now(change: str) -> None:
    """Its scale and shift are kept, but not when a buffer has changed, in whatever way."""
    network = ResNet("resnet18", width=4, frozen_stages=2)
    image = torch.rand(1, 3, 40, 50)
    before = network(image)[5]
    if change == "in place":
        stir(network)
    elif change == "loaded":
        other = ResNet("resnet18", width=4)
        stir(other)
        network.load_state_dict(other.state_dict())
    elif change == "moved":
        network.double()
        network(image.double())
        network.float()
        stir(network)
    elif change == "replaced":
        network.bn1.running_mean = torch.full((4,), 0.3)
    else:
        with torch.inference_mode():
            network.bn1.bias = network.bn1.bias + 1
    fresh = ResNet("resnet18", width=4, frozen_stages=2)
    fresh.load_state_dict({key: value.clone() for key, value in network.state_dict().items()})
    found = network(image)[5]
    assert torch.equal(found, fresh(image)[5])
    assert not torch.equal(found, before)
    with torch.inference_mode():
        assert torch.equal(network(image)[5], found)
    found.sum().backward()  # also after a first look in inference mode


def test_what_is_accelerated_learns_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each part is one graph, whose code on a GPU is left to Inductor: here its operators run as they are."""
    usual, modes = torch.compile, []

    def whole(function: Any, *, mode: str) -> Any:
        modes.append(mode)
        return usual(function, backend="eager", fullgraph=True)

    monkeypatch.setattr(torch, "compile", whole)
    data = batch()._replace(
        targets=[Targets(torch.tensor([[4.0, 4, 50, 60]]), torch.tensor([1]), torch.zeros(0, 4))] * 2
    )
    for mode, channels_last in (("reduce-overhead", False), (None, True)):
        torch.manual_seed(0)
        detector = FasterRCNN(
            2,
            bottom_up=partial(ResNet, "resnet10", width=4, frozen_stages=1),
            neck=partial(FeaturePyramid, channels=8),
            roi_head=partial(RoIHead, head=partial(TwoFCHead, hidden=8)),
        )
        stir(detector)
        expected = detector.losses(data, torch.Generator().manual_seed(0))
        sum(expected.values()).backward()
        gradients = {name: p.grad.clone() for name, p in detector.named_parameters() if p.grad is not None}
        detector.zero_grad()
        accelerate(detector, mode, channels_last)  # type: ignore[arg-type]
        losses = detector.losses(data, torch.Generator().manual_seed(0))
        sum(losses.values()).backward()
        torch.testing.assert_close(losses, expected)
        for name, p in detector.named_parameters():
            if p.grad is not None:
                torch.testing.assert_close(p.grad, gradients[name], rtol=1e-3, atol=1e-4)
        conv = detector.bottom_up.layer1[0].conv1.weight
        assert conv.is_contiguous(memory_format=torch.channels_last) is channels_last
        found = optimized(detector)(data)
        assert len(found.detections[0].boxes) > 0
    assert modes == ["reduce-overhead"] * 3


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda module: pickle.loads(pickle.dumps(module))])
def test_a_copy_of_a_frozen_norm_knows_nothing_of_the_first(copied: Any) -> None:
    network, other = (ResNet("resnet18", width=4, frozen_stages=2) for _ in range(2))
    stir(other)
    image = torch.rand(1, 3, 40, 50)
    for _ in range(2):
        network.load_state_dict(network.state_dict())
    network(image)
    twin = copied(network)
    twin.load_state_dict(other.state_dict())
    assert torch.equal(twin(image)[5], other(image)[5])
