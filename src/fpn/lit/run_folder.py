"""A run's folder, in which no other run has written."""

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_info

from fpn.errors import InputError
from fpn.files import newest
from fpn.lit.boards import Board, boards_of
from fpn.lit.metrics_file import MetricsFile
from fpn.lit.together import StepError

_FOUND = "FPN_CKPT_PATH"
"""In the environment, for the processes that Lightning starts of the same command."""
_OF_A_FIT = ("checkpoints/best.ckpt", "checkpoints/last.ckpt")
_OF_A_TEST = ("scores.json", "curves.json", "detections.json", "proposals.json", "report.html", "curves.png")


def led_by_a_file(loggers: Sequence[Logger]) -> list[Logger]:
    """The loggers, led by one that gives the run a folder of its own: Lightning asks the first for it.

    Where none of them does, as no dashboard does, that is one of a metrics.csv.
    """
    own = [logger for logger in loggers if not isinstance(logger, Board)]
    files = [logger for logger in own if isinstance(logger, CSVLogger | TensorBoardLogger)]
    others = [logger for logger in loggers if logger not in files]
    files = files or [MetricsFile(others[0].save_dir or "runs")]
    for board in boards_of(others):
        board.leader = files[0]
    return [*files, *others]


def newest_of_runs(name: str, root: str | None, must_be: bool) -> Path | None:
    """The newest last.ckpt or best.ckpt of the runs below a folder, of which a line tells.

    Those of a study are none of them. What the first process finds, those that it starts take too.

    Args:
        name: "last" or "best".
        root: the folder; None is runs/.
        must_be: there has to be one.

    Returns:
        Its path; None where there is none.

    Raises:
        InputError: there is none, and has to be.
    """
    folder = Path(root or "runs")
    if "LOCAL_RANK" in os.environ and _FOUND in os.environ:
        return Path(os.environ[_FOUND]) if os.environ[_FOUND] else None
    found = folder.glob(f"**/checkpoints/{name}.ckpt")
    path = newest(path for path in found if not _of_a_study(path, folder))
    if path is None and must_be:
        raise InputError(f"there is no {name}.ckpt below {folder}: give --ckpt_path its file")
    rank_zero_info(
        f"no {name}.ckpt below {folder}: a new run begins" if path is None else f"{name}: {path}, the newest"
    )
    os.environ[_FOUND] = str(path or "")
    return path


def _of_a_study(path: Path, below: Path) -> bool:
    parents = itertools.takewhile(lambda parent: parent != below, path.parents)
    return any((parent / "run.json").exists() for parent in parents)


def beside_its_run(checkpoint: str | Path, what: str) -> dict[str, str]:
    """Where a `MetricsFile` writes to RUN/test, or RUN/test_2 and so on, of RUN/checkpoints/*.ckpt.

    Args:
        checkpoint: which is scored.
        what: is done with it, "test" or "validate".

    Returns:
        Its arguments; none for a checkpoint that lies elsewhere, or where nothing can be written beside it.
    """
    folder = Path(checkpoint).parent
    run = folder.parent
    if folder.name != "checkpoints" or not os.access(run, os.W_OK):
        return {}
    names = itertools.chain([what], (f"{what}_{number}" for number in itertools.count(2)))
    version = next(name for name in names if not (run / name).exists())
    return {"save_dir": str(run.parent), "name": run.name, "version": version}


class OwnFolder(SaveConfigCallback):
    """Keeps config.yaml in a run's folder, tells dashboards, and refuses a folder of another run's.

    Without loggers, what is written goes to trainer.default_root_dir, where anything may lie: there only what
    the run itself would write over is refused, and no configuration is kept.
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Look before anything is written; then write.

        Raises:
            StepError: another run has written there, as all processes are told.
        """
        if self.already_saved:
            return
        folder = Path(trainer.log_dir or trainer.default_root_dir)  # which all processes have to ask together
        names: tuple[str, ...] = ("config.yaml",)
        remedy = "leave out the logger's version, or choose another"
        if not trainer.loggers:
            of_a_fit = _OF_A_FIT if trainer.checkpoint_callbacks else ()
            names = {"fit": of_a_fit, "test": _OF_A_TEST}.get(stage, ())
            remedy = "give another --trainer.default_root_dir, or leave out --trainer.logger false"
        # Only the first process writes, and the others may find what it has just written.
        taken = [name for name in names if trainer.is_global_zero and (folder / name).exists()]
        for name in trainer.strategy.broadcast(taken):
            raise StepError(f"{folder} has the {name} of another run: {remedy}")
        if trainer.loggers:
            super().setup(trainer, pl_module, stage)

    def save_config(self, trainer: Trainer, pl_module: Any, stage: str) -> None:
        """Tell the dashboards too; Lightning asks the first process to."""
        config = yaml.safe_load(self.parser.dump(self.config, skip_none=False))
        for board in boards_of(trainer.loggers):
            board.show_config(config, pl_module.detector.toggles, training=stage == "fit")
