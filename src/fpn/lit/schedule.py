"""The paper's optimiser and step schedule (Sec. 5.1, 5.2), carried over to other batch sizes.

The paper's numbers hold for 16 images a step. With b images a step the learning rate is b / 16 of it and
all counts of steps are 16 / b of it, so that the same images are seen at the same learning rate per image
(Goyal et al., 2017).
"""

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.optim import SGD, Optimizer
from torch.optim.lr_scheduler import LambdaLR


@dataclass(frozen=True)
class Schedule:
    """SGD with a warm-up and a learning rate that falls by steps.

    Args:
        lr: learning rate for a step of `reference_images`.
        steps: number of steps of `reference_images` in all.
        milestones: steps of `reference_images` at which the learning rate is multiplied by `gamma`.
        gamma: the factor at each milestone.
        warmup_steps: steps of `reference_images` over which the learning rate grows in a straight line.
        warmup_factor: the share of the learning rate it starts from.
        momentum: of SGD.
        weight_decay: of SGD, on every trained parameter.
        reference_images: images a step for which the numbers above are meant; 16 in the paper. Other
            batches scale them.
    """

    lr: float = 0.02
    steps: int = 80_000
    milestones: tuple[int, ...] = (60_000,)
    gamma: float = 0.1
    warmup_steps: int = 500
    warmup_factor: float = 0.001
    momentum: float = 0.9
    weight_decay: float = 1e-4
    reference_images: int = 16

    def at(self, images_per_step: int) -> "Schedule":
        """The same schedule for another number of images a step, with nothing left to scale."""
        factor = images_per_step / self.reference_images

        def stretch(steps: int) -> int:
            return max(round(steps / factor), 0)

        return Schedule(
            lr=self.lr * factor,
            steps=max(stretch(self.steps), 1),
            milestones=tuple(stretch(m) for m in self.milestones),
            gamma=self.gamma,
            warmup_steps=stretch(self.warmup_steps),
            warmup_factor=self.warmup_factor,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            reference_images=images_per_step,
        )

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step counted from 0."""
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        return float(warmup * self.gamma ** sum(step >= milestone for milestone in self.milestones))

    def optimizer(self, parameters: Iterable[nn.Parameter]) -> tuple[Optimizer, LambdaLR]:
        """The optimiser of the trained parameters, and what sets its learning rate after every step."""
        trained = [parameter for parameter in parameters if parameter.requires_grad]
        sgd = SGD(trained, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        return sgd, LambdaLR(sgd, self.factor)

    def __str__(self) -> str:
        drops = ", ".join(f"{m:,}" for m in self.milestones) or "none"
        return (
            f"{self.steps:,} steps of {self.reference_images} images, learning rate {self.lr:.4g} "
            f"after a warm-up of {self.warmup_steps:,} steps, times {self.gamma:g} at {drops}"
        )
