"""The training loop's view of a detector: losses, optimiser, scores. Everything else is Lightning's."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from typing import Any, Literal, Self

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from fpn import lightning_private
from fpn.data.datamodule import CocoDataModule, OfCheckpoint
from fpn.data.samplers import sample_seed
from fpn.described import factory_of
from fpn.errors import InputError
from fpn.evaluation import BoxAP, Engine, Metric, ProposalRecall, Truth
from fpn.lit import resuming, watching
from fpn.lit.guards import FiniteSteps, ToldIfUnreadable
from fpn.lit.optimizer import PaperSGD, by_part, scale
from fpn.lit.schedule import Schedule
from fpn.lit.starting import begin_fit, begin_test
from fpn.lit.sync_norms import SyncNorms
from fpn.models.cascade import CascadeRCNN as CascadeRCNN  # a short name on the command line
from fpn.models.detectors import Detector, FasterRCNN
from fpn.models.optimized import CompileMode, accelerate, optimized
from fpn.settings import PositiveFloat
from fpn.types import Batch, Categories, Inference, precision_named

lightning_private.quiet()


class DetectionModule(OfCheckpoint, LightningModule):
    """A detector in training and testing.

    Args:
        classes: K, the number of object classes; the command line reads it from the data.
        detector: which detector, made for that number of classes, or one that is made already. Checkpoints
            tell it if its parts are classes, or `functools.partial` of classes.
        optimizer: of the trained parameters; its learning rate is meant for schedule.reference_images.
        lr_factors: multiply the learning rate of these parts of the detector, as {bottom_up: 0.1}.
        schedule: number of steps, and how the learning rate changes.
        metrics: what a validation or test is scored by; COCO's numbers of detections and of proposals
            unless given.
        engine: what computes COCO's scores; "pycocotools" is the slower reference.
        val_losses: log the losses of the validation images too, as val/loss and val/roi_class, in the pass
            that finds their objects. What is sampled is the same in every validation.
        start_from: a checkpoint of any detector of ours, a file of torchvision's or Detectron2's, or
            COCO_V1 or FasterRCNN_MobileNet_V3_Large_FPN_Weights.COCO_V1 and the like, which torchvision
            publishes: those of its parts (bottom_up, neck, rpn, roi_head) that this detector has too start
            from its weights; they have to fit. Read when a training begins, not when one goes on from a
            checkpoint.
        start_parts: only these parts of it, as all but roi_head for other classes.
        frozen_parts: parts of the detector that are not trained.
        compile: run bottom-up, neck and RPN through torch.compile, in this mode of its own; reduce-overhead
            and max-autotune record CUDA graphs. Each size of batches is compiled, so that a larger
            data.images.divisor, as 128, leaves fewer.
        channels_last: keep the detector's weights with their channels last, for half precision on a GPU.

    Raises:
        InputError: the detector has no such part.
    """

    last_losses: dict[str, Tensor]
    """The losses of the last training step by name; none of a training_step that is a subclass's own."""
    last_found: Inference
    """What the last validation or test step found."""
    loss_sums: dict[str, Tensor]
    """Over the images of a validation, by name."""
    steps_per_epoch: int
    """Steps of the optimiser in a pass over the training images, as the trainer limits it."""

    def __init__(
        self,
        classes: int,
        detector: Callable[[int], Detector] = FasterRCNN,
        optimizer: OptimizerCallable = PaperSGD,
        lr_factors: dict[str, PositiveFloat] | None = None,
        schedule: Schedule = Schedule(),
        metrics: list[Metric] | None = None,
        engine: Engine = "faster",
        val_losses: bool = True,
        start_from: str | None = None,
        start_parts: tuple[str, ...] | None = None,
        frozen_parts: tuple[str, ...] = (),
        compile: CompileMode | None = None,
        channels_last: bool = False,
    ) -> None:
        super().__init__()
        self.classes = classes
        if isinstance(detector, Detector) and (made := detector.made_of.get("classes", classes)) != classes:
            raise InputError(f"the detector was made for {made} classes, and the module for {classes}")
        self.detector = detector if isinstance(detector, Detector) else detector(classes)
        if not self.detector.training:  # as loaded ones
            self.detector.train()
        self.lr_factors, self.frozen_parts = dict(lr_factors or {}), tuple(frozen_parts)
        self._check_parts("lr_factors", self.lr_factors)
        self._check_parts("frozen_parts", self.frozen_parts)
        for part in self.frozen_parts:
            self.detector.get_submodule(part).requires_grad_(False).eval()
        if start_parts is not None and start_from is None:
            raise InputError(f"start_parts {list(start_parts)} are of no checkpoint: give start_from too")
        self.start_from, self.start_parts = start_from, start_parts
        self.last_losses = {}
        self.begun = False
        """Whether the weights to start from are loaded; a checkpoint's take their place."""
        if type(schedule) is not Schedule:
            raise InputError(
                f"{type(schedule).__name__}: checkpoints tell no Schedule of your own; have it in the "
                "configure_optimizers of a DetectionModule of your own"
            )
        self.optimizer, self.schedule = optimizer, schedule
        scored = [BoxAP(), ProposalRecall()] if metrics is None else metrics
        finds = self.detector.finds_objects
        self.metrics: list[Metric] = [one for one in scored if finds or not one.of_detections]
        """What a validation or test is scored by; no modules, for a checkpoint may be scored by others."""
        self.engine: Engine = engine
        self.val_losses = val_losses
        self.compile_mode, self.channels_last = compile, channels_last
        self.seed = torch.initial_seed()
        """Of all sampling; a run that goes on has that of the one it goes on with."""
        self.options: dict[str, Any] = {}
        """What cannot change within a run, of this one …"""
        self.options_before: dict[str, Any] = {}
        """… and of the one that it goes on with."""
        self.trained_for: Categories | None = None
        """What the labels of a checkpoint mean whose weights these are."""
        told = dict(self.made_of)
        with suppress(TypeError):
            told["detector"] = factory_of(self.detector)
        self.save_hyperparameters(told, logger=False)

    @classmethod
    def _told(cls, checkpoint: Mapping[str, Any], path: str, given: Mapping[str, Any]) -> dict[str, Any]:
        return resuming.made_of(cls, checkpoint, path, given)

    def _with_weights(self, checkpoint: dict[str, Any], device: Any) -> Self:
        self.on_load_checkpoint(checkpoint)
        self.load_state_dict(checkpoint["state_dict"])
        return self.to(device if isinstance(device, str | int | torch.device) else "cpu")

    def _check_parts(self, option: str, given: Sequence[str] | Mapping[str, Any]) -> None:
        parts = [name for name, _ in self.detector.named_children()]
        if unknown := [part for part in given if part not in parts]:
            raise InputError(f"{option}: this detector has no {unknown[0]!r}; it has {', '.join(parts)}")

    def configure_callbacks(self) -> list[Callback]:
        """What watches every training; a trainer that runs again has it already."""
        there = {type(callback) for callback in self.trainer.callbacks}  # type: ignore[attr-defined]
        return [kind() for kind in (ToldIfUnreadable, FiniteSteps) if kind not in there]

    def train(self, mode: bool = True) -> "DetectionModule":
        """As `nn.Module.train`, but frozen parts keep their running statistics too."""
        super().train(mode)
        for part in self.frozen_parts:
            self.detector.get_submodule(part).eval()
        return self

    @property
    def monitor(self) -> str | None:
        """The score by which the best checkpoint is chosen."""
        return next((f"val/{metric.best}" for metric in self.metrics if metric.best), None)

    @property
    def data(self) -> CocoDataModule:
        """The data module of the running trainer."""
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, CocoDataModule):
            raise InputError("this module trains and tests on a CocoDataModule; give one to the trainer")
        return data

    @property
    def images_per_step(self) -> int:
        """Images that all processes together learn from in a step of the optimiser."""
        return self.data.batch_size * self.trainer.world_size * self.trainer.accumulate_grad_batches

    @cached_property
    def finder(self) -> Detector:
        """What validates and tests: the detector, optimised for inference when it is first asked for.

        By then a callback that averages weights has put its own in place.
        """
        finder = optimized(self.detector)
        accelerate(finder, self.compile_mode, channels_last=False)
        return finder

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

    def setup(self, stage: str) -> None:
        """Tell the metrics what this stage is scored on.

        Raises:
            InputError: the precision or the data do not fit the detector.
        """
        precision_named(self.trainer.precision)
        wanted = self.trainer.num_devices * self.trainer.num_nodes
        if self.trainer.world_size != wanted:
            raise InputError(
                f"{self.trainer.world_size} of {wanted} processes were started, as in a SLURM job of one"
                " task: start the command by srun with --ntasks-per-node, or unset SLURM_NTASKS"
            )
        if stage == "fit":
            watching.refuse_callbacks(self.trainer)
        lightning_private.synchronise_by(self.trainer, SyncNorms())
        resuming.refuse_other_categories(self)
        if self.classes != (known := len(self.data.categories.ids)):
            raise InputError(
                f"the module was made for {self.classes} classes, and the data has {known}: give it"
                " classes=len(data.categories.ids)"
            )
        if self.detector.reads_proposals != self.data.reads_proposals:
            name = type(self.detector).__name__
            raise InputError(
                f"{name} needs proposals: give data.train.proposals and data.val.proposals (or "
                "data.test.proposals), files that `fpn predict --annotations` writes"
                if self.detector.reads_proposals
                else f"{name} makes its own proposals: leave out data.train.proposals and the like"
            )
        annotations, _ = self.data.source("test" if stage == "test" else "val")
        for metric in self.metrics:
            metric.score_on(Truth(annotations, self.data.categories, self.engine, self.data.crowds))

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """The schedule, at this run's number of images a step."""
        optimizer = by_part(self.optimizer, self, self.lr_factors)
        self.options = resuming.optimizer_options(optimizer) | {
            "model.lr_factors": self.lr_factors,
            "model.schedule.reference_images": self.schedule.reference_images,
            "model.frozen_parts": sorted(self.frozen_parts),
        }
        resuming.refuse_others(self.options_before, self.options)
        batches, limit = len(self.data.train_dataloader()), self.trainer.limit_train_batches
        batches = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        self.steps_per_epoch = max(math.ceil(batches / self.trainer.accumulate_grad_batches), 1)
        images, name = self.images_per_step, type(optimizer).__name__
        rate = optimizer.param_groups[0]["lr"] * images / self.schedule.reference_images
        scale(optimizer, self.lr_factors)
        lasting = self.schedule.lasting(images, self.steps_per_epoch)
        planned, scheduler = lasting.attach(optimizer, images)
        epochs = planned.steps / self.steps_per_epoch
        times = "".join(f", times {factor:g} for {part}" for part, factor in self.lr_factors.items())
        rank_zero_info(self.detector.counted)
        rank_zero_info(
            f"schedule: {epochs:,.4g} epochs of {self.data.train_images:,} images, which are {planned}; "
            f"{name}, learning rate {rate:.4g}{times}"
        )
        if lightning_private.averaging(self.trainer):
            optimizer.register_step_post_hook(
                lambda *_: lightning_private.average_from(self.trainer, self)  # until the first average
            )
        limits = (self.trainer.max_steps, (self.trainer.max_epochs or -1) * self.steps_per_epoch)
        end = min((limit for limit in limits if limit > 0), default=planned.steps)
        if end < planned.steps and not self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"training ends after {end:,} of the schedule's {planned.steps:,} steps, with the learning "
                "rate it has there: for a shorter training set --epochs or model.schedule.length (or steps "
                "and milestones) rather than trainer.max_epochs or max_steps"
            )
        if self.trainer.max_steps == -1:
            lightning_private.limit_steps(self.trainer, planned.steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def on_fit_start(self) -> None:
        """Load what a run starts from, unless a checkpoint has brought all weights.

        This is the first hook after a checkpoint has been loaded.
        """
        lightning_private.validate_last_step(self.trainer)
        watching.keep_nan_out(self.trainer)
        watching.check_watched(self.trainer, self)
        if not self.begun:
            begin_fit(self)
        self.begun = True
        if self._records_graphs and self.trainer.accumulate_grad_batches > 1:
            raise InputError(
                f"model.compile {self.compile_mode} keeps gradients where the next batch's are written: set"
                " it to default, or leave out trainer.accumulate_grad_batches"
            )
        accelerate(self.detector, self.compile_mode, self.channels_last)
        # Nothing here reads memory before it is written to.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Have the loggers count steps as the optimiser does."""
        lightning_private.log_by_steps(self.trainer)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The sum of the detector's losses."""
        # Chance depends on the seed, the step and the process alone: a run that goes on samples the same.
        seed = sample_seed(self.seed, lightning_private.batches_begun(self.trainer), self.global_rank)
        chance = torch.Generator(device=self.device).manual_seed(seed)
        self._begin_graphs()
        losses = self.detector.losses(batch, chance)
        self.last_losses = {name: value.detach() for name, value in losses.items()}
        total = torch.stack(list(losses.values())).sum()
        values = {f"train/{name}": value for name, value in self.last_losses.items()}
        self.log_dict(values, batch_size=len(batch.images))
        self.log("train/loss", total.detach(), prog_bar=True, batch_size=len(batch.images))
        return total

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add what is found to the metrics, and the losses to their mean over the images."""
        self._begin_graphs()
        if not self.val_losses:
            self._collect(batch, self.finder(batch))
            return
        seed = sample_seed(0, batch_idx, self.global_rank)
        chance = torch.Generator(device=self.device).manual_seed(seed)
        found, losses = self.finder.find_with_losses(batch, chance)
        self._collect(batch, found)
        for name, value in losses.items():
            self.loss_sums[name] = self.loss_sums.get(name, 0.0) + len(batch.images) * value
        self.images_of_losses += len(batch.images)

    def test_step(self, batch: Batch | list[Batch], batch_idx: int) -> None:
        """The same, of images at several sizes where the data has an image pyramid."""
        self._begin_graphs()
        if isinstance(batch, list):
            self._collect(batch[0], self.finder.over_scales(batch))
        else:
            self._collect(batch, self.finder(batch))

    @property
    def _records_graphs(self) -> bool:
        return self.compile_mode not in (None, "default") and self.device.type == "cuda"

    def _begin_graphs(self) -> None:
        """Tell CUDA graphs that a step begins: each compiled part would take its input for an old step's."""
        if self._records_graphs:
            torch.compiler.cudagraph_mark_step_begin()

    def _collect(self, batch: Batch, found: Inference) -> None:
        self.last_found = found
        for metric in self.metrics:
            metric.update(batch, found)

    def on_validation_model_eval(self) -> None:
        """Load what is scored without a checkpoint, and forget the detector of an earlier validation."""
        super().on_validation_model_eval()
        if not self.begun and self.trainer.state.fn != TrainerFn.FITTING:
            begin_test(self)
            self.begun = self.start_from is not None
        self.__dict__.pop("finder", None)

    on_test_model_eval = on_validation_model_eval

    def on_validation_epoch_start(self) -> None:
        """Forget what an earlier epoch found."""
        self.loss_sums, self.images_of_losses = {}, 0
        for metric in self.metrics:
            metric.to(self.device).reset()

    def on_validation_epoch_end(self) -> None:
        """Score what was found."""
        scores: dict[str, float | Tensor] = {**self.scores("val")}
        if self.loss_sums:
            # Not Lightning's, which divides by the mean of the processes' numbers of images, rounded down.
            sums = torch.stack([*self.loss_sums.values()])
            sums = torch.cat((sums, sums.new_tensor([self.images_of_losses])))
            *totals, images = torch.as_tensor(self.trainer.strategy.reduce(sums, reduce_op="sum"))
            for name, value in zip((*self.loss_sums, "loss"), (*totals, sum(totals)), strict=True):
                scores[f"val/{name}"] = value / images
        self.log_dict(scores)

    def on_validation_end(self) -> None:
        """Let go of what training would leave behind."""
        self.__dict__.pop("finder", None)

    on_test_epoch_start = on_validation_epoch_start

    def on_test_epoch_end(self) -> None:
        """Score what was found."""
        self.log_dict(self.scores("test"))

    def scores(self, split: Literal["val", "test"]) -> dict[str, float]:
        """The scores of the epoch just run, by all metrics: `val/AP`, `val/proposal_AR@1000`, …"""
        by_name: dict[str, float] = {}
        for metric, scores in self.by_metric():
            if twice := by_name.keys() & scores.keys():
                name = f"{type(metric).__name__} gives {min(twice)}"
                raise InputError(f"model.metrics: {name}, as another metric does")
            by_name |= scores
        return {f"{split}/{name}": value for name, value in by_name.items()}

    def by_metric(self) -> list[tuple[Metric, dict[str, float]]]:
        """Each metric, and its numbers of the epoch just run. All processes have to ask together."""
        return [
            (metric, {name: float(value) for name, value in metric.compute().items()})
            for metric in self.metrics
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what is needed to use the weights without this run's configuration files."""
        checkpoint["fpn"] = resuming.record(self)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Refuse a checkpoint of another detector, or one trained for other categories."""
        resuming.take_up(self, checkpoint)
        self.begun = True
