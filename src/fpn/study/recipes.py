"""What a row takes to be made: which runs, in which order, and what each reads of another's.

A row's file says what the detector is, the files of a family (`paper`, `modern`) how it is trained:

    configs/base.yaml, [configs/scale/….yaml,] configs/TABLE/ROW.yaml, configs/FAMILY/….yaml

A row that puts another class in a part's place comes before the scale, which says how wide the part is; one
that changes what the family's files say comes last, as does a user's own, which may come in both places.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple

from fpn.errors import InputError
from fpn.shipped import config_file
from fpn.study.settings import result_settings, settings_of, told
from fpn.study.tasks import Step, Task
from fpn.types import precision_named


class Row(NamedTuple):
    """A row of a table."""

    name: str
    file: str
    """Below configs/, or a file of the user's."""
    recipe: "Recipe"
    modern: "Recipe | None" = None
    """The modern family's, where it is another."""
    shipped: bool = True
    """Whether the file is one of this project."""
    early: bool = False
    """Whether it comes before the files of the data, since it gives a part another class."""
    late: str | None = None
    """A file behind the family's, which say otherwise."""


class Study(NamedTuple):
    """What all runs of a plan have in common."""

    rows: Mapping[str, Row]
    """By their names, as table1/c."""
    scale: tuple[Path, ...]
    """The configuration files between base and row."""
    family: str
    data: str
    out: Path
    wandb: bool
    given: tuple[str, ...]
    devices: int = 1
    """GPUs of each run."""

    def tasks(self, name: str, seed: int, proposes: bool = False) -> list[Task]:
        """The tasks of a row, its own last; `proposes` has its RPN write the proposals that others read.

        Raises:
            InputError: the family would undo what the row is.
        """
        row = self.rows[name]
        if self.family == "modern" and "data.images.train_scales" in settings_of(["--config", row.file]):
            raise InputError(
                f"{name} says at which scales it trains, as the modern family does: leave out --family"
            )
        recipe = row.modern if self.family == "modern" and row.modern else row.recipe
        return recipe.tasks(Making(self, name, row, seed, proposes))


@dataclass(frozen=True)
class OneStep:
    """One training."""

    protocols: tuple[str, ...]
    """How, names of the family's files."""
    proposals: str | None = None
    """The row whose RPN's proposals it is trained on, as table1/c."""

    def tasks(self, making: "Making") -> list[Task]:
        others = making.study.tasks(self.proposals, making.seed, proposes=True) if self.proposals else []
        proposals = others[-1] if others else None
        return [*others, making.fit(*self.protocols, proposals=proposals, proposes=making.proposes)]


RPN = OneStep(("rpn",))
"""An RPN, trained alone."""
JOINTLY = OneStep(("faster_rcnn",))
"""RPN and Fast R-CNN at once."""


@dataclass(frozen=True)
class TwoSteps:
    """An RPN, and then a Fast R-CNN on its proposals, with features of its own."""

    def tasks(self, making: "Making") -> list[Task]:
        """The two.

        Raises:
            InputError: the row names the class of one detector for both.
        """
        row = making.row
        named = {} if row.shipped else settings_of(["--config", row.file])  # a user's has the last word
        if {"model.detector", "model.detector.class_path"} & named.keys():
            raise InputError(
                f"{row.file} names one class of detector, and {making.row_name} trains an RPN and a Fast "
                "R-CNN in steps: make it a row of necks or recipes, or give --family modern"
            )
        one = making.fit("rpn", stage="/1_rpn", proposes=True)
        return [one, making.fit("fast_rcnn", proposals=one)]


@dataclass(frozen=True)
class FourSteps:
    """Two steps, and then once more with the features of the second, which both share (Sec. 5.2.2)."""

    begin: str
    """The row whose two steps they begin with."""

    def tasks(self, making: "Making") -> list[Task]:
        *others, two = making.study.tasks(self.begin, making.seed)
        three = making.fit("rpn", "frozen_features", stage="/3_rpn", start=two, proposes=True)
        four = making.fit("fast_rcnn", "frozen_features", stage="/4_fast_rcnn", start=two, proposals=three)
        joined = str(making.study.out / making.name / "joined.ckpt")
        join = Step("join", ("join", last_of(three), last_of(four), joined))
        return [*others, two, three, four, making.task([join, making.test(joined)], four)]


@dataclass(frozen=True)
class DetectorOf:
    """Another row's detector, tested."""

    row: str
    by_own_file: bool = False
    """Whether the row's file says how it is tested; else it is the same detector at the same test."""

    def tasks(self, making: "Making") -> list[Task]:
        others = making.study.tasks(self.row, making.seed)
        files = [config_file(making.row.file)] if self.by_own_file else []
        test = making.test(last_of(others[-1]), files=files, go_on=False)
        return [*others, making.task([test], others[-1])]


Recipe = OneStep | TwoSteps | FourSteps | DetectorOf
"""A way to make a row: its tasks are those first that others need, its own last."""


class Making(NamedTuple):
    """A row that is made from a seed."""

    study: Study
    row_name: str
    row: Row
    seed: int
    proposes: bool
    """Whether its RPN is to write proposals."""

    @property
    def name(self) -> str:
        """Of its last task."""
        return f"{self.row_name}/seed_{self.seed}"

    def task(self, steps: Sequence[Step], *needs: Task | None, stage: str = "") -> Task:
        """A task of the row, its last one if it is no stage; what is None is not needed."""
        needed = tuple(task for task in needs if task is not None)
        about = None if stage else self._about()
        return Task(self.name + stage, self.study.out, tuple(steps), needed, about)

    def fit(
        self,
        *protocols: str,
        stage: str = "",
        proposals: Task | None = None,
        start: Task | None = None,
        proposes: bool = False,
    ) -> Task:
        """Fit and test, and where another task needs them, write the proposals of both splits.

        Args:
            protocols: how, names of the family's files.
            stage: what its last task's name is followed by; nothing for the last one itself.
            proposals: the task whose proposals are read.
            start: the task from whose checkpoint the weights start.
            proposes: whether proposals are to be written.
        """
        study, folder = self.study, self.study.out / f"{self.name}{stage}"
        row = [config_file(self.row.file)]
        files = [config_file(f"{study.family}/{name}") for name in protocols]
        if self.row.late:
            files.append(config_file(self.row.late))
        if not self.row.shipped:  # the last word on it is the user's
            files += row
        elif not self.row.early:
            files = row + files
        files = [config_file("base"), *(row if self.row.early else []), *study.scale, *files]
        words = ["fit", *_config_words(files)]
        words += ["--seed_everything", str(self.seed), "--data.seed", str(self.seed)]
        words += ["--trainer.logger", json.dumps(self._loggers(stage))]
        if start is not None:
            words += ["--model.start_from", last_of(start)]
        if proposals is not None:
            for split in ("train", "val"):
                file = proposals.folder / split / "proposals.safetensors"
                words += [f"--data.{split}.proposals", str(file)]
        last = str(folder / "last.ckpt")
        steps = [
            Step("fit", (*words, *study.given), resumable=True, results=("last.ckpt",)),
            self.test(last, stage),
        ]
        if proposes:
            for split, selection in (("train", "training"), ("val", "testing")):
                words = ["predict", "--ckpt_path", last, *self._machine()]
                words += ["--split", split, "--selection", selection, "--out", str(folder / split)]
                written = f"{split}/proposals.safetensors"
                steps.append(Step(f"propose_{split}", tuple(words), writes=(written,)))
        return self.task(steps, proposals, start if start is not proposals else None, stage=stage)

    def test(self, checkpoint: str, stage: str = "", files: Sequence[Path] = (), go_on: bool = True) -> Step:
        """A test, in the folder of a task.

        Args:
            checkpoint: what is tested.
            stage: what the task's name is followed by.
            files: how it is tested.
            go_on: whether its scores belong to the W&B run of the checkpoint's training.
        """
        words = ["test", *_config_words(files), "--ckpt_path", checkpoint]
        loggers = self._loggers(stage, **({} if go_on else {"go_on": False}))
        words += ["--trainer.logger", json.dumps(loggers if self.study.wandb else loggers[0])]
        return Step("test", (*words, *self.study.given), results=("scores.json", "curves.json"))

    def _machine(self) -> list[str]:
        """What was given of how a machine is used and where the data lie, as `fpn predict` takes it."""
        settings = settings_of([*_config_words(self.study.scale), *self.study.given])
        cpu = ["--device", "cpu"] if settings.get("trainer.accelerator") == "cpu" else []
        precision = settings.get("trainer.precision")
        words = cpu or (["--devices", str(self.study.devices)] if self.study.devices > 1 else [])
        words += ["--precision", precision_named(precision)] if precision is not None else []
        places = [settings[name] for name in ("data.root", "data.folder") if name in settings]
        return words + [word for place in places for word in ("--root", str(place))]

    def _loggers(self, stage: str, **more: Any) -> list[dict[str, Any]]:
        """A file in the task's folder, and the dashboard if there is to be one."""
        out, name = str(self.study.out), f"{self.name}{stage}"
        file = {"save_dir": out, "name": name}
        loggers = [{"class_path": "fpn.lit.metrics_file.MetricsFile", "init_args": file}]
        if self.study.wandb:
            table, row, *_ = name.split("/")
            tags = [table, f"{table} {row}", self.study.family, Path(self.study.data).stem]
            run = {"name": name.replace("/", " "), "group": f"{table}/{row}", "tags": tags, "save_dir": out}
            about = {"study": self._about() | ({"stage": stage[1:]} if stage else {})}
            arguments = run | {"about": about} | more
            loggers.append({"class_path": "fpn.lit.wandb.Dashboard", "init_args": arguments})
        return loggers

    def _about(self) -> dict[str, Any]:
        """What a report has to know; no report may pass over what makes another row than the paper's."""
        study, (table, key) = self.study, self.row_name.split("/")
        altered = result_settings(settings_of(study.given))
        data = ", ".join([study.data, *(f"with --{name} {told(value)}" for name, value in altered.items())])
        about = {"table": table, "row": key, "name": self.row.name, "seed": self.seed}
        about |= {"family": study.family, "data": data}
        others = study.scale or any(".rpn.sizes" in name or ".rpn.ratios" in name for name in altered)
        if self.row.recipe == RPN and self.row.shipped and not others:
            settings = settings_of(["--config", str(config_file(self.row.file)), *study.given])
            start = "model.detector.rpn.sizes."
            given = {name: areas for name, areas in settings.items() if name.startswith(start)}
            sizes = given or {str(level): [0] for level in range(2, 7)}
            # Of three ratios, on the paper's input of 800 × 1000 pixels.
            strides = [(2 ** int(name.rpartition(".")[2]), len(areas)) for name, areas in sizes.items()]
            about["anchors"] = sum(3 * areas * ceil(800 / s) * ceil(1000 / s) for s, areas in strides)
        return about


def last_of(task: Task) -> str:
    """The checkpoint that a task leaves."""
    return str(task.folder / "last.ckpt")


def _config_words(files: Sequence[Path]) -> list[str]:
    """Relative where a file lies below the working directory, so that commands read as in the README."""
    here = Path.cwd()
    shown = (file.relative_to(here) if file.is_relative_to(here) else file for file in files)
    return [word for file in shown for word in ("--config", str(file))]
