"""What a dashboard takes besides Lightning's numbers, whichever it is."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from lightning.pytorch.loggers import Logger
from torch import Tensor

from fpn.evaluation.panels import CurvesPanel, TablePanel
from fpn.types import Categories, Detections


class Picture(NamedTuple):
    """An image with what was found in it, boxes in its pixels."""

    name: str
    image: Tensor
    """(3, H, W) uint8."""
    found: Detections
    found_categories: Categories
    truth: Detections
    """With NaN scores."""
    categories: Categories


class Board:
    """A logger that shows more than numbers: derive from this and from a logger of Lightning's.

    Each method is called on process 0. One that is not written over shows nothing. `step` is the
    optimiser's, None for a test: a checkpoint's scores have no place in the course of a training.
    """

    leader: Logger | None = None
    """The logger that gives the run its folder, where another one does."""

    def show_config(self, config: Mapping[str, Any], toggles: Mapping[str, bool], training: bool) -> None:
        """What the run is.

        Args:
            config: as config.yaml has it.
            toggles: what the network has been built with or without, `Detector.toggles`.
            training: whether it is a training.
        """

    def show_pictures(self, name: str, pictures: Sequence[Picture], step: int | None) -> None:
        """The same images again after every validation."""

    def show_table(self, name: str, table: TablePanel, step: int | None) -> None:
        """A table."""

    def show_curves(self, name: str, curves: CurvesPanel, step: int | None) -> None:
        """Curves."""

    def show_best(self, scores: Mapping[str, float]) -> None:
        """The scores of the best validation so far, where the last was worse."""


def boards_of(loggers: Sequence[Logger]) -> list[Board]:
    """The dashboards among some loggers."""
    return [logger for logger in loggers if isinstance(logger, Board)]
