from functools import partial
from threading import Lock
from typing import Literal

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import resnet18
from torchvision.ops import FrozenBatchNorm2d

from fpn.models.detectors import FasterRCNN
from fpn.models.necks import SingleLevel
from fpn.models.norms import FrozenBatchNorm, NormedConv2d, absorb_norms, fold_norms
from fpn.models.optimized import optimized
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.types import Batch


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
    if not conv5:  # the greatest of its weights is not there twice
        fc6 = "roi_head.head.shared.fc6.weight"
        assert quick.state_dict()[fc6].data_ptr() == before[fc6][0]


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


def test_what_is_no_resnet_is_left_alone() -> None:
    network = nn.Sequential(nn.ReLU(), nn.Conv2d(2, 2, 1))
    absorb_norms(network)
    fold_norms(network)
    assert isinstance(network[1], nn.Conv2d)
    assert network[1].bias is not None
