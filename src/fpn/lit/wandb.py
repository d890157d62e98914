"""Weights & Biases: a logger that never asks or fails for want of an account, and pictures of detections.

The only file that imports wandb.
"""

import os
from netrc import NetrcParseError, netrc
from typing import Any
from urllib.parse import urlparse

import torch
import wandb
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger

from fpn.lit.module import DetectionModule
from fpn.ops.boxes import rescale_boxes
from fpn.types import Batch, Detections


class Dashboard(WandbLogger):
    """A W&B run, online where the user is logged in, offline otherwise.

    An offline run lies under `save_dir` and can be uploaded later by `wandb sync`. WANDB_MODE wins. A run
    that goes on from a checkpoint goes on with its W&B run too. Checkpoints lie in the folder of the run's
    file logger; where there is no other logger, of a metrics.csv under `save_dir`.

    Args:
        project: W&B project.
        name: of the run; null lets W&B invent one.
        group: runs that belong together.
        tags: of the run.
        save_dir: folder of the run's files.
        id: of a W&B run to go on with; null for a new one, or the checkpoint's.
    """

    def __init__(
        self,
        project: str = "fpn",
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        save_dir: str = "runs",
        id: str | None = None,
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        offline = "WANDB_MODE" not in os.environ and not _logged_in()
        super().__init__(name, save_dir, offline=offline, id=id, project=project, group=group, tags=tags)


class DetectionPictures(Callback):
    """The same few validation images after every validation, with predicted and true boxes.

    Args:
        number: how many images.
        score_threshold: predicted boxes with a lower score are not sent.
    """

    def __init__(self, number: int = 8, score_threshold: float = 0.3) -> None:
        self.number, self.score_threshold = number, score_threshold
        self.pictures: list[wandb.Image] = []

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation's."""
        self.pictures = []

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Draw the first images of the first process."""
        wanted = self.number - len(self.pictures)
        if trainer.sanity_checking or not trainer.is_global_zero or wanted <= 0 or batch.targets is None:
            return
        if not isinstance(pl_module, DetectionModule) or not self._logger(trainer):
            return
        names = dict(enumerate(pl_module.data.categories.names, start=1))
        found, found_names = pl_module.last_found.detections, names
        if found is None:
            found, found_names = pl_module.last_found.proposals, {1: "object"}
        for n in range(min(wanted, len(found))):
            size, target = batch.sizes[n], batch.targets[n]
            boxes = rescale_boxes(found[n].boxes, batch.original_sizes[n], size)
            truth = Detections(target.boxes, torch.ones(len(target.boxes)), target.labels)
            layers = {
                "predictions": self._layer(found[n]._replace(boxes=boxes), found_names),
                "truth": self._layer(truth, names),
            }
            image = pl_module.data.image_settings.restore(batch.images[n], size)
            caption = f"image {batch.image_ids[n]}"
            self.pictures.append(
                wandb.Image(image.permute(1, 2, 0).cpu().numpy(), boxes=layers, caption=caption)
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send them."""
        logger = self._logger(trainer)
        if self.pictures and logger:
            logger.experiment.log({"val/pictures": self.pictures, "trainer/global_step": trainer.global_step})

    def _logger(self, trainer: Trainer) -> WandbLogger | None:
        return next((logger for logger in trainer.loggers if isinstance(logger, WandbLogger)), None)

    def _layer(self, found: Detections, names: dict[int, str]) -> dict[str, Any]:
        rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        return {
            "class_labels": names,
            "box_data": [
                {
                    "position": dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True)),
                    "domain": "pixel",
                    "class_id": label,
                    "box_caption": f"{names[label]} {score:.2f}",
                    "scores": {"score": score},
                }
                for box, score, label in rows
                if score >= self.score_threshold
            ],
        }


def _logged_in() -> bool:
    """Whether an account is known where `wandb login` keeps it, without asking for one or reaching out."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, NetrcParseError):
        return False
