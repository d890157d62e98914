"""A page that tells of a test what its scores do not."""

from functools import partial
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback, Trainer

from fpn.console import say
from fpn.data.coco import CocoDataset
from fpn.evaluation import BoxAP, BoxScores, ProposalRecall, Pyramid
from fpn.lit.resuming import config_of
from fpn.models.detectors import Detector
from fpn.models.roi_head import RoIHead
from fpn.report import Reported, input_scales, write_report
from fpn.settings import Share


class Report(Callback):
    """Writes `report.html` and its `curves.png` beside the scores of a test.

    Proposals that the detector was given are left out. With trainer.fast_dev_run nothing is written.

    Args:
        score_threshold: detections from this score on count in the confusion matrix and are drawn.
    """

    def __init__(self, score_threshold: Share = 0.5) -> None:
        self.score_threshold = score_threshold

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """On process 0, of the images that all processes have seen."""
        found = pl_module.by_metric()
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # which all processes have to ask together
        if not trainer.is_global_zero or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        truth, detections, scores, proposals = None, None, None, None
        for metric, numbers in found:
            if isinstance(metric, BoxAP) and metric.precision is not None:
                truth, detections = metric.seen()
                scores = BoxScores(numbers, metric.by_category, metric.precision)
            elif isinstance(metric, ProposalRecall) and not pl_module.detector.reads_proposals:
                truth, proposals = metric.seen()
        if truth is None:
            return
        dataset: CocoDataset = trainer.test_dataloaders.dataset  # type: ignore[union-attr]
        annotations = dataset.annotations
        about = Reported(
            f"Test of {trainer.ckpt_path or pl_module.start_from}",
            truth,
            detections,
            scores,
            proposals,
            input_scales(truth, annotations, pl_module.data.image_settings),
            _pyramid(pl_module.detector),
            {id_: partial(dataset.picture, i) for i, id_ in enumerate(annotations.image_ids.tolist())},
            folder.parent / "metrics.csv",
            yaml.safe_dump(config_of(pl_module), sort_keys=False),
            self.score_threshold,
        )
        write_report(about, folder / "report.html", folder / "curves.png")
        say(f"the report: {folder / 'report.html'}")


def _pyramid(detector: Detector) -> Pyramid:
    """The levels that RoIs are read from; without a head that reads them, those of the paper."""
    head = getattr(detector, "roi_head", None)
    if not isinstance(head, RoIHead):
        return Pyramid()
    return Pyramid(head.levels[0], head.levels[-1], head.canonical_size, head.canonical_level)
