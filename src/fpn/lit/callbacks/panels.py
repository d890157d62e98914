"""What dashboards show besides numbers."""

import math
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.trainer.states import TrainerFn

from fpn import pictures
from fpn.evaluation.panels import TablePanel
from fpn.lightning_private import logged_step
from fpn.lit.boards import Board, Picture, boards_of
from fpn.ops.boxes import rescale_boxes
from fpn.types import OBJECTS, Detections


class Panels(Callback):
    """Shows the panels of the metrics and some images after every validation and test, on every dashboard.

    The images are the first of the first process, the same each time, with predicted and true boxes. Besides
    it keeps the scores of the best validation: a dashboard's table of runs would have those of the last.

    Args:
        number: how many images.
        score_threshold: predicted boxes with a lower score are not shown.
    """

    def __init__(self, number: int = 8, score_threshold: float = 0.3) -> None:
        self.number, self.score_threshold = number, score_threshold
        self.pictures: list[Picture] = []
        self.best: dict[str, float] = {}
        """All scores and losses of the validation with the greatest of `DetectionModule.monitor`."""

    def on_validation_start(self, trainer: Trainer, pl_module: Any) -> None:
        """Forget the images of the last one."""
        self.pictures = []

    on_test_start = on_validation_start

    def on_validation_batch_end(
        self, trainer: Trainer, pl_module: Any, outputs: Any, batch: Any, *_: Any, **__: Any
    ) -> None:
        """Keep the first images."""
        if isinstance(batch, list):  # of an image pyramid
            batch = batch[0]
        wanted = self.number - len(self.pictures)
        if trainer.sanity_checking or wanted <= 0 or batch.targets is None or not _boards(trainer):
            return
        data, found = pl_module.data, pl_module.last_found
        shown, its_categories = found.detections, data.categories
        if shown is None:
            shown, its_categories = found.proposals, OBJECTS
        for n, one in enumerate(shown[:wanted]):
            size, target = batch.sizes[n], batch.targets[n]
            boxes = rescale_boxes(one.boxes, batch.original_sizes[n], size)
            kept = Detections(
                *(part[one.scores >= self.score_threshold].cpu() for part in one._replace(boxes=boxes))
            )
            image = data.image_settings.restore(batch.images[n], size).cpu()
            truth = pictures.truth(target.boxes.cpu(), target.labels.cpu())
            name = f"image {batch.image_ids[n]}"
            self.pictures.append(Picture(name, image, kept, its_categories, truth, data.categories))

    on_test_batch_end = on_validation_batch_end

    def on_validation_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Show all of it."""
        if trainer.sanity_checking:
            return
        fits = trainer.state.fn == TrainerFn.FITTING
        self._show(trainer, pl_module, "val", logged_step(trainer) if fits else None)
        monitor, boards = pl_module.monitor, boards_of(trainer.loggers)
        if monitor is None or not boards or not fits:
            return
        logged = trainer.callback_metrics.items()
        scores = {name: float(value) for name, value in logged if name.startswith("val/")}
        scores |= pl_module.scores("val")
        best = self.best.get(monitor, math.nan)
        if math.isnan(best) or scores[monitor] > best:
            self.best = scores
        elif trainer.is_global_zero:
            for board in boards:
                board.show_best(self.best)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """The same of a test."""
        self._show(trainer, pl_module, "test", None)

    def state_dict(self) -> dict[str, Any]:
        """The best scores, for a run that goes on."""
        return dict(self.best)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The same."""
        self.best = dict(state_dict)

    def _show(self, trainer: Trainer, module: Any, split: str, step: int | None) -> None:
        for board in _boards(trainer):
            for panel in (panel for metric in module.metrics for panel in metric.panels()):
                show = board.show_table if isinstance(panel, TablePanel) else board.show_curves
                show(f"{split}/{panel.name}", panel, step)
            if self.pictures:
                board.show_pictures(f"{split}/pictures", self.pictures, step)


def _boards(trainer: Trainer) -> list[Board]:
    """Those that this process shows something on."""
    return boards_of(trainer.loggers) if trainer.is_global_zero else []
