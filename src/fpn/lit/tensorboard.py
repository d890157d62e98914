"""TensorBoard: numbers, and with them pictures, tables and curves, in the run's folder."""

from collections.abc import Mapping, Sequence
from typing import Any

import yaml
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib import rc_context
from matplotlib.figure import Figure

from fpn.evaluation.panels import CurvesPanel, TablePanel
from fpn.lit.boards import Board, Picture
from fpn.pictures import beside, draw


class TensorBoard(Board, TensorBoardLogger):
    """Writes for `tensorboard --logdir RUNS` into the folder of the run's file logger.

    Args:
        save_dir: folder of all runs, where there is no other logger.
    """

    def __init__(self, save_dir: str = "runs") -> None:
        super().__init__(save_dir, name="", version="", default_hp_metric=False)

    @property
    def log_dir(self) -> str:
        """The folder that it writes to."""
        return str(self.leader.log_dir if self.leader is not None else self.save_dir)

    @property
    def root_dir(self) -> str:
        """The same."""
        return self.log_dir

    def save(self) -> None:
        """Write what has been logged; Lightning's own would add a file of settings, which config.yaml has."""
        self.experiment.flush()

    def show_config(self, config: Mapping[str, Any], toggles: Mapping[str, bool], training: bool) -> None:
        """As text."""
        for name, content in (("toggles", dict(toggles)), ("config", config)):
            lines = yaml.safe_dump(content, sort_keys=False).splitlines()
            self.experiment.add_text(name, "\n".join(f"    {line}" for line in lines))

    def show_pictures(self, name: str, pictures: Sequence[Picture], step: int | None) -> None:
        """Truth on the left, what was found on the right."""
        for one in pictures:
            left = draw(one.image, one.truth, one.categories)
            right = draw(one.image, one.found, one.found_categories)
            self.experiment.add_image(f"{name}/{one.name}", beside(left, right), step)

    def show_table(self, name: str, table: TablePanel, step: int | None) -> None:
        """As text."""
        lines = [table.columns, ["---"] * len(table.columns), *table.rows]
        self.experiment.add_text(
            name, "\n".join(f"| {' | '.join(map(_cell, line))} |" for line in lines), step
        )

    def show_curves(self, name: str, curves: CurvesPanel, step: int | None) -> None:
        """As a figure: TensorBoard's own kind is drawn from counts, which COCO's precision does not have."""
        with rc_context({"text.parse_math": False}):  # as in a category's "$5 bill"
            figure = Figure(figsize=(6, 4.5), layout="constrained")
            axes = figure.add_subplot()
            lines = [axes.plot(curves.x, line)[0] for line in curves.lines.values()]
            axes.set(title=curves.title, xlabel=curves.x_name, ylabel=curves.y_name, ylim=(0, 1.02))
            if 0 < len(lines) <= 20:
                axes.legend(lines, list(curves.lines), fontsize="small")
            self.experiment.add_figure(name, figure, step, close=False)


def _cell(value: str | float | None) -> str:
    if value is None:
        return "–"
    return f"{value:.3f}" if isinstance(value, float) else str(value).replace("|", "\\|")
