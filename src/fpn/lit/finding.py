"""The learning rate or the batch size that a callback of Lightning's finds, before the run that has it."""

import tempfile
from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.utilities import rank_zero_info

from fpn import lightning_private
from fpn.data.datamodule import CocoDataModule
from fpn.errors import InputError
from fpn.lit.module import DetectionModule
from fpn.lit.starting import begin_fit

Finder = LearningRateFinder | BatchSizeFinder
_ALONE = ("accelerator", "devices", "precision", "deterministic", "benchmark")
_SHARED = (*_ALONE, "accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm")


class _Find(Callback):
    """Has a finder do its work on a detector whose weights to start from are loaded."""

    def __init__(self, finder: Finder) -> None:
        self.finder = finder
        self.found: float | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Instead of a fit."""
        assert isinstance(pl_module, DetectionModule)
        begin_fit(pl_module)
        # What it goes back to is its own, saved with another number of images a step perhaps.
        vars(pl_module)["on_load_checkpoint"] = lambda checkpoint: None
        if isinstance(self.finder, BatchSizeFinder):
            self.found = _batch_size(self.finder, trainer, pl_module)
        else:
            rate = lightning_private.find_learning_rate(self.finder, trainer, pl_module)
            scale = pl_module.schedule.reference_images / pl_module.images_per_step
            self.found = None if rate is None else rate * scale
        lightning_private.end_finding()


def find(
    finder: Finder, config: Namespace, given: Namespace, module: DetectionModule, data: CocoDataModule
) -> None:
    """Set `model.optimizer.lr` or `data.batch_size` of a configuration to what is found, and say so.

    Args:
        finder: as the user has set it.
        config: what is changed.
        given: the trainer's options.
        module: trained for a few steps, and no more of use.
        data: the same.

    Raises:
        InputError: nothing is found, or it is looked for where that cannot be.
    """
    name = type(finder).__name__
    with tempfile.TemporaryDirectory() as folder:
        finding = _Find(finder)
        quiet: dict[str, Any] = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = Trainer(
            **{option: given[option] for option in _SHARED},
            **quiet,
            callbacks=[finding],
            max_epochs=-1,
            num_sanity_val_steps=0,
            check_val_every_n_epoch=10**9,
            use_distributed_sampler=False,
            default_root_dir=folder,
        )
        if trainer.world_size > 1:
            option = "model.optimizer.lr" if isinstance(finder, LearningRateFinder) else "data.batch_size"
            raise InputError(
                f"{name} looks in one process: give --trainer.devices 1, and what it finds as {option}"
            )
        trainer.fit(module, data)
    if finding.found is None:
        raise InputError(f"{name} found none: give it other bounds, or num_training_steps")
    if isinstance(finder, BatchSizeFinder):
        config.data.init_args.batch_size = int(finding.found)
        told = f"data.batch_size {int(finding.found)}"
    else:
        config.model.optimizer.init_args.lr = finding.found
        images, reference = module.images_per_step, module.schedule.reference_images
        rate = finding.found * images / reference
        told = f"a learning rate of {rate:.4g} at {images} images a step, which is model.optimizer.lr "
        told += f"{finding.found:.4g} (for model.schedule.reference_images, {reference})"
    rank_zero_info(f"{name} found {told}")


def _batch_size(finder: BatchSizeFinder, trainer: Trainer, module: DetectionModule) -> int:
    """The greatest that fits; it is no failure where more images than there are do not make a batch."""
    finder.setup(trainer, module, "fit")
    try:
        finder.scale_batch_size(trainer, module)
    except InputError:
        return max(module.data.batch_size // 2, 1)
    return int(finder.optimal_batch_size or module.data.batch_size)
