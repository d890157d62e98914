"""A bottom-up of five plain convolutions, C2 to C5."""

from torch import nn

import fpn


class Plain(fpn.BottomUp):
    def __init__(self, width: int = 4, frozen_stages: int = 0):
        channels = {k: width * 2**k for k in range(1, 6)}
        stages = {k: self.stage(channels.get(k - 1, 3), c) for k, c in channels.items()}
        super().__init__(stages, {k: channels[k] for k in (2, 3, 4, 5)}, frozen_stages)

    def stage(self, inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=2, padding=1), nn.ReLU())
