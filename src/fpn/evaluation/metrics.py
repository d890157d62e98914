"""The numbers of `scoring` as torchmetrics, for a training or test loop.

Symbols: M detections of all images seen, K classes.
"""

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from fpn.errors import InputError
from fpn.evaluation.curves import recall_curves
from fpn.evaluation.distributed import COCOMetric
from fpn.evaluation.engines import Engine
from fpn.evaluation.inputs import AnnotationSource
from fpn.evaluation.scoring import BoxScores, box_scores, proposal_scores
from fpn.types import Categories, Detections


class BoxAP(COCOMetric):
    """COCO's twelve numbers of detections, over the images seen (paper, Tables 2–4).

    `annotations` is a COCO file or what such a file holds; `categories` maps labels to its category ids;
    `options` are those of every torchmetrics Metric.
    """

    labels: list[Tensor] | Tensor
    """(M,) in 1…K."""

    _empties: ClassVar[dict[str, Tensor]] = {
        **COCOMetric._empties,
        "labels": torch.empty(0, dtype=torch.int64),
    }

    def __init__(
        self, annotations: AnnotationSource, categories: Categories, engine: Engine = "faster", **options: Any
    ) -> None:
        super().__init__(annotations, engine, **options)
        self.categories = categories
        self.by_category: dict[str, dict[str, float]] = {}

    def update(self, image_ids: list[int], detections: list[Detections]) -> None:
        """As the base class's; detections of classes that no category has are left out."""
        super().update(image_ids, [one.among(self.categories) for one in detections])

    def _score(self) -> BoxScores:
        truth, results = self._seen()
        if unknown := set(self.categories.listed().ids) - truth.categories.keys():
            raise InputError(
                f"{truth.source}: it lacks category ids {sorted(unknown)[:3]} of the detector "
                f"({len(unknown)} in all); give the annotation file of the detector's classes"
            )
        return box_scores(truth, results, engine=self.engine)

    def _scored(self, scores: BoxScores) -> dict[str, float]:
        self.by_category = scores.categories
        return scores.overall

    def _category_ids(self) -> np.ndarray:
        labels = self._joined("labels")
        ids = np.array(self.categories.ids, dtype=np.int64)
        if labels.size and not (labels.min() >= 1 and labels.max() <= len(ids)):
            raise RuntimeError(f"labels {labels.min()}…{labels.max()} found; they must be in 1…{len(ids)}")
        return ids[labels - 1]


class ProposalRecall(COCOMetric):
    """Average recall of class-agnostic proposals at 100 and 1000 per image, over the images seen.

    The arguments are those of `BoxAP`, less the categories: in `results()` every proposal is of category 1,
    for readers of COCO files that want one. Source: paper, Sec. 5.1 and Table 1.
    """

    def curves(self) -> dict[str, Any]:
        """`recall_curves` of the images seen, of all processes on process 0 after `compute`.

        Scored anew at every call, in about the time of `compute`, whose errors it raises.
        """
        truth, results = self._seen() if self._gathered is None else self._gathered
        return recall_curves(truth, results, engine=self.engine)

    def _score(self) -> dict[str, float]:
        return proposal_scores(*self._seen(), engine=self.engine)

    def _scored(self, scores: dict[str, float]) -> dict[str, float]:
        return scores

    def _category_ids(self) -> np.ndarray:
        return np.ones(len(self._joined("scores")), dtype=np.int64)
