"""A bottom-up of five plain convolutions, C2 to C5; what is a function by default no configuration tells."""

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn

import fpn


class Stage(nn.Sequential):
    def __init__(self, activation, *parts: nn.Module):
        super().__init__(*parts)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(super().forward(x))


class Plain(fpn.BottomUp):
    def __init__(
        self,
        width: int = 4,
        frozen_stages: int = 0,
        activation: Callable[[Tensor], Tensor] = nn.functional.relu,
        conv=partial(nn.Conv2d, kernel_size=3, stride=2, padding=1),  # noqa: B008 (as many write it)
    ):
        channels = {k: width * 2**k for k in range(1, 6)}
        stages = {k: Stage(activation, conv(channels.get(k - 1, 3), c)) for k, c in channels.items()}
        super().__init__(stages, {k: channels[k] for k in (2, 3, 4, 5)}, frozen_stages)
