"""Another's detector, as its own code builds, feeds and trains it."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

Losses = list[dict[str, float]]
"""Of each step, by our names."""


class Peer(ABC):
    """One side of a training in lockstep: made from a plan and a folder in COCO's layout."""

    model: nn.Module
    """With random weights, the same at every call."""
    optimiser: Optimizer
    """Of what is trained."""
    configs: tuple[str, ...] = ()
    """Configurations that ours has before its own settings."""
    detector: dict[str, Any]
    """How ours samples: settings of its detector."""

    @abstractmethod
    def losses(self, ids: Sequence[int]) -> dict[str, Tensor]:
        """Of the training images with these ids, by our names."""

    @abstractmethod
    def set_rate(self, step: int) -> None:
        """Give the optimiser the learning rate of a step counted from 0."""

    @abstractmethod
    def as_ours(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """A state dict of the model under our names."""

    @abstractmethod
    def detect(self, file: Path) -> list[Tensor]:
        """Boxes, scores and labels 1…K found in an image, in its own pixels."""

    def train(self, order: Sequence[Sequence[int]]) -> Losses:
        """A loop as in PyTorch's tutorials, over the ids of each step's images."""
        self.model.train()
        losses = []
        for step, ids in enumerate(order):
            found = self.losses(ids)
            losses.append({name: float(loss.detach()) for name, loss in found.items()})
            self.set_rate(step)
            self.optimiser.zero_grad()
            torch.stack(list(found.values())).sum().backward()
            self.optimiser.step()
        return losses
