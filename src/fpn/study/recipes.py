"""What a row takes to be made: which runs, in which order, and what each reads of another's.

A row's file says what the detector is, the files of a family (`paper`, `modern`) how it is trained:

    configs/base.yaml, [configs/scale/….yaml,] configs/TABLE/ROW.yaml, configs/FAMILY/….yaml
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import yaml

from fpn.study.given import Settings, altered, part_of, settings_of
from fpn.study.tasks import Step, Task
from fpn.types import precision_named

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


class Recipe(Protocol):
    """A way to make a row."""

    def tasks(self, making: "Making") -> list[Task]:
        """The tasks that make it, those first that others need, its own last."""


class Row(NamedTuple):
    """A row of a table."""

    name: str
    file: str
    """Below configs/."""
    recipe: Recipe
    modern: Recipe | None = None
    """The modern family's, where it is another."""


class Study(NamedTuple):
    """What all runs of a plan have in common."""

    tables: Mapping[str, Mapping[str, Row]]
    scale: tuple[Path, ...]
    """The configuration files between base and row."""
    family: str
    data: str
    out: Path
    wandb: bool
    given: tuple[str, ...]
    settings: Settings
    """What `given` sets."""

    def row(self, name: str) -> Row:
        """By its name, as table1/c."""
        table, _, key = name.partition("/")
        return self.tables[table][key]

    def tasks(self, name: str, seed: int, proposes: bool = False) -> list[Task]:
        """The tasks of a row, its own last; `proposes` has its RPN write the proposals that others read."""
        row = self.row(name)
        recipe = row.modern if self.family == "modern" and row.modern else row.recipe
        return recipe.tasks(Making(self, name, row, seed, proposes))


@dataclass(frozen=True)
class RPN:
    """An RPN, trained alone."""

    def tasks(self, making: "Making") -> list[Task]:
        """One training."""
        return [making.fit("rpn", proposes=making.proposes)]


@dataclass(frozen=True)
class FastRCNN:
    """A Fast R-CNN on the proposals of another row's RPN."""

    proposals: str
    """That row, as table1/c."""

    def tasks(self, making: "Making") -> list[Task]:
        """That row's, and one training."""
        others = making.study.tasks(self.proposals, making.seed, proposes=True)
        return [*others, making.fit("fast_rcnn", proposals=others[-1])]


@dataclass(frozen=True)
class Jointly:
    """RPN and Fast R-CNN at once."""

    more: tuple[str, ...] = ()
    """Further files of the family."""

    def tasks(self, making: "Making") -> list[Task]:
        """One training."""
        return [making.fit("faster_rcnn", *self.more)]


@dataclass(frozen=True)
class TwoSteps:
    """An RPN, and then a Fast R-CNN on its proposals, with features of its own."""

    def tasks(self, making: "Making") -> list[Task]:
        """Two trainings."""
        one = making.fit("rpn", stage="/1_rpn", proposes=True)
        return [one, making.fit("fast_rcnn", proposals=one)]


@dataclass(frozen=True)
class FourSteps:
    """Two steps, and then once more with the features of the second, which both share (Sec. 5.2.2)."""

    begin: str
    """The row whose two steps they begin with."""

    def tasks(self, making: "Making") -> list[Task]:
        """That row's, two more trainings, and a test of the two halves joined."""
        *others, two = making.study.tasks(self.begin, making.seed)
        three = making.fit("rpn", "frozen_features", stage="/3_rpn", start=two, proposes=True)
        four = making.fit("fast_rcnn", "frozen_features", stage="/4_fast_rcnn", start=two, proposals=three)
        joined = f"{making.folder}/joined.ckpt"
        join = Step("join", ("join", making.last(three), making.last(four), joined))
        return [*others, two, three, four, making.task(join, making.test(joined), needs=(four.name,))]


@dataclass(frozen=True)
class DetectorOf:
    """Another row's detector, tested."""

    row: str
    by_own_file: bool = False
    """Whether the row's file says how it is tested; else it is the same detector at the same test."""

    def tasks(self, making: "Making") -> list[Task]:
        """That row's, and a test."""
        others = making.study.tasks(self.row, making.seed)
        files = (CONFIGS / making.row.file,) if self.by_own_file else ()
        test = making.test(making.last(others[-1]), *files)
        return [*others, making.task(test, needs=(others[-1].name,))]


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

    @property
    def folder(self) -> Path:
        """Of its last task."""
        return self.study.out / self.name

    def last(self, task: Task) -> str:
        """The checkpoint that a task leaves."""
        return f"{self.study.out / task.name}/last.ckpt"

    def task(self, *steps: Step, needs: tuple[str, ...]) -> Task:
        """Its last task, where that is no training."""
        return Task(self.name, steps, needs, self._about())

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
        study, name = self.study, f"{self.name}{stage}"
        about = None if stage else self._about()
        folder = study.out / name
        words = ["fit", *self._configs(protocols)]
        words += ["--seed_everything", str(self.seed), "--data.seed", str(self.seed)]
        words += ["--trainer.default_root_dir", str(folder), *self._loggers(name)]
        if start is not None:
            words += ["--model.start_from", self.last(start)]
        if proposals is not None:
            for split in ("train", "val"):
                file = f"{study.out / proposals.name}/{split}/proposals.safetensors"
                words += [f"--data.{split}_proposals", file]
        steps = [
            Step("fit", (*words, *study.given), resumable=True, collect=("last.ckpt",)),
            self._test(name, f"{folder}/last.ckpt"),
        ]
        if proposes:
            for split, selection in (("train", "training"), ("val", "testing")):
                words = ["predict", "--ckpt_path", f"{folder}/last.ckpt", *self._machine()]
                words += ["--split", split, "--selection", selection, "--out", f"{folder}/{split}"]
                steps.append(Step(f"propose_{split}", tuple(words)))
        needs = tuple(dict.fromkeys(task.name for task in (proposals, start) if task is not None))
        return Task(name, tuple(steps), needs, about)

    def test(self, checkpoint: str, *configs: Path) -> Step:
        """A test, in the folder of its last task."""
        return self._test(self.name, checkpoint, *configs)

    def _test(self, name: str, checkpoint: str, *configs: Path) -> Step:
        words = ["test", *_config_words(configs), "--ckpt_path", checkpoint]
        words += ["--trainer.default_root_dir", str(self.study.out / name)]
        words += ["--trainer.logger", json.dumps(self._csv(name))]
        return Step("test", (*words, *self.study.given), collect=("scores.json", "curves.json"))

    def _machine(self) -> list[str]:
        """What was given of how a machine is used, as `fpn predict` takes it."""
        files = [word for file in self.study.scale for word in ("--config", str(file))]
        given = settings_of(files) | dict(self.study.settings)
        cpu = ["--device", "cpu"] if given.get("trainer.accelerator") == "cpu" else []
        precision = given.get("trainer.precision")
        return cpu + (["--precision", precision_named(precision)] if precision is not None else [])

    def _configs(self, protocols: Iterable[str]) -> list[str]:
        """The configuration files of a training, from the general to the particular."""
        files = [CONFIGS / "base.yaml", *self.study.scale, CONFIGS / self.row.file]
        return _config_words([*files, *(CONFIGS / self.study.family / f"{name}.yaml" for name in protocols)])

    def _csv(self, name: str) -> dict[str, Any]:
        return {
            "class_path": "fpn.lit.metrics_file.MetricsFile",
            "init_args": {"save_dir": str(self.study.out), "name": name},
        }

    def _loggers(self, name: str) -> list[str]:
        loggers = [self._csv(name)]
        if self.study.wandb:
            table, row, *_ = name.split("/")
            tags = [table, f"{table} {row}", self.study.family, Path(self.study.data).stem]
            arguments = {
                "name": name.replace("/", " "),
                "group": f"{table}/{row}",
                "tags": tags + [name if on else f"no {name}" for name, on in self._toggles().items()],
                "save_dir": str(self.study.out),
            }
            loggers.append({"class_path": "fpn.lit.wandb.Dashboard", "init_args": arguments})
        return ["--trainer.logger", json.dumps(loggers)]

    def _toggles(self) -> dict[str, bool]:
        """Whether each is on, of those that the row has."""
        detector = self._detector()
        neck, rpn, roi_head = (
            detector.get(part, {}) | part_of(self.study.settings, f"model.detector.{part}")
            for part in ("neck", "rpn", "roi_head")
        )
        another = "class_path" in neck or "model.detector.neck" in self.study.settings
        toggles = {} if another else {name: neck.get(name, name != "nonlinearity") for name in _TOGGLES}
        return toggles | {"shared": rpn.get("shared", True) and roi_head.get("shared", True)}

    def _about(self) -> dict[str, Any]:
        """What a report has to know."""
        study = self.study
        table, key = self.row_name.split("/")
        about: dict[str, Any] = {
            "table": table,
            "row": key,
            "name": self.row.name,
            "seed": self.seed,
            "family": study.family,
            "data": ", ".join([study.data, *(f"with {one}" for one in altered(study.settings))]),
        }
        rpn = part_of(study.settings, "model.detector.rpn")
        others = study.scale or any(key.startswith(("sizes", "ratios")) for key in rpn)
        if isinstance(self.row.recipe, RPN) and not others:
            sizes = self._detector().get("rpn", {}).get("sizes", {k: [0] for k in range(2, 7)})
            about["anchors"] = _anchors(sizes)
        return about

    def _detector(self) -> dict[str, Any]:
        """What the row's file says of it."""
        detector: dict[str, Any] = yaml.safe_load((CONFIGS / self.row.file).read_text())["model"]["detector"]
        return detector


_TOGGLES = ("lateral", "top_down", "smooth", "nonlinearity")


def _anchors(sizes: Mapping[int, list[float]]) -> int:
    """Anchors of three ratios on the paper's input of 800 × 1000 pixels."""
    return sum(3 * len(areas) * ceil(800 / 2**k) * ceil(1000 / 2**k) for k, areas in sizes.items())


def _config_words(files: Iterable[Path]) -> list[str]:
    return [word for file in files for word in ("--config", _shown(file))]


def _shown(file: Path) -> str:
    """Relative where it lies below the working directory, so that commands read as in the README."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
