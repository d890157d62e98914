"""The bottom-up pathway: a ResNet's last maps of conv2…conv5, {C2, C3, C4, C5} (Sec. 3).

The blocks are torchvision's, and so are the names of the parameters: its ImageNet weights load as they are.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.models import get_model_weights, list_models
from torchvision.models.resnet import BasicBlock, Bottleneck

from fpn.errors import InputError, at_least
from fpn.models.msra import from_msra, is_msra
from fpn.models.norms import FrozenBatchNorm, absorb_norms
from fpn.types import Features
from fpn.weights import check_weights, download, read_any, state_dict

Norm = Literal["frozen", "batch", "group"]

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class Stages(nn.Sequential):
    """Stages taken out of a bottom-up's end, none where nothing was; `channels` are those of their output."""

    def __init__(self, *stages: nn.Module, channels: int) -> None:
        super().__init__(*stages)
        self.channels = channels


class ResNet(nn.Module):
    """A ResNet without its classifier, from pixels to {C2, …}.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101; or resnet10, of one block a stage, whose finest map
            sees 27 pixels of a small image, resnet18's 43.
        weights: ImageNet weights to start from: a name of torchvision's, as IMAGENET1K_V1, or a file with a
            ResNet's state dict, torchvision's or MSRA's of Detectron and Detectron2 (R-50.pkl: the paper's
            own); null starts from random ones.
        norm: frozen (BatchNorm as a fixed scale and shift, for pretrained weights), batch, or group
            (GroupNorm, of 32 groups where the width allows).
        norm_eps: epsilon of the norm.
        frozen_stages: how many of conv1, conv2, …, conv5 are not trained, counted from the first.
        stride_in_1x1: put a bottleneck's stride on its first 1×1 convolution, as the MSRA release the paper
            starts from; torchvision's weights want it on the 3×3.
        width: channels of conv1; all others scale with it. 64 is the published network.
        stages: how many of conv2…conv5 are built; 4 ends at C5, 3 at C4.

    Raises:
        InputError: the weights do not exist or do not fit.
    """

    def __init__(
        self,
        name: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50",
        weights: str | None = None,
        norm: Norm = "frozen",
        norm_eps: float = 1e-5,
        frozen_stages: int = 0,
        stride_in_1x1: bool = False,
        width: int = 64,
        stages: int = 4,
    ) -> None:
        super().__init__()
        if name not in BLOCKS:
            raise InputError(f"bottom-up {name!r} is not known; choose one of {', '.join(BLOCKS)}")
        if not 1 <= stages <= 4 or not 0 <= frozen_stages <= stages + 1:
            raise InputError(
                f"a bottom-up has 1 to 4 stages and freezes at most conv1 and these, "
                f"not stages {stages} and frozen_stages {frozen_stages}"
            )
        at_least(1, "bottom_up.", width=width)
        block, depths = BLOCKS[name]
        norm_layer = _norm_layer(norm, norm_eps)
        if weights in ("None", "null"):  # what is left of null when a command line nests it this deep
            weights = None
        self.name, self.weights, self.norm, self.frozen_stages = name, weights, norm, frozen_stages
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = norm_layer(width)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.channels: dict[int, int] = {}
        in_channels = width
        for stage in range(1, stages + 1):
            planes = width * 2 ** (stage - 1)
            self.add_module(
                f"layer{stage}", _stage(block, in_channels, planes, depths[stage - 1], stage > 1, norm_layer)
            )
            in_channels = planes * block.expansion
            self.channels[stage + 1] = in_channels
        if stride_in_1x1:
            _move_stride_to_first_convolution(self)
        _initialise(self)
        absorb_norms(self)
        self.norm_eps, self.stride_in_1x1 = norm_eps, stride_in_1x1
        self._freeze(frozen_stages)

    def forward(self, images: Tensor) -> Features:
        """From images (N, 3, H, W) to {k: C_k}, C_k of (N, channels[k], ⌈H / 2**k⌉, ⌈W / 2**k⌉)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        features = {}
        for level in self.channels:
            x = features[level] = self.get_submodule(f"layer{level - 1}")(x)
        return features

    @property
    def fixed(self) -> bool:
        """Whether part of it is not trained."""
        return self.norm == "frozen" or self.frozen_stages > 0

    def load_weights(self) -> None:
        """Copy a classifier's weights into this bottom-up; its last layer has no place here and is left out.

        Raises:
            InputError: no such name or file, or the weights are another network's.
        """
        weights = self.weights
        if weights is None:
            return
        state, in_1x1 = _read_weights(self.name, weights, self.norm_eps)
        if in_1x1 is not None and in_1x1 != self.stride_in_1x1:
            raise InputError(
                f"weights {weights!r} are of a network with its strides on the {'1×1' if in_1x1 else '3×3'}: "
                f"set model.detector.bottom_up.stride_in_1x1 to {str(in_1x1).lower()}"
            )
        left_out = ("fc.", *(f"layer{k - 1}." for k in range(2, 6) if k not in self.channels))
        state = {key: value for key, value in state.items() if not key.startswith(left_out)}
        check_weights(self.state_dict(), state, weights, self.name)
        # Counters of batches may be missing, or have no place in a frozen BatchNorm.
        self.load_state_dict(state, strict=False)

    def end_at(self, level: int) -> "Stages":
        """Take out the stages above C_level: where nothing reads them, nothing should train them.

        Returns:
            What was taken out, for a head that goes on where this bottom-up ends now.
        """
        above = [k for k in self.channels if k > level]
        taken = Stages(
            *(self.get_submodule(f"layer{k - 1}") for k in above), channels=self.channels[max(self.channels)]
        )
        for k in above:
            delattr(self, f"layer{k - 1}")
            del self.channels[k]
        return taken

    def train(self, mode: bool = True) -> "ResNet":
        """As `nn.Module.train`, but frozen stages keep their running statistics too."""
        super().train(mode)
        for module in self._frozen:
            module.eval()
        return self

    def _freeze(self, stages: int) -> None:
        parts = [[self.conv1, self.bn1]] + [[self.get_submodule(f"layer{k - 1}")] for k in self.channels]
        # A tuple, so that the modules are not registered a second time.
        self._frozen = tuple(module for part in parts[:stages] for module in part)
        for module in self._frozen:
            module.requires_grad_(False).eval()


def _norm_layer(norm: Norm, eps: float) -> Callable[[int], nn.Module]:
    if norm == "group":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    layer = FrozenBatchNorm if norm == "frozen" else nn.BatchNorm2d
    return lambda channels: layer(channels, eps=eps)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    depth: int,
    halve: bool,
    norm_layer: Callable[[int], nn.Module],
) -> nn.Sequential:
    stride = 2 if halve else 1
    out_channels = planes * block.expansion
    downsample = None
    if halve or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), norm_layer(out_channels)
        )
    # For a bottleneck, torchvision counts the width of the 3×3 in units of 64 channels: planes, here.
    blocks = [block(in_channels, planes, stride, downsample, norm_layer=norm_layer)]
    blocks += [block(out_channels, planes, norm_layer=norm_layer) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _move_stride_to_first_convolution(resnet: ResNet) -> None:
    for module in resnet.modules():
        if isinstance(module, Bottleneck):
            module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride


def _initialise(resnet: ResNet) -> None:
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def _read_weights(name: str, weights: str, norm_eps: float) -> tuple[dict[str, Tensor], bool | None]:
    """Weights under torchvision's names; whether their strides are on the 1×1, where that is known."""
    path = Path(weights)
    if path.suffix or path.exists():
        if not path.is_file():
            raise InputError(f"weights file {weights} does not exist")
        content = read_any(path)
        state = state_dict(content, weights)
        if not is_msra(state):
            return state, None
        # As Detectron2's converter of torchvision's weights signs its files.
        msra = content.get("__author__") != "torchvision"
        return from_msra(state, norm_eps, caffe_images=msra), msra
    names: Sequence[str] = list(get_model_weights(name).__members__) if name in list_models() else []
    if weights not in names:
        there = f"there are {', '.join(names)}, or" if names else "none are published:"
        raise InputError(f"{name} has no weights {weights!r}; {there} give a file")
    published = get_model_weights(name)[weights]
    instead = "set model.detector.bottom_up.weights to a file, or to null with norm: batch (or group) "
    return download(published, instead + "and frozen_stages: 0"), False
