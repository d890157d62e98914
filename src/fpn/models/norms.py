"""A BatchNorm that no longer changes is a factor and a bias of the convolution before it.

Reckoned with there, it costs no pass over the activations, forward or backward. All this is for the ResNet,
torchvision's blocks and plain sequences, where it is known which norm follows which convolution.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.ops import Conv2dNormActivation, FrozenBatchNorm2d

Norm = Literal["frozen", "batch", "group"]
"""BatchNorm as a fixed scale and shift, which `absorb_norms` is for; BatchNorm; GroupNorm."""


def norm_layer(norm: Norm, eps: float = 1e-5) -> Callable[[int], nn.Module]:
    """What makes a norm of its number of channels; a GroupNorm has 32 groups where the channels allow."""
    if norm == "group":
        return lambda channels: nn.GroupNorm(math.gcd(32, channels), channels, eps=eps)
    layer = FrozenBatchNorm if norm == "frozen" else nn.BatchNorm2d
    return lambda channels: layer(channels, eps=eps)


class FrozenBatchNorm(FrozenBatchNorm2d):
    """A fixed scale and shift, which `absorb_norms` has the convolution before it apply: no step of its own.

    Buffers, their names and epsilon are torchvision's.
    """

    _known: tuple[list[tuple[Tensor, int]], tuple[Tensor, Tensor]] | None = None
    """The buffers with their versions, and the scale and shift that were reckoned from them."""

    def __getstate__(self) -> dict[str, Any]:
        """Without what is known: the buffers of a copy count their versions anew."""
        return {key: value for key, value in super().__getstate__().items() if key != "_known"}

    def forward(self, x: Tensor) -> Tensor:
        """What came out of the convolution, scaled and shifted there."""
        return x

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """(channels, 1, 1, 1) and (channels,), reckoned again only where a buffer has changed."""
        buffers = [self.weight, self.bias, self.running_mean, self.running_var]
        if torch.compiler.is_compiling() or any(buffer.is_inference() for buffer in buffers):
            return _scale_and_shift(self)
        if self._known is not None and all(
            now is then and now._version == version
            for now, (then, version) in zip(buffers, self._known[0], strict=True)
        ):
            return self._known[1]
        with torch.inference_mode(False), torch.no_grad():
            found = _scale_and_shift(self)
        self._known = [(buffer, buffer._version) for buffer in buffers], found
        return found


class NormedConv2d(nn.Conv2d):
    """A convolution, and the frozen BatchNorm behind it, of which it uses the buffers.

    Args:
        conv: whose weight and bias it takes over.
        norm: stays where it is in its network, and in the state dict.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm) -> None:
        super().__init__(**_settings(conv), device="meta")
        self.weight, self.bias = conv.weight, conv.bias
        self._norm = (norm,)  # a tuple, so that it is not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, scaled and shifted."""
        return self._conv_forward(x, *_normed(self, *self._norm))


def absorb_norms(network: nn.Module) -> None:
    """Have every convolution that a FrozenBatchNorm follows apply it.

    Args:
        network: a ResNet, blocks of one, or sequences of convolution and norm; changed in place.
    """
    for parent, conv, norm in list(_pairs(network)):
        if isinstance(getattr(parent, norm), FrozenBatchNorm):
            setattr(parent, conv, NormedConv2d(getattr(parent, conv), getattr(parent, norm)))


def fold_norms(network: nn.Module) -> None:
    """For inference: plain convolutions in place of convolutions and BatchNorms; GroupNorm stays.

    Args:
        network: as `absorb_norms`; changed in place.
    """
    for parent, conv, norm in list(_pairs(network)):
        setattr(parent, conv, _plain(getattr(parent, conv), getattr(parent, norm)))
        setattr(parent, norm, nn.Identity())


def _normed(conv: nn.Conv2d, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what this one and its norm do."""
    scale, bias = norm.scale_and_shift() if isinstance(norm, FrozenBatchNorm) else _scale_and_shift(norm)
    if conv.bias is not None:
        bias = bias + conv.bias * scale.flatten()
    return conv.weight * scale, bias


def _scale_and_shift(norm: nn.Module) -> tuple[Tensor, Tensor]:
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]
    return scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale  # type: ignore[operator]


def _plain(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    plain = nn.Conv2d(**_settings(conv), device="meta")
    weight, bias = (value.detach() for value in _normed(conv, norm))
    plain.weight, plain.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return plain


def _settings(conv: nn.Conv2d) -> dict[str, Any]:
    """A convolution's arguments, with a bias."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(conv, name) for name in (*names, "padding_mode")}


def _pairs(network: nn.Module) -> Iterator[tuple[nn.Module, str, str]]:
    """Where a convolution is followed by a BatchNorm: their parent, and their names there."""
    for parent in network.modules():
        # By the exact types: what derives from a block may do something else with its parts.
        names: list[tuple[str, str]] = []
        if parent is network or type(parent) in (BasicBlock, Bottleneck):
            names = [(f"conv{i}", f"bn{i}") for i in (1, 2, 3)]
        if type(parent) in (nn.Sequential, Conv2dNormActivation):
            names.append(("0", "1"))
        for conv, norm in names:
            first, second = getattr(parent, conv, None), getattr(parent, norm, None)
            known = isinstance(second, FrozenBatchNorm2d) or (
                isinstance(second, _BatchNorm) and second.track_running_stats and second.affine
            )
            if known and type(first) in (nn.Conv2d, NormedConv2d):
                yield parent, conv, norm
