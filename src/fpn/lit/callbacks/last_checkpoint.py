"""The newest checkpoint, from which a run goes on."""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from fpn.errors import InputError
from fpn.lightning_private import averaging, batches_of_epoch, between_steps, failed_in, forget_validation
from fpn.lit.together import StepError
from fpn.settings import PositiveInt
from fpn.types import Batch


class LastCheckpoint(Checkpoint):
    """Keeps the newest checkpoint, from which a run is resumed, as last.ckpt.

    Lightning's own `save_last` is only written when the best one is. This one is written after the best one,
    and tells of it.

    Args:
        every_n_steps: it is written after so many steps, after every epoch that ends in a validation, when
            training ends, when the process is asked to end by a signal, as clusters do, and when anything
            fails but the optimiser, from before it. With several processes, only what all of them know of
            ends in a checkpoint.
    """

    def __init__(self, every_n_steps: PositiveInt = 1000) -> None:
        self.every_n_steps = every_n_steps
        self.path = Path()
        """Without a name until training begins."""
        self.saved = -1
        self._due = False
        self._validating = False
        self._stepping = False
        """Whether the optimiser is at the weights."""
        self._validated = -1
        """The last step that was, or where the run begins."""
        self._statistics: list[tuple[list[Tensor], list[Tensor]]] = []
        """Of live BatchNorms, which forward passes change before a step is done: as they are and were."""

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on the weights may be averages: this is called after callbacks that put them in place …"""
        self._validating = True

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """… and this after they have taken them out."""
        self._validating = False

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember of which step."""
        self._validated = trainer.global_step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the run's folder, which all processes have to do together."""
        self.path = Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        norms = [m for m in pl_module.modules() if isinstance(m, _BatchNorm) and m.training]
        by_kind: dict[torch.dtype, list[Tensor]] = {}
        for buffer in (buffer for norm in norms for buffer in norm.buffers()):
            by_kind.setdefault(buffer.dtype, []).append(buffer)
        self._validated = trainer.global_step
        self._statistics = [(live, [buffer.clone() for buffer in live]) for live in by_kind.values()]

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        """From now on the weights change, until the step is done."""
        self._stepping = True

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """See whether it is time."""
        self._stepping = False
        stepped = (batch_idx + 1) % trainer.accumulate_grad_batches == 0
        self._due = stepped and trainer.global_step % self.every_n_steps == 0

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int
    ) -> None:
        """Write if it is time: only now are the last step's losses logged and its validation done."""
        if self._due:
            with between_steps(trainer):
                self._save(trainer)
        self._due = False
        if batch_idx % trainer.accumulate_grad_batches == 0:
            for live, kept in self._statistics:
                torch._foreach_copy_(kept, live)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write, if all processes end training at one step."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.fast_dev_run or not self.path.name:  # type: ignore[attr-defined]
            return
        if self._validating:
            for callback in averaging(trainer):
                callback.on_validation_epoch_end(trainer, pl_module)
        if trainer.validating:
            forget_validation(trainer)
        if isinstance(exception, SIGTERMException):
            self._save_from_before(trainer)  # the step, if it comes in the midst of what that accumulates
        elif self._can_tell(exception, trainer.world_size):
            try:
                within = self._save_from_before(trainer, to_validate=self._validated != trainer.global_step)
                what = "from before this validation" if trainer.validating else "from before this step"
                if not (trainer.validating or within or isinstance(exception, InputError)):
                    what = f"of step {trainer.global_step:,}"
                exception.add_note(f"{self.path} is {what}: a fit goes on with --ckpt_path of it")
            except Exception as error:  # the weights are harmed already, or what failed does so in saving too
                if str(error) != str(exception):
                    exception.add_note(f"and {error}")
                files = self.path.parent.glob("*.ckpt")
                newest = max(files, key=lambda path: path.stat().st_mtime, default=trainer.ckpt_path)
                what = f"{newest} is the newest checkpoint" if newest else "no checkpoint is"
                exception.add_note(f"{what} from before")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write, unless epochs are so short that not all are validated."""
        epoch = trainer.current_epoch + 1
        ends = trainer.global_step == trainer.max_steps or epoch == trainer.max_epochs
        ends = ends or trainer.should_stop or trainer.received_sigterm
        if ends or epoch % (trainer.check_val_every_n_epoch or 1) == 0:
            self._save(trainer)

    def _save_from_before(self, trainer: Trainer, to_validate: bool = False) -> bool | None:
        """Save the state before the step under way, if there is one, which is returned.

        Otherwise that of the last step; `to_validate` says whether its validation is to come, if it is due.
        """
        with nullcontext() if trainer.validating else between_steps(trainer) as within:
            if within:
                for live, kept in self._statistics:
                    torch._foreach_copy_(live, kept)
            elif to_validate and not trainer.validating and batches_of_epoch(trainer):
                forget_validation(trainer)
            self._save(trainer)
        return within

    def _save(self, trainer: Trainer) -> None:
        # Once: after an epoch's end, Lightning counts the next as begun.
        if trainer.global_step != self.saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.path, weights_only=False)
            self.saved = trainer.global_step

    def _can_tell(self, exception: BaseException, processes: int) -> bool:
        """Whether all processes end in the same place, between what a checkpoint can tell of."""
        if processes > 1:
            return isinstance(exception, StepError)
        if isinstance(exception, InputError):
            return True
        return isinstance(exception, Exception) and (not self._stepping or failed_in(exception) is not None)
