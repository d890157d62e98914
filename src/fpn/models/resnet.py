"""The bottom-up pathway: a ResNet's last maps of conv2…conv5, {C2, C3, C4, C5} (Sec. 3).

The blocks are torchvision's, and so are the names of the parameters: its ImageNet weights load as they are.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from fpn.errors import InputError
from fpn.models.bottom_up import BottomUp
from fpn.models.msra import from_msra, is_msra
from fpn.models.norms import Norm, absorb_norms, fold_norms, norm_layer
from fpn.settings import NonNegativeFloat, NonNegativeInt, PositiveInt
from fpn.weights import published, read_any, state_dict

BLOCKS: dict[str, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, int, int, int]]] = {
    "resnet10": (BasicBlock, (1, 1, 1, 1)),
    "resnet18": (BasicBlock, (2, 2, 2, 2)),
    "resnet34": (BasicBlock, (3, 4, 6, 3)),
    "resnet50": (Bottleneck, (3, 4, 6, 3)),
    "resnet101": (Bottleneck, (3, 4, 23, 3)),
}


class ResNet(BottomUp):
    """A ResNet without its classifier, from pixels to {C2, …}.

    Args:
        name: resnet18, resnet34, resnet50 or resnet101; or resnet10, of one block a stage, whose finest map
            sees 27 pixels of a small image, resnet18's 43.
        weights: ImageNet weights to start from: a name of torchvision's, as IMAGENET1K_V1, or a file with a
            ResNet's state dict, torchvision's or MSRA's of Detectron and Detectron2 (R-50.pkl: the paper's
            own); null starts from random ones. `load_weights` loads them.
        norm: frozen (BatchNorm as a fixed scale and shift, for pretrained weights), batch, or group
            (GroupNorm, of 32 groups where the width allows).
        norm_eps: epsilon of the norm.
        frozen_stages: how many of conv1, conv2, …, conv5 are not trained, counted from the first.
        stride_in_1x1: put a bottleneck's stride on its first 1×1 convolution, as the MSRA release the paper
            starts from; torchvision's weights want it on the 3×3.
        width: channels of conv1; all others scale with it. 64 is the published network.
        stages: how many of conv2…conv5 are built; 4 ends at C5, 3 at C4.

    Raises:
        InputError: there is no such ResNet, or it has not so many stages.
    """

    def __init__(
        self,
        name: Literal["resnet10", "resnet18", "resnet34", "resnet50", "resnet101"] = "resnet50",
        weights: str | None = None,
        norm: Norm = "frozen",
        norm_eps: NonNegativeFloat = 1e-5,
        frozen_stages: NonNegativeInt = 0,
        stride_in_1x1: bool = False,
        width: PositiveInt = 64,
        stages: int = 4,
    ) -> None:
        if name not in BLOCKS:
            raise InputError(f"bottom-up {name!r} is not known; choose one of {', '.join(BLOCKS)}")
        if not 1 <= stages <= 4:
            raise InputError(f"bottom_up.stages is {stages}: conv2…conv5 are 1 to 4")
        block, depths = BLOCKS[name]
        normed = norm_layer(norm, norm_eps)
        parts: dict[int, dict[str, nn.Module]] = {
            1: {
                "conv1": nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False),
                "bn1": normed(width),
                "relu": nn.ReLU(inplace=True),
            },
            2: {"maxpool": nn.MaxPool2d(3, stride=2, padding=1)},
        }
        channels = {1: width}
        for level in range(2, stages + 2):
            planes = width * 2 ** (level - 2)
            stage = _stage(block, channels[level - 1], planes, depths[level - 2], level > 2, normed)
            parts.setdefault(level, {})[f"layer{level - 1}"] = stage
            channels[level] = planes * block.expansion
        del channels[1]
        super().__init__(parts, channels, frozen_stages, weights=weights)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if isinstance(module, Bottleneck) and stride_in_1x1:
                module.conv1.stride, module.conv2.stride = module.conv2.stride, module.conv1.stride
        absorb_norms(self)
        self.name, self.norm, self.norm_eps = name, norm, norm_eps
        self.stride_in_1x1, self.stages = stride_in_1x1, stages

    def read_weights(self, weights: str) -> dict[str, Tensor]:
        """A classifier's weights under our names, without those of its last layer, which has no place here.

        Args:
            weights: a name of torchvision's or a file, as for the class.

        Raises:
            InputError: no such name or file, or the weights are of a network with other strides.
        """
        state, in_1x1 = _read_weights(self.name, weights, self.norm_eps)
        if in_1x1 is not None and in_1x1 != self.stride_in_1x1:
            raise InputError(
                f"weights {weights!r} are of a network with its strides on the {'1×1' if in_1x1 else '3×3'}: "
                f"set model.detector.bottom_up.stride_in_1x1 to {str(in_1x1).lower()}"
            )
        # What was never built has no place either; what was built and taken out may have one.
        never = tuple(f"layer{k}." for k in range(self.stages + 1, 5))
        return {key: value for key, value in state.items() if not key.startswith(("fc.", *never))}

    fold_norms = fold_norms


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    in_channels: int,
    planes: int,
    depth: int,
    halve: bool,
    normed: Callable[[int], nn.Module],
) -> nn.Sequential:
    stride = 2 if halve else 1
    out_channels = planes * block.expansion
    downsample = None
    if halve or in_channels != out_channels:
        downsample = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), normed(out_channels)
        )
    # For a bottleneck, torchvision counts the width of the 3×3 in units of 64 channels: planes, here.
    blocks = [block(in_channels, planes, stride, downsample, norm_layer=normed)]
    blocks += [block(out_channels, planes, norm_layer=normed) for _ in range(depth - 1)]
    return nn.Sequential(*blocks)


def _read_weights(name: str, weights: str, norm_eps: float) -> tuple[dict[str, Tensor], bool | None]:
    """Weights under torchvision's names; whether their strides are on the 1×1, where that is known."""
    path = Path(weights)
    if path.suffix or path.exists():
        content = read_any(path)
        state = state_dict(content, weights)
        if not is_msra(state):
            return state, None
        # As Detectron2's converter of torchvision's weights signs its files.
        msra = content.get("__author__") != "torchvision"
        return from_msra(state, norm_eps, caffe_images=msra), msra
    return published(name, weights), False
