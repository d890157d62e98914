"""The training loop's view of a detector: losses, optimiser, scores. Everything else is Lightning's."""

import copy
import math
from collections.abc import Callable, Iterable
from dataclasses import asdict
from functools import cached_property
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import get_total_norm
from torch.optim import SGD, Optimizer
from torch.optim.optimizer import ParamsT

from fpn import checkpoints
from fpn.data.datamodule import CocoDataModule
from fpn.data.samplers import sample_seed
from fpn.errors import InputError
from fpn.evaluation import BoxAP, Engine, ProposalRecall
from fpn.lit.resuming import optimizer_options, refuse_others, tell_others, trainer_options
from fpn.lit.schedule import Schedule
from fpn.models.detectors import Detector, FasterRCNN
from fpn.models.optimized import optimized
from fpn.types import Batch, Inference, precision_named
from fpn.weights import check_weights


class StepError(InputError):
    """What ends a run in all its processes at one step; the first of them tells it."""


class NonFiniteError(StepError):
    """A loss, a gradient or a weight became infinite or not a number; going on would spoil the weights."""


class PaperSGD(SGD):
    """SGD as the paper has it (Sec. 5.1).

    Args:
        params: what is trained.
        lr: learning rate.
        momentum: share of the last step that is kept.
        weight_decay: on every parameter.
    """

    def __init__(
        self, params: ParamsT, lr: float = 0.02, momentum: float = 0.9, weight_decay: float = 1e-4
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)


class DetectionModule(LightningModule):
    """A detector in training and testing.

    Args:
        classes: K, the number of object classes; the command line reads it from the data.
        detector: which detector, made for that number of classes.
        optimizer: of the trained parameters; its learning rate is meant for schedule.reference_images.
        schedule: number of steps, and how the learning rate changes.
        engine: what computes COCO's scores; "pycocotools" is the slower reference.
        start_from: a checkpoint of any detector of ours, a file of torchvision's or Detectron2's, or
            COCO_V1, which torchvision publishes: those of its parts (bottom_up, neck, rpn, roi_head) that
            this detector has too start from its weights; they have to fit.
        start_parts: only these parts of it, as all but roi_head for other classes.
        frozen_parts: parts of the detector that are not trained.

    Raises:
        InputError: the detector has no such part, or start_from does not fit.
    """

    last_found: Inference
    """What the last validation or test step found."""

    def __init__(
        self,
        classes: int,
        detector: Callable[[int], Detector] = FasterRCNN,
        optimizer: OptimizerCallable = PaperSGD,
        schedule: Schedule = Schedule(),
        engine: Engine = "faster",
        start_from: str | None = None,
        start_parts: tuple[str, ...] | None = None,
        frozen_parts: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.detector = detector(classes)
        if start_parts is not None and start_from is None:
            raise InputError(f"start_parts {list(start_parts)} are of no checkpoint: give start_from too")
        self.start: checkpoints.Start | None = None
        """What was found in start_from."""
        if start_from is not None:
            self.start = checkpoints.start_from(self.detector, start_from, start_parts)
            rank_zero_info(str(self.start))
        parts = [name for name, _ in self.detector.named_children()]
        if unknown := [part for part in frozen_parts if part not in parts]:
            raise InputError(f"frozen_parts: this detector has no {unknown[0]!r}; it has {', '.join(parts)}")
        self.frozen_parts = tuple(frozen_parts)
        for part in frozen_parts:
            self.detector.get_submodule(part).requires_grad_(False).eval()
        self.optimizer, self.schedule = optimizer, schedule
        self.engine: Engine = engine
        self.seed = torch.initial_seed()
        """Of all sampling; a run that goes on has that of the one it goes on with."""
        self._options: dict[str, Any] = {}
        """What cannot change within a run, of this one …"""
        self._options_before: dict[str, Any] = {}
        """… and of the one that it goes on with."""
        self._image_ids: list[int] = []
        self._statistics: list[tuple[list[Tensor], list[Tensor]]] = []
        self.config: dict[str, Any] = {}
        """What the command line built this module from; kept in checkpoints."""

    def train(self, mode: bool = True) -> "DetectionModule":
        """As `nn.Module.train`, but frozen parts keep their running statistics too."""
        super().train(mode)
        for part in self.frozen_parts:
            self.detector.get_submodule(part).eval()
        return self

    @property
    def monitor(self) -> str:
        """The score by which the best checkpoint is chosen."""
        return "val/AP" if self.detector.finds_objects else "val/proposal_AR@1000"

    @property
    def data(self) -> CocoDataModule:
        """The data module of the running trainer."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, CocoDataModule):
            raise InputError("this module trains and tests on a CocoDataModule; give one to the trainer")
        return data

    @cached_property
    def finder(self) -> Detector:
        """What validates and tests: the detector, optimised for inference when it is first asked for.

        By then a callback that averages weights has put its own in place.
        """
        return optimized(self.detector)

    def __deepcopy__(self, memo: dict[int, Any]) -> "DetectionModule":
        """What callbacks that average weights make. The optimiser's factory allows no copy, and is shared."""
        memo[id(self.optimizer)] = self.optimizer
        copied = memo[id(self)] = type(self).__new__(type(self))
        copied.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return copied

    def forward(self, batch: Batch) -> Inference:
        """Proposals and detections of a batch."""
        result: Inference = self.detector(batch)
        return result

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the detector's losses."""
        self._image_ids += batch.image_ids
        losses = self.detector.losses(batch, self._generator())
        total = torch.stack(list(losses.values())).sum()
        self._check_together(batch, losses, total)
        values = {f"train/{name}": value.detach() for name, value in losses.items()}
        self.log_dict(values, batch_size=len(batch.images))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch.images))
        return total

    def _check_together(self, batch: Batch, losses: dict[str, Tensor], total: Tensor) -> None:
        """End the run in all processes if one of them has seen what ends it: the others would wait for it."""
        # Made on the device, which is waited for once.
        flag = (~total.isfinite()).long()
        flags = torch.stack([flag, torch.full_like(flag, len(batch.unreadable))])
        infinite, unreadable = self.trainer.strategy.reduce(flags, reduce_op="sum").tolist()
        if unreadable:
            lines = [line for own in self._gathered(batch.unreadable) for line in own]
            try:
                self.data.note_unreadable(lines)
            except InputError as error:
                raise StepError(str(error)) from None
        if infinite:
            wrong = [f"{name} = {value.item():g}" for name, value in losses.items() if not value.isfinite()]
            own = None
            if not total.isfinite():
                own = ", ".join(wrong or ["the sum of the losses = inf"]), batch.image_ids
            what, images = next(found for found in self._gathered(own) if found is not None)
            raise NonFiniteError(self._told(what, images))

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """See that the gradients are finite, as long as the weights are unharmed.

        Not with 16-mixed, whose scaler leaves out steps with other gradients, and tells nobody.
        """
        if getattr(self.trainer.precision_plugin, "scaler", None) is not None:
            return
        gradients = [(name, p.grad) for name, p in self.named_parameters() if p.grad is not None]
        name = first_non_finite(gradients)
        if name is not None:
            images = [image for own in self._gathered(self._image_ids) for image in own]
            raise NonFiniteError(self._told(f"the gradient of {name} is not finite", images))

    def _told(self, what: str, images: list[int]) -> str:
        return (
            f"{what} at step {self.global_step} on images {images}; lower model.optimizer.lr or check these "
            "images' boxes"
        )

    def _gathered(self, value: Any) -> list[Any]:
        """What each process has."""
        if self.trainer.world_size == 1:
            return [value]
        values: list[Any] = [None] * self.trainer.world_size
        torch.distributed.all_gather_object(values, value)
        return values

    def _generator(self) -> torch.Generator:
        """Chance that depends on the seed, the step and the process alone: a resumed run samples the same."""
        generator = torch.Generator(device=self.device)
        step = self.trainer.fit_loop.epoch_loop.total_batch_idx
        return generator.manual_seed(sample_seed(self.seed, step, self.global_rank))

    @property
    def images_per_step(self) -> int:
        """Images that all processes together learn from in a step of the optimiser."""
        return self.data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    def on_train_start(self) -> None:
        """Find what a forward pass changes: the running statistics of a live BatchNorm."""
        self._tell_if_cut_short()
        norms = [m for m in self.modules() if isinstance(m, _BatchNorm) and m.training]
        by_kind: dict[torch.dtype, list[Tensor]] = {}
        for buffer in (buffer for norm in norms for buffer in norm.buffers()):
            by_kind.setdefault(buffer.dtype, []).append(buffer)
        self._statistics = [(live, [buffer.clone() for buffer in live]) for live in by_kind.values()]

    def _tell_if_cut_short(self) -> None:
        trainer = self.trainer
        steps = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        limits = (trainer.max_steps, (trainer.max_epochs or -1) * steps)
        planned = self.schedule.at(self.images_per_step).steps
        end = min((limit for limit in limits if limit > 0), default=planned)
        if end < planned and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"training ends after {end:,} of the schedule's {planned:,} steps, with the learning "
                "rate it has there: for a shorter training set model.schedule.length (or steps and "
                "milestones) rather than trainer.max_epochs or max_steps"
            )

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Have the loggers count steps as the optimiser does, and keep what `forget_step` needs.

        Their count is one too high in a run that goes on from the end of an epoch.
        """
        self.trainer.fit_loop.epoch_loop._batches_that_stepped = self.global_step
        if batch_idx % self.trainer.accumulate_grad_batches == 0:
            self._image_ids = []
            for live, kept in self._statistics:
                torch._foreach_copy_(kept, live)

    def forget_step(self) -> None:
        """Take back what the forward passes of the step under way have changed: running statistics."""
        for live, kept in self._statistics:
            torch._foreach_copy_(live, kept)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Have the last step validated even where it ends no epoch."""
        if 0 < self.trainer.max_steps <= self.global_step:
            self.trainer.should_stop = True

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The schedule, at this run's number of images a step."""
        trained = [p for p in self.parameters() if p.requires_grad]
        if not trained:
            raise InputError(f"frozen_parts {list(self.frozen_parts)} leave nothing to train")
        try:
            optimizer = self.optimizer(trained)
        except ValueError as error:  # PyTorch's, of a setting
            raise InputError(f"model.optimizer: {error}") from None
        self._options = optimizer_options(optimizer) | {
            "model.schedule.reference_images": self.schedule.reference_images,
            "model.frozen_parts": sorted(self.frozen_parts),
        }
        refuse_others(self._options_before, self._options)
        schedule, scheduler = self.schedule.attach(optimizer, self.images_per_step)
        name, rate = type(optimizer).__name__, scheduler.base_lrs[0]
        rank_zero_info(f"schedule: {schedule}; {name}, learning rate {rate:.4g}")
        if self.trainer.max_steps == -1:
            # The number of steps follows from the number of processes, which is known only now.
            self.trainer.fit_loop.epoch_loop.max_steps = schedule.steps
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def setup(self, stage: str) -> None:
        """Make the scores for the annotations this stage is scored on."""
        data = self.data
        path = data.test_annotations_path if stage == "test" else data.val_annotations_path
        precision_named(self.trainer.precision)
        if self.detector.reads_proposals != data.reads_proposals:
            name = type(self.detector).__name__
            raise InputError(
                f"{name} needs proposals: give data.train_proposals and val_proposals (or test_proposals), "
                "files that `fpn predict --annotations` writes"
                if self.detector.reads_proposals
                else f"{name} makes its own proposals: leave out data.train_proposals and the like"
            )
        self.recall = ProposalRecall(path, engine=self.engine)
        self.ap = BoxAP(path, data.categories, engine=self.engine) if self.detector.finds_objects else None

    def on_fit_start(self) -> None:
        """See that a run which begins here begins with weights where it does not train.

        Not in `setup`, where Lightning does not know yet that a run goes on.

        Raises:
            InputError: a part is neither trained nor taken from anywhere.
        """
        if self.trainer.ckpt_path is not None:
            return
        if self.start is not None:
            if self.start.other:
                rank_zero_warn(self.start.warning)
            return
        if untrained := [part for part in self.frozen_parts if part != "bottom_up"]:
            raise InputError(
                f"frozen_parts: {', '.join(untrained)} would stay as random as it is: give model.start_from, "
                "a checkpoint that has it trained"
            )
        bottom_up = self.detector.bottom_up
        fixed = bottom_up.norm == "frozen" or bottom_up.frozen_stages > 0
        if fixed and bottom_up.weights is None:
            rank_zero_warn(
                "the bottom-up starts from random weights, yet part of it is not trained: set its weights, "
                "or norm: batch (or group) and frozen_stages: 0"
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Collect what is found."""
        self._collect(batch)

    def test_step(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """Collect what is found; in the same images at several sizes, where the data has an image pyramid."""
        self._collect(batch)

    def on_validation_model_eval(self) -> None:
        """Forget what an earlier validation was of."""
        super().on_validation_model_eval()
        self._forget_finder()

    def on_test_model_eval(self) -> None:
        """Forget what a validation was of."""
        super().on_test_model_eval()
        self._forget_finder()

    def _forget_finder(self) -> None:
        self.__dict__.pop("finder", None)

    def on_validation_end(self) -> None:
        """Let go of what training would leave behind."""
        self._forget_finder()

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier epoch found."""
        self._reset()

    def on_test_epoch_start(self) -> None:
        """Forget what an earlier epoch found."""
        self._reset()

    def on_validation_epoch_end(self) -> None:
        """Score what was found."""
        self.log_dict(self.scores("val"))

    def on_test_epoch_end(self) -> None:
        """Score what was found."""
        self.log_dict(self.scores("test"))

    def scores(self, split: Literal["val", "test"]) -> dict[str, float]:
        """The scores of the epoch just run: `val/AP`, …, and of its proposals `val/proposal_AR@1000`, …"""
        scores = {f"{split}/proposal_{key}": value for key, value in self.recall.compute().items()}
        if self.ap is not None:
            scores |= {f"{split}/{key}": value for key, value in self.ap.compute().items()}
        return scores

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed to use the weights without this run's configuration files.

        Raises:
            NonFiniteError: the weights are not finite; no checkpoint is worth being replaced by them.
        """
        name = self.trainer.strategy.broadcast(first_non_finite(checkpoint["state_dict"].items()))
        if name is not None:
            raise NonFiniteError(f"{name} is not finite after {self.global_step} steps")
        data = self.data
        categories = data.categories
        checkpoint["fpn"] = {
            "config": self.config,
            "categories": {"ids": list(categories.ids), "names": list(categories.names)},
            "image": asdict(data.image_settings),
            "images_per_step": self.images_per_step,
            "seed": self.seed,
            "options": self._options,
            "trainer_options": trainer_options(self.trainer),
            "loggers": {type(logger).__name__: logger.version for logger in self.trainer.loggers},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another detector, or one trained for other categories."""
        kept = checkpoint.get("fpn")
        if kept is not None:
            theirs, ours = checkpoints.remembered_categories(kept, "the checkpoint"), self.data.categories
            if theirs != ours:
                raise InputError(
                    f"the checkpoint was trained for other categories than the data has: "
                    f"{theirs.difference(ours)}"
                )
        check_weights(self.state_dict(), checkpoint["state_dict"], "the checkpoint")
        if kept is None:
            return
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        if fitting and not checkpoint.get("optimizer_states"):
            raise InputError(
                "this checkpoint cannot be gone on with, it has no state of an optimiser: start a new run "
                "with model.start_from"
            )
        self.seed = kept.get("seed", self.seed)
        if fitting and kept["images_per_step"] != self.images_per_step:
            raise InputError(
                f"the checkpoint was trained with {kept['images_per_step']} images a step, this run has "
                f"{self.images_per_step}: choose data.batch_size, trainer.devices and "
                f"trainer.accumulate_grad_batches so that they agree"
            )
        if fitting:
            self._options_before = kept.get("options", {})
            tell_others(kept.get("trainer_options", {}), trainer_options(self.trainer))

    def _collect(self, batch: Batch | list[Batch]) -> None:
        found = self.finder.over_scales(batch) if isinstance(batch, list) else self.finder(batch)
        image_ids = (batch[0] if isinstance(batch, list) else batch).image_ids
        self.last_found = found
        self.recall.update(image_ids, found.proposals)
        if self.ap is not None and found.detections is not None:
            self.ap.update(image_ids, found.detections)

    def _reset(self) -> None:
        self.recall.reset()
        if self.ap is not None:
            self.ap.reset()


def first_non_finite(named: Iterable[tuple[str, Tensor]]) -> str | None:
    """The name of the first floating-point tensor that is not finite; None if all are."""
    tensors = {name: value for name, value in named if value.is_floating_point() and value.numel()}
    # The greatest absolute value, which no sum of squares overflows: one look at the device for all of them.
    if torch.isfinite(get_total_norm(tensors.values(), math.inf)):
        return None
    return next((name for name, value in tensors.items() if not torch.isfinite(value).all()), None)
