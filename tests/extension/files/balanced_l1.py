"""The balanced L1 loss of Libra R-CNN (Pang et al., 2019, eq. 8)."""

import math

from fpn import BoxLoss


class BalancedL1(BoxLoss):
    def __init__(self, alpha: float = 0.5, gamma: float = 1.5):
        super().__init__()
        self.alpha, self.gamma = alpha, gamma

    def forward(self, predicted, wanted, references, box_weights):
        b = math.exp(self.gamma / self.alpha) - 1
        x = (predicted - wanted).abs()
        inside = self.alpha / b * (b * x + 1) * (b * x + 1).log() - self.alpha * x
        outside = self.gamma * x + self.gamma / b - self.alpha
        return inside.where(x < 1, outside).sum()
