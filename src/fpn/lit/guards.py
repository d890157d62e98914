"""What watches every training, added by the module itself."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.nn.utils import get_total_norm
from torch.optim import Optimizer

from fpn.errors import InputError
from fpn.lit.together import StepError, gathered, total
from fpn.types import Batch


class NonFiniteError(StepError):
    """A loss, a gradient or a weight became infinite or not a number; going on would spoil the weights."""


class ToldIfUnreadable(Callback):
    """Has the data module count, over all processes, the images in whose places others were put."""

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember what the batch says of them."""
        self._lines = batch.unreadable

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Tell of them. Only now: at the start of a batch, processes would wait for each other's last step.

        Raises:
            StepError: they are more than data.max_unreadable allows for.
        """
        if total(trainer, len(self._lines)):
            lines = [line for own in gathered(trainer, self._lines) for line in own]
            try:
                pl_module.data.note_unreadable(lines)
            except InputError as error:
                raise StepError(str(error)) from None


class FiniteSteps(Callback):
    """Ends all processes before a step whose losses or gradients are not finite.

    The loss and the images are named. It lets no checkpoint be written of weights that are not finite.
    """

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is known of the first step's batches; it may begin within an accumulation."""
        self._batches: list[tuple[list[int], dict[str, Tensor]]] = []

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Remember which images the step learns from."""
        self._image_ids = batch.image_ids

    def on_before_backward(self, trainer: Trainer, pl_module: Any, loss: Tensor) -> None:
        """Remember the losses: not the one given here, which 16-mixed has scaled."""
        losses = pl_module.last_losses or {"loss": loss.detach()}  # of a training_step of the user's own
        self._batches.append((self._image_ids, losses))

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """See that losses and gradients are finite in all processes, as long as the weights are unharmed.

        One look at the device. Gradients are not looked at with 16-mixed, whose scaler leaves out steps with
        others, and tells nobody.

        Raises:
            NonFiniteError: one of them is not.
        """
        batches, self._batches = self._batches, []
        sums = torch.stack([torch.stack(list(losses.values())).sum() for _, losses in batches])
        gradients = {
            name: p.grad for name, p in pl_module.named_parameters() if p.grad is not None and p.grad.numel()
        }
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            gradients = {}
        faults = ~torch.stack([sums.isfinite().all(), _all_finite(gradients.values(), sums.device)])
        if not total(trainer, faults.any()):
            return
        own = None
        for images, losses in batches:
            if not torch.stack(list(losses.values())).sum().isfinite():
                wrong = [
                    f"{name} = {value.item():g}" for name, value in losses.items() if not value.isfinite()
                ]
                own = own or (", ".join(wrong or ["the sum of the losses = inf"]), images)
        if told := next((one for one in gathered(trainer, own) if one is not None), None):
            raise _error(trainer, *told)
        # Averaged over the processes, so that all have the same.
        every = [image for part in gathered(trainer, batches) for images, _ in part for image in images]
        name = first_non_finite(gradients.items())
        raise _error(trainer, f"the gradient of {name} is not finite", every)

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """See that the weights are finite.

        Raises:
            NonFiniteError: they are not; no checkpoint is worth being replaced by them.
        """
        name = trainer.strategy.broadcast(first_non_finite(checkpoint["state_dict"].items()))
        if name is not None:
            raise NonFiniteError(f"{name} is not finite after {trainer.global_step} steps")


def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first floating-point tensor that is not finite; None if all are."""
    tensors = {name: value for name, value in named if value.is_floating_point() and value.numel()}
    if not tensors or _all_finite(tensors.values(), next(iter(tensors.values())).device):
        return None
    return next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)


def _all_finite(tensors: Iterable[Tensor], device: torch.device) -> Tensor:
    """Whether all are, in few launches: by the greatest absolute value, which overflows no sum of squares."""
    return torch.isfinite(get_total_norm(tensors, math.inf)).to(device)


def _error(trainer: Trainer, what: str, images: list[int]) -> NonFiniteError:
    return NonFiniteError(
        f"{what} at step {trainer.global_step} on images {images}; lower model.optimizer.lr or check these "
        "images' boxes"
    )
