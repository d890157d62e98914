"""What a metric is: it sees the batches of a validation or test with what was found, and gives numbers."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torchmetrics
from rich.console import RenderableType
from rich.text import Text

from fpn.data.coco_file import Crowds
from fpn.described import Described
from fpn.evaluation.engines import Engine
from fpn.evaluation.inputs import AnnotationSource
from fpn.evaluation.panels import Panel
from fpn.types import Batch, Categories, Inference


class Truth(NamedTuple):
    """What a detector is scored against."""

    annotations: AnnotationSource
    """A COCO annotation file, or what such a file holds."""
    categories: Categories
    """What the detector's labels mean."""
    engine: Engine = "faster"
    """What computes COCO's scores."""
    crowds: Crowds = "regions"
    """What `iscrowd` 1 says of an annotation."""


class Metric(Described, torchmetrics.Metric):
    """Numbers that say how good a validation or test was.

    A subclass names its states by `add_state` in `__init__`, adds a batch to them in `update` and makes
    numbers of them in `compute`. torchmetrics does the rest: the states are empty before every validation,
    and `dist_reduce_fx` of a state ("sum", "cat", …) says how those of several processes become one.
    """

    is_differentiable = False
    full_state_update = False

    of_detections: ClassVar[bool] = False
    """Whether it scores detections; it is left out for a detector that ends in proposals."""
    names: ClassVar[tuple[str, ...]] = ()
    """Of its numbers, by which callbacks may watch them."""
    best: ClassVar[str | None] = None
    """Which of its numbers says which checkpoint is the best: the greatest. None: none of them."""

    def score_on(self, truth: Truth) -> None:
        """Told before the first batch what is scored against; a metric need not care."""

    @abstractmethod
    def update(self, batch: Batch, found: Inference) -> None:
        """Add a batch.

        Args:
            batch: the images; of a featurized image pyramid, those of the first size. Its targets are in
                pixels of the network's input.
            found: in these images, in pixels of the original images.
        """

    @abstractmethod
    def compute(self) -> dict[str, float]:
        """The numbers by name, of all images that all processes have seen."""

    def undefined(self) -> set[str]:
        """Those of its numbers that are NaN whatever is found, of what it was told to score on."""
        return set()

    def line(self, scores: Mapping[str, float]) -> str:
        """What is told of its numbers after a validation."""
        return "  ".join(f"{name} {value:.4g}" for name, value in scores.items())

    def tables(self, scores: Mapping[str, float]) -> Sequence[RenderableType]:
        """What is printed of its numbers after a test."""
        return [Text("\n".join(f"{name} {value:.4g}" for name, value in scores.items()))]

    def panels(self) -> Sequence[Panel]:
        """What a dashboard shows besides the numbers. Asked for after `compute`, on process 0."""
        return []

    def files(self) -> dict[str, Any]:
        """What a test keeps besides the numbers: content for JSON by the file's name.

        An iterator is written as a list, entry by entry. What stands under "scores.json" is added to the
        numbers there. Asked for after `compute`, on process 0.
        """
        return {}
