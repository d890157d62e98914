"""The numbers of `scoring` as torchmetrics, for a training or test loop.

Symbols: M detections of all images seen, K classes.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from rich.console import RenderableType
from torch import Tensor

from fpn.errors import InputError
from fpn.evaluation.curves import recall_curves
from fpn.evaluation.distributed import COCOMetric
from fpn.evaluation.panels import Panel, category_panel, precision_panels
from fpn.evaluation.scoring import BOX_NAMES, PROPOSAL_NAMES, BoxScores, box_scores, proposal_scores
from fpn.evaluation.tables import box_table, category_table, proposal_table
from fpn.types import Detections, Inference

_UNLISTED = -(2**62)
_PREFIX = "proposal_"
"""Of the numbers of proposals, among which those of detections stand."""


class BoxAP(COCOMetric):
    """COCO's twelve numbers of detections, over the images seen (paper, Tables 2–4)."""

    of_detections = True
    names = BOX_NAMES
    best = "AP"

    labels: list[Tensor] | Tensor
    """(M,) in 1…K."""

    _empties: ClassVar[dict[str, Tensor]] = {
        **COCOMetric._empties,
        "labels": torch.empty(0, dtype=torch.int64),
    }

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.by_category: dict[str, dict[str, float]] = {}
        """The AP numbers of each category by its name, after `compute`."""
        self.precision: np.ndarray | None = None
        """`BoxScores.precision`, after `compute`."""

    def line(self, scores: Mapping[str, float]) -> str:
        """The AP numbers, in percent."""
        return _percentages(scores, "AP", "AP50", "AP_small", "AP_medium", "AP_large")

    def tables(self, scores: Mapping[str, float]) -> Sequence[RenderableType]:
        """By category, and all twelve."""
        return [category_table(self.by_category), box_table(scores)]

    def panels(self) -> Sequence[Panel]:
        """AP by category, and precision over recall."""
        if self.precision is None:
            return []
        return [category_panel(self.by_category), *precision_panels(self.precision, list(self.by_category))]

    def files(self) -> dict[str, Any]:
        """COCO results, and in scores.json the scores by category."""
        return {"detections.json": self.results(), "scores.json": {"by_category": self.by_category}}

    def _scored_boxes(self, found: Inference) -> list[Detections]:
        # Detections of classes that no category has are left out.
        return [one.among(self.on.categories) for one in found.detections or ()]

    def _score(self) -> BoxScores:
        truth, results = self.seen()
        ids = self.on.categories.listed().ids
        numbers = zip(ids, truth.category_numbers(ids), strict=True)
        if all(number is None for _, number in numbers):
            raise InputError(
                f"{truth.source}: it has none of the detector's category ids, as {list(ids[:3])}; "
                "give the annotation file of the detector's classes"
            )
        return box_scores(truth, results, engine=self.on.engine)

    def _scored(self, scores: BoxScores) -> dict[str, float]:
        self.by_category, self.precision = scores.categories, scores.precision
        return scores.overall

    def _category_ids(self) -> np.ndarray:
        labels = self._joined("labels")
        numbers = np.array(self._numbers(), dtype=np.int64)
        if labels.size and not (labels.min() >= 1 and labels.max() <= len(numbers)):
            raise RuntimeError(
                f"labels {labels.min()}…{labels.max()} found; they must be in 1…{len(numbers)}"
            )
        return numbers[labels - 1]

    def _categories_as_written(self) -> Mapping[int, int | str]:
        return dict(zip(self._numbers(), self.on.categories.ids, strict=True))

    def _numbers(self) -> list[int]:
        """By label; of what the annotation file does not list, one that is no category's there."""
        ids = self.on.categories.ids
        known = [None for _ in ids] if self._truth is None else self._truth.category_numbers(ids)
        return [_UNLISTED - place if number is None else number for place, number in enumerate(known)]


class ProposalRecall(COCOMetric):
    """Average recall of class-agnostic proposals at 100 and 1000 per image, over the images seen.

    In `results()` every proposal is of category 1, for readers of COCO files that want one. Source: paper,
    Sec. 5.1 and Table 1.
    """

    names = tuple(f"{_PREFIX}{name}" for name in PROPOSAL_NAMES)
    best = "proposal_AR@1000"

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.last_stage = False
        """Whether the proposals are all that was found."""

    def line(self, scores: Mapping[str, float]) -> str:
        """The average recalls, in percent."""
        return _percentages(scores, "proposal_AR@100", "proposal_AR@1000")

    def tables(self, scores: Mapping[str, float]) -> Sequence[RenderableType]:
        """By number of proposals and the objects' size."""
        return [proposal_table({name.removeprefix(_PREFIX): value for name, value in scores.items()})]

    def files(self) -> dict[str, Any]:
        """The curves, and proposals as COCO results where nothing else was found."""
        results = {"proposals.json": self.results()} if self.last_stage else {}
        return results | {"curves.json": self.curves()}

    def curves(self) -> dict[str, Any]:
        """`recall_curves` of the images seen, of all processes on process 0 after `compute`.

        Matched anew at every call; raises the errors of `compute`.
        """
        return recall_curves(*self.seen())

    def _scored_boxes(self, found: Inference) -> list[Detections]:
        self.last_stage = found.detections is None
        return found.proposals

    def _score(self) -> dict[str, float]:
        return proposal_scores(*self.seen(), engine=self.on.engine)

    def _scored(self, scores: dict[str, float]) -> dict[str, float]:
        return {f"{_PREFIX}{name}": value for name, value in scores.items()}

    def _category_ids(self) -> np.ndarray:
        return np.ones(len(self._joined("scores")), dtype=np.int64)


def _percentages(scores: Mapping[str, float], *names: str) -> str:
    return "  ".join(f"{name} {100 * scores[name]:.1f}" for name in names)
