"""Weights & Biases: a logger that never asks or fails for want of an account.

The only file that imports wandb.
"""

import os
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from inspect import signature
from pathlib import Path
from typing import Any

import torch.nn.functional as F
import wandb
import yaml
from lightning.pytorch.loggers import WandbLogger

from fpn import lightning_private
from fpn.console import say
from fpn.evaluation.panels import CurvesPanel, TablePanel
from fpn.lit.boards import Board, Picture
from fpn.types import Categories, Detections

_STEP = "trainer/global_step"
"""What Lightning calls the axis of all curves."""
_PACKAGES = ("fpn", "torch", "torchvision", "lightning")
Rows = Sequence[Sequence[str | float | None]]

_POINTS = 10_000
"""So many rows of a table W&B draws."""


class Dashboard(Board, WandbLogger):
    """A W&B run, online where the user is logged in, offline otherwise.

    An offline run lies under `save_dir` and can be uploaded later by `wandb sync`. WANDB_MODE wins. A
    training that goes on from a checkpoint goes on with its W&B run, and a test of it adds its scores there.
    Checkpoints lie in the folder of the run's file logger; where there is no other logger, of a metrics.csv
    under `save_dir`.

    Args:
        project: W&B project; null for that of WANDB_PROJECT, or "fpn".
        name: of the run; null lets W&B invent one.
        group: runs that belong together.
        tags: of the run, besides the network's toggles.
        save_dir: folder of the run's files.
        id: of a W&B run to go on with, as ID or PROJECT/ID; null for a new one, or the checkpoint's.
        go_on: false for a new one even where the checkpoint has one.
        about: what else the run's configuration tells.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        group: str | None = None,
        tags: list[str] | None = None,
        save_dir: str = "runs",
        id: str | None = None,
        go_on: bool = True,
        about: dict[str, Any] | None = None,
    ) -> None:
        self._goes_on, self._about = id is not None, about or {}
        of_id, _, id = (id or "").rpartition("/")
        self._of = project or of_id or _project()
        offline = _offline()
        super().__init__(
            name,
            save_dir,
            offline=offline,
            id=id or None,
            settings=_settings(offline),
            project=self._of,
            group=group,
            tags=tags,
        )
        lightning_private.leave_out_anonymous(self)

    @property
    def path_of_run(self) -> str | None:
        """PROJECT/ID, what a checkpoint keeps; None before there is a run."""
        project = self._of if self._experiment is None else self._experiment.project  # a sweep has its own
        return None if self.version is None else f"{project}/{self.version}"

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """As Lightning's; but a test's scores are a checkpoint's, and no step of its training."""
        if any(name.startswith("test/") for name in metrics):
            self._log({name: value for name, value in metrics.items() if name != "epoch"}, None)
        else:
            super().log_metrics(metrics, step)

    def show_config(self, config: Mapping[str, Any], toggles: Mapping[str, bool], training: bool) -> None:
        """The configuration, toggles and versions; a training's stay as they are when it is tested."""
        run = self.experiment
        if not run.disabled:
            folder = Path(run.dir).parent
            say(f"W&B: {run.url}" if run.url else f"W&B: offline; `wandb sync {folder}` sends it")
        if self._goes_on and not training:
            return
        versions = {name: version(name) for name in _PACKAGES}
        told = _grouped(config) | {"versions": versions} | self._about | dict(toggles)
        self.experiment.config.update(told, allow_val_change=True)
        tags = [name if on else f"no {name}" for name, on in toggles.items()]
        self.experiment.tags = tuple(dict.fromkeys([*(self.experiment.tags or ()), *tags]))

    def show_pictures(self, name: str, pictures: Sequence[Picture], step: int | None) -> None:
        """With both layers of boxes, of which W&B shows either."""
        height, width = (max(picture.image.shape[axis] for picture in pictures) for axis in (1, 2))
        images = []
        for one in pictures:  # W&B takes all images of a name to be of one size
            right, below = width - one.image.shape[2], height - one.image.shape[1]
            pixels = F.pad(one.image, (0, right, 0, below), value=255).permute(1, 2, 0).numpy()
            found, truth = _layer(one.found, one.found_categories), _layer(one.truth, one.categories)
            boxes = {"predictions": found, "truth": truth}
            images.append(wandb.Image(pixels, boxes=boxes, caption=one.name))
        self._log({name: images}, step)

    def show_table(self, name: str, table: TablePanel, step: int | None) -> None:
        """A table, of which W&B keeps each version."""
        self._log({name: _table(table.columns, table.rows)}, step)

    def show_curves(self, name: str, curves: CurvesPanel, step: int | None) -> None:
        """A chart, and its data as a table, NAME_table."""
        every = len(curves.x) * len(curves.lines) // _POINTS + 1
        chart = wandb.plot.line_series(
            xs=list(curves.x[::every]),
            ys=[list(line[::every]) for line in curves.lines.values()],
            keys=list(curves.lines),
            title=curves.title,
            xname=curves.x_name,
        )
        self._log({name: chart}, step)

    def show_best(self, scores: Mapping[str, float]) -> None:
        """In the summary, where the last would stand."""
        self.experiment.summary.update(dict(scores))

    def _log(self, values: dict[str, Any], step: int | None) -> None:
        if step is None:
            # Lightning has W&B fill in the step of the last row, and of a first row 0.
            self.experiment.define_metric("*", step_metric=_STEP, step_sync=False, overwrite=True)
        self.experiment.log(values if step is None else {**values, _STEP: step})


def log_tables(
    tables: Mapping[str, tuple[Sequence[str], Rows]], name: str, group: str, save_dir: str
) -> None:
    """A W&B run that holds nothing but tables.

    Args:
        tables: columns and rows of each, by its name.
        name: of the run.
        group: of the run.
        save_dir: folder of its files.
    """
    options: Any = {"name": name, "group": group, "dir": save_dir, "settings": _settings(_offline())}
    with wandb.init(project=_project(), job_type="report", **options) as run:
        for key, (columns, rows) in tables.items():
            run.log({key: _table(columns, rows)})


def _table(columns: Sequence[str], rows: Rows) -> wandb.Table:
    return wandb.Table(columns=list(columns), data=[list(row) for row in rows])


def _layer(found: Detections, categories: Categories) -> dict[str, Any]:
    names = dict(enumerate(categories.names, start=1))
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    boxes = []
    for box, score, label in rows:
        position = dict(zip(("minX", "minY", "maxX", "maxY"), box, strict=True))
        one = {"position": position, "domain": "pixel", "class_id": label, "box_caption": names[label]}
        if score == score:  # a true box has none
            one |= {"box_caption": f"{names[label]} {score:.2f}", "scores": {"score": score}}
        boxes.append(one)
    return {"class_labels": names, "box_data": boxes}


def _grouped(value: Any) -> Any:
    """A configuration as W&B groups and filters by it: mappings within mappings, lists as text.

    It shows them as model.schedule.steps. Names with dots of one's own cannot be asked for by its API, and
    into lists it does not look.
    """
    if isinstance(value, Mapping):
        inner = {key: one for key, one in value.items() if key != "init_args"} | (
            value.get("init_args") or {}
        )
        return {str(key): _grouped(one) for key, one in inner.items()}
    if isinstance(value, list):
        return yaml.safe_dump(value, default_flow_style=True, width=10**6).strip()
    return value


def _project() -> str:
    return os.environ.get("WANDB_PROJECT") or "fpn"


def _settings(offline: bool) -> wandb.Settings:
    """Where W&B takes the commit from: where the user runs, or else a clone of this project."""
    here, clone = Path.cwd(), Path(__file__).resolve().parents[3]
    root = next((place for place in (here, *here.parents, clone) if (place / ".git").exists()), None)
    # The environment, where Lightning writes it, has been read by then.
    mode: dict[str, Any] = {"mode": "offline"} if offline else {}
    return wandb.Settings(git_root=None if root is None else str(root), **mode)


def _offline() -> bool:
    """Whether W&B knows no account, without asking for one or reaching out."""
    os.environ.setdefault("WANDB_SILENT", "true")
    if wandb.run is not None:
        return bool(wandb.run.offline)
    if mode := os.environ.get("WANDB_MODE"):
        return mode in ("offline", "dryrun")
    if (mode := wandb.setup().settings.mode) != "online":  # as `wandb disabled` has written
        return mode == "offline"
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return False
    try:
        if "prompt" in signature(wandb.login).parameters:
            return not wandb.login(prompt=False, verify=False)
        return not wandb.api.api_key  # of versions before 0.31
    except wandb.Error:  # which the start of the run tells
        return False
