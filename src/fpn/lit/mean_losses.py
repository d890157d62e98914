"""The mean of losses over the images of a validation."""

from collections.abc import Mapping

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor


class MeanLosses:
    """The mean by name, of all processes.

    Not Lightning's own: of processes that had unlike numbers of images, that divides by the mean of these
    numbers, rounded down.
    """

    def __init__(self) -> None:
        self.sums: dict[str, Tensor] = {}
        self.images = 0

    def add(self, losses: Mapping[str, Tensor], images: int) -> None:
        """Add a batch: the means over its images."""
        for name, value in losses.items():
            self.sums[name] = self.sums.get(name, 0.0) + images * value.detach()
        self.images += images

    def over(self, strategy: Strategy) -> dict[str, Tensor]:
        """The means over all processes, which ask together, and `loss`, their sum; empty without a batch."""
        if not self.sums:
            return {}
        sums = torch.stack(list(self.sums.values()))
        total = strategy.reduce(torch.cat((sums, sums.new_tensor([self.images]))), reduce_op="sum")
        means = torch.as_tensor(total)[:-1] / total[-1]
        return {"loss": means.sum(), **dict(zip(self.sums, means, strict=True))}
