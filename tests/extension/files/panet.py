"""PANet's bottom-up path after FPN (Liu et al., 2018, Sec. 3.1), with BatchNorm."""

import torch
from torch import Tensor, nn

from fpn.models.necks import FeaturePyramid


class PANet(FeaturePyramid):
    def __init__(self, *args, weighted=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.down = nn.ModuleDict({str(k): self.block(stride=2) for k in self.levels[1:]})
        self.out = nn.ModuleDict({str(k): self.block(stride=1) for k in self.levels[1:]})
        self.gate = nn.Parameter(torch.ones(len(self.levels) - 1)) if weighted else None

    def block(self, stride: int) -> nn.Module:
        conv = nn.Conv2d(self.channels, self.channels, 3, stride, padding=1)  # with its bias
        return nn.Sequential(conv, nn.BatchNorm2d(self.channels), nn.ReLU())

    def forward(self, c: dict[int, Tensor]) -> dict[int, Tensor]:
        p = super().forward(c)
        n = {self.levels[0]: p[self.levels[0]]}
        for i, k in enumerate(self.levels[1:]):
            down = self.down[str(k)](n[k - 1])
            n[k] = self.out[str(k)](p[k] + (down if self.gate is None else self.gate[i] * down))
        return n
