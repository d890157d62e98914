"""A BatchNorm that no longer changes is a factor and a bias of the convolution before it.

Reckoned with there, it costs no pass over the activations, forward or backward.
"""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.ops import FrozenBatchNorm2d


class FrozenBatchNorm(FrozenBatchNorm2d):
    """A fixed scale and shift, which `absorb_norms` has the convolution before it apply: no step of its own.

    Buffers, their names and epsilon are torchvision's.
    """

    def forward(self, x: Tensor) -> Tensor:
        """What came out of the convolution, scaled and shifted there."""
        return x


class NormedConv2d(nn.Conv2d):
    """A convolution, and the frozen BatchNorm behind it, of which it uses the buffers.

    Args:
        conv: whose weight it takes over; without bias.
        norm: stays where it is in its network, and in the state dict.
    """

    def __init__(self, conv: nn.Conv2d, norm: FrozenBatchNorm) -> None:
        super().__init__(**_settings(conv), bias=False, device="meta")
        self.weight = conv.weight
        self._norm = (norm,)  # a tuple, so that it is not registered a second time

    def forward(self, x: Tensor) -> Tensor:
        """The convolution, scaled and shifted."""
        return F.conv2d(x, *_normed(self.weight, *self._norm), self.stride, self.padding)


def absorb_norms(network: nn.Module) -> None:
    """Have every convolution of a ResNet that a FrozenBatchNorm follows apply it."""
    for parent, conv, norm in list(_pairs(network, FrozenBatchNorm)):
        setattr(parent, conv, NormedConv2d(getattr(parent, conv), getattr(parent, norm)))


def fold_norms(network: nn.Module) -> None:
    """For inference: plain convolutions in place of a ResNet's convolutions and BatchNorms; GroupNorm stays.

    The parameters that it had are left as they were, and no longer used.
    """
    for parent, conv, norm in list(_pairs(network, FrozenBatchNorm, _BatchNorm)):
        setattr(parent, conv, _plain(getattr(parent, conv), getattr(parent, norm)))
        setattr(parent, norm, nn.Identity())


def _normed(weight: Tensor, norm: nn.Module) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does what one without bias and its norm do."""
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()  # type: ignore[operator]
    return weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale  # type: ignore[operator]


def _plain(conv: nn.Conv2d, norm: nn.Module) -> nn.Conv2d:
    plain = nn.Conv2d(**_settings(conv), device="meta")
    weight, bias = _normed(conv.weight.detach(), norm)
    plain.weight, plain.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))
    return plain


def _settings(conv: nn.Conv2d) -> dict[str, Any]:
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding")
    return {name: getattr(conv, name) for name in names}


def _pairs(network: nn.Module, *norms: type[nn.Module]) -> Iterator[tuple[nn.Module, str, str]]:
    """Where a convolution is followed by such a norm: their parent, and their names there."""
    for parent in network.modules():
        names = {"0": "1"} if isinstance(parent, nn.Sequential) else {f"conv{i}": f"bn{i}" for i in (1, 2, 3)}
        for conv, norm in names.items():
            if isinstance(getattr(parent, norm, None), norms):
                yield parent, conv, norm
