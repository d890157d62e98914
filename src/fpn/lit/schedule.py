"""The paper's step schedule (Sec. 5.1, 5.2), or a cosine, carried over to other batch sizes.

The paper's numbers hold for 16 images a step. With b images a step the learning rate is b / 16 of it and
all counts of steps are 16 / b of it, so that the same images are seen at the same learning rate per image
(Goyal et al., 2017).
"""

import math
from dataclasses import dataclass, replace
from typing import Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from fpn.settings import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt


@dataclass(frozen=True)
class Schedule:
    """A warm-up, then a learning rate that falls by steps, or by a cosine.

    Args:
        steps: steps of `reference_images` in all.
        milestones: steps of `reference_images` at which the learning rate is multiplied by `gamma`.
        gamma: the factor at each milestone.
        warmup_steps: steps of `reference_images` over which the learning rate grows in a straight line.
        warmup_factor: the share of the learning rate it starts from.
        reference_images: images a step for which these numbers and the optimiser's learning rate are
            meant; 16 in the paper. Other batches scale them.
        length: multiplies all counts of steps: 0.01 makes a hundredth of the same schedule.
        epochs: passes over the training images, in place of steps and length. The schedule is stretched to
            end with the last; milestones and the warm-up keep their shares of it.
        cosine: from the warm-up to the end, the learning rate falls to 0 by half a cosine, in place of
            milestones and gamma.
    """

    steps: PositiveInt = 80_000
    milestones: tuple[NonNegativeInt, ...] = (60_000,)
    gamma: NonNegativeFloat = 0.1
    warmup_steps: NonNegativeInt = 500
    warmup_factor: NonNegativeFloat = 0.001
    reference_images: PositiveInt = 16
    length: PositiveFloat = 1.0
    epochs: PositiveInt | None = None
    cosine: bool = False

    def lasting(self, images: int, steps_per_epoch: int) -> "Schedule":
        """The same schedule in steps: this one, unless it counts epochs.

        Args:
            images: images a step.
            steps_per_epoch: steps of that many images in a pass over the training images.
        """
        if self.epochs is None:
            return self
        steps = self.epochs * steps_per_epoch
        return replace(self, length=steps * images / (self.steps * self.reference_images), epochs=None)

    def at(self, images: int) -> "Schedule":
        """The same schedule at another number of images a step.

        Raises:
            ValueError: it counts epochs: `lasting` tells how many steps these are.
        """
        if self.epochs is not None:
            raise ValueError(f"a schedule of {self.epochs} epochs has steps only for a number of images")

        def stretch(steps: int) -> int:
            return round(steps * self.length * self.reference_images / images)

        return replace(
            self,
            steps=max(stretch(self.steps), 1),
            milestones=tuple(stretch(milestone) for milestone in self.milestones),
            warmup_steps=stretch(self.warmup_steps),
            reference_images=images,
            length=1.0,
        )

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied by at a step counted from 0."""
        warmup = 1.0
        if step < self.warmup_steps:
            warmup = self.warmup_factor + (1 - self.warmup_factor) * step / self.warmup_steps
        if self.cosine:
            done = (step - self.warmup_steps) / max(self.steps - self.warmup_steps, 1)
            return warmup * (1 + math.cos(math.pi * min(max(done, 0.0), 1.0))) / 2
        return float(warmup * self.gamma ** sum(step >= milestone for milestone in self.milestones))

    def attach(self, optimizer: Optimizer, images: int) -> tuple["Schedule", LambdaLR]:
        """Scale an optimiser's learning rate to a number of images a step, and have it follow this schedule.

        Args:
            optimizer: its learning rate, meant for `reference_images`, is changed in place.
            images: images a step.

        Returns:
            The schedule at that number, and what sets the learning rate after every step.
        """
        for group in optimizer.param_groups:
            group["lr"] *= images / self.reference_images
        scaled = self.at(images)
        return scaled, _Following(optimizer, scaled.factor)

    def __str__(self) -> str:
        drops = ", ".join(f"{m:,}" for m in self.milestones) or "none"
        falls = "down to 0 by half a cosine" if self.cosine else f"times {self.gamma:g} at {drops}"
        return (
            f"{self.steps:,} steps of {self.reference_images} images, warm-up of {self.warmup_steps:,}, "
            f"learning rate {falls}"
        )


class _Following(LambdaLR):
    """Groups that are added in mid-run, as by Lightning's finetuning callbacks, follow from there on."""

    def get_lr(self) -> list[Any]:
        """The learning rate of each group."""
        before, now = (self.lr_lambdas[0](max(step, 0)) for step in (self.last_epoch - 1, self.last_epoch))
        groups = self.optimizer.param_groups
        greatest = max(group.get("initial_lr", 0.0) for group in groups)
        for group in groups:
            rate = group["lr"] / (before or 1.0)
            # The rate it comes with is of a step: in a warm-up, it would be far more at the end.
            most = max(group["lr"], greatest) if before < now else rate
            group.setdefault("initial_lr", min(rate, most))
        return [group["initial_lr"] * now for group in groups]
