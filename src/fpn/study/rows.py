"""The rows of the paper's tables: which configuration files make each, and which runs it takes.

A row's file says what the detector is, the files of a family (`paper`, `modern`) how it is trained:

    configs/base.yaml, [configs/scale/….yaml,] configs/TABLE/ROW.yaml, configs/FAMILY/….yaml
"""

import json
from collections.abc import Iterable, Sequence
from math import ceil
from pathlib import Path
from typing import Any, Literal, NamedTuple

import yaml

from fpn.errors import InputError
from fpn.study.given import Settings, altered, part_of, refuse_own, settings_of
from fpn.study.tasks import Step, Task

CONFIGS = Path(__file__).resolve().parents[3] / "configs"

Training = Literal["rpn", "fast_rcnn", "joint", "two steps", "four steps"]
"""How a row is trained: an RPN; a Fast R-CNN on another row's proposals; both at once; the one after the
other, each with features of its own; or alternating, with shared features."""


class Row(NamedTuple):
    """A row of a table."""

    name: str
    file: str
    """Below configs/."""
    training: Training | None
    """None for a row that is another's detector, tested in another way."""
    proposals: str | None = None
    """The row, as table1/c, whose RPN's proposals it is trained and tested on."""
    detector: str | None = None
    """The row whose detector is tested, where nothing is trained or, by the paper's recipe, the same."""
    start: str | None = None
    """The row whose two steps four steps begin with."""
    doubled: bool = False
    """Whether the schedule is twice as long."""


def _table5(depth: int) -> dict[str, Row]:
    net, file = f"resnet{depth}", f"table5/resnet{depth}.yaml"
    return {
        f"{net}_unshared": Row(f"ResNet-{depth}, unshared", file, "two steps"),
        f"{net}_shared": Row(f"ResNet-{depth}, shared", file, "four steps", start=f"table5/{net}_unshared"),
        f"{net}_joint": Row(f"ResNet-{depth}, joint", file, "joint"),
    }


TABLES: dict[str, dict[str, Row]] = {
    "table1": {
        "a": Row("baseline on conv4", "table1/a_conv4.yaml", "rpn"),
        "b": Row("baseline on conv5", "table1/b_conv5.yaml", "rpn"),
        "c": Row("FPN", "table1/c_fpn.yaml", "rpn"),
        "d": Row("bottom-up pyramid", "table1/d_bottom_up_pyramid.yaml", "rpn"),
        "e": Row("top-down pyramid, without lateral", "table1/e_no_lateral.yaml", "rpn"),
        "f": Row("only finest level", "table1/f_finest_level.yaml", "rpn"),
        "c_unshared": Row("FPN, one head a level", "table1/c_unshared.yaml", "rpn"),
        "d_unshared": Row("bottom-up pyramid, one head a level", "table1/d_unshared.yaml", "rpn"),
        "c_no_border_anchors": Row("FPN, no border anchors", "table1/c_no_border_anchors.yaml", "rpn"),
        "c_nonlinearity": Row("FPN, ReLU in the neck", "table1/c_nonlinearity.yaml", "rpn"),
        "c_no_smoothing": Row("FPN, no 3×3 smoothing", "table1/c_no_smoothing.yaml", "rpn"),
        "a_multi_scale": Row("conv4 at five sizes", "table1/a_multi_scale.yaml", "rpn"),
        "a_image_pyramid": Row(
            "conv4 at five sizes, on a pyramid of images",
            "fig1/a_image_pyramid.yaml",
            None,
            detector="table1/a_multi_scale",
        ),
    },
    "table2": {
        "a": Row("baseline on conv4", "table2/a_conv4.yaml", "fast_rcnn", "table1/c"),
        "b": Row("baseline on conv5", "table2/b_conv5.yaml", "fast_rcnn", "table1/c"),
        "c": Row("FPN", "table2/c_fpn.yaml", "fast_rcnn", "table1/c"),
        "d": Row("bottom-up pyramid", "table2/d_bottom_up_pyramid.yaml", "fast_rcnn", "table1/c"),
        "e": Row("top-down pyramid, without lateral", "table2/e_no_lateral.yaml", "fast_rcnn", "table1/c"),
        "f": Row("only finest level", "table2/f_finest_level.yaml", "fast_rcnn", "table1/c"),
        "c_no_smoothing": Row("FPN, no 3×3 smoothing", "table2/c_no_smoothing.yaml", "fast_rcnn", "table1/c"),
    },
    "table3": {
        "star": Row("baseline of He et al. 2016", "table3/star_he_et_al.yaml", "two steps"),
        "a": Row("baseline on conv4", "table3/a_conv4.yaml", "fast_rcnn", "table1/a"),
        "b": Row("baseline on conv5", "table3/b_conv5.yaml", "fast_rcnn", "table1/b"),
        # On proposals of its own kind it is Table 2 (c), and has its numbers in the paper.
        "c": Row("FPN", "table3/c_fpn.yaml", "fast_rcnn", "table1/c", detector="table2/c"),
    },
    "table4": {
        "resnet101": Row("ResNet-101, doubled schedule", "table4/resnet101.yaml", "joint", doubled=True)
    },
    "table5": _table5(50) | _table5(101),
}

FAMILIES = ("paper", "modern")
_POCKET = CONFIGS / "scale" / "pocket.yaml"
SCALES: dict[str, tuple[Path, ...]] = {
    "coco": (),
    "shapes": (_POCKET,),
    "framed": (_POCKET, CONFIGS / "scale" / "framed.yaml"),
}
"""The files between base and row, by data set."""


class _Runs(NamedTuple):
    """What all runs of a plan have in common."""

    scale: tuple[Path, ...]
    family: str
    data: str
    out: Path
    wandb: bool
    given: tuple[str, ...]
    settings: Settings
    """What `given` sets."""

    def configs(self, row: Row, *protocols: str) -> list[str]:
        """The configuration files of one training, from the general to the particular."""
        files = [CONFIGS / "base.yaml", *self.scale, CONFIGS / row.file]
        files += [CONFIGS / self.family / f"{name}.yaml" for name in protocols]
        return _config_words(files)


def plan(
    tables: Sequence[str],
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    family: str = "paper",
    data: str = "coco",
    out: str = "runs/study",
    wandb: bool = False,
    given: Sequence[str] = (),
) -> list[Task]:
    """The tasks that make some tables, or some rows of one, those that others need first.

    The modern family trains jointly what the paper trains in steps. Table 2, on fixed proposals, and Table 5,
    which compares the ways of training, are the paper's alone.

    Args:
        tables: as table1.
        rows: as c, of one table; none for all.
        seeds: one run of each row for each.
        family: paper or modern.
        data: coco, shapes, framed, or a configuration file of the user's own between base and row.
        out: folder of the study.
        wandb: log to Weights & Biases too, grouped by table and row, tagged with the toggles.
        given: further arguments of every `fpn fit` and `fpn test`.

    Raises:
        InputError: there is no such table, row, family or file, or `given` sets what each run has of its own.
    """
    tables = list(dict.fromkeys(tables))
    if rows and len(tables) > 1:
        raise InputError(
            f"rows are of one table, not of {', '.join(tables)}: leave out --rows or all but one"
        )
    for table in tables:
        _require_known(table, rows, family)
    scale = SCALES.get(data, (Path(data),))
    if not all(file.is_file() for file in scale):
        raise InputError(f"data {data!r} is none of {', '.join(SCALES)}, nor a configuration file")
    settings = settings_of(given)
    refuse_own(settings)
    runs = _Runs(scale, family, data, Path(out), wandb, tuple(given), settings)
    tasks: dict[str, Task] = {}
    for seed in dict.fromkeys(seeds):
        for table in tables:
            for row in rows or TABLES[table]:
                for task in _tasks(runs, table, row, seed):
                    # A row that another table needs too has more steps there, to write its proposals.
                    if task.name not in tasks or len(task.steps) > len(tasks[task.name].steps):
                        tasks[task.name] = task
    return list(tasks.values())


def _require_known(table: str, rows: Sequence[str], family: str) -> None:
    known = TABLES.get(table)
    if known is None:
        raise InputError(f"no table {table!r}; there are {', '.join(TABLES)}")
    for row in rows:
        if row not in known:
            raise InputError(f"{table} has no row {row!r}; it has {', '.join(known)}")
    if family not in FAMILIES:
        raise InputError(f"no family {family!r}; there are {', '.join(FAMILIES)}")
    if family == "modern" and table in ("table2", "table5"):
        raise InputError(
            f"{table} is about training in steps, which the modern family does not: leave out --family"
        )


def _tasks(runs: _Runs, table: str, key: str, seed: int, proposes: bool = False) -> list[Task]:
    """The tasks of one row, its own last; `proposes` has its RPN write the proposals that others read."""
    row = TABLES[table][key]
    training = row.training
    if runs.family == "modern" and table == "table3":
        training = "joint"
    name = f"{table}/{key}/seed_{seed}"
    about = _about(runs, table, key, seed)

    def task(stage: str, row: Row, *protocols: str, **more: Any) -> Task:
        return _training(runs, f"{name}{stage}", row, seed, protocols, **more)

    if training == "rpn":
        return [task("", row, "rpn", about=about, proposes=proposes)]
    if training == "joint":
        protocols = ("faster_rcnn", "double_schedule") if row.doubled else ("faster_rcnn",)
        return [task("", row, *protocols, about=about)]
    if row.detector is not None:
        trained = _tasks(runs, *_table_and_row(row.detector), seed)
        other_way = [] if row.training else [CONFIGS / row.file]
        test = _test(runs, name, f"{runs.out / trained[-1].name}/last.ckpt", *other_way)
        return [*trained, Task(name, (test,), (trained[-1].name,), about)]
    if row.proposals is not None:
        first = _tasks(runs, *_table_and_row(row.proposals), seed, proposes=True)
        return [*first, task("", row, "fast_rcnn", about=about, proposals=first[-1].name)]
    if row.start is None:
        one = task("/1_rpn", row, "rpn", proposes=True)
        return [one, task("", row, "fast_rcnn", about=about, proposals=one.name)]
    *begun, two = _tasks(runs, *_table_and_row(row.start), seed)
    three = task("/3_rpn", row, "rpn", "frozen_features", start=two.name, proposes=True)
    four = task("/4_fast_rcnn", row, "fast_rcnn", "frozen_features", start=two.name, proposals=three.name)
    halves = (f"{runs.out / half.name}/last.ckpt" for half in (three, four))
    joined = f"{runs.out / name}/joined.ckpt"
    join = Step("join", ("join", *halves, joined))
    return [*begun, two, three, four, Task(name, (join, _test(runs, name, joined)), (four.name,), about)]


def _table_and_row(name: str) -> tuple[str, str]:
    table, _, row = name.partition("/")
    return table, row


def _training(
    runs: _Runs,
    name: str,
    row: Row,
    seed: int,
    protocols: Iterable[str],
    about: dict[str, Any] | None = None,
    proposals: str | None = None,
    start: str | None = None,
    proposes: bool = False,
) -> Task:
    """Fit and test, and where another task needs them, write the proposals of both splits.

    Args:
        runs: what all have in common.
        name: of the task.
        row: what is trained.
        seed: of the training.
        protocols: how, names of the family's files.
        about: for the report.
        proposals: the task whose proposals are read.
        start: the task from whose checkpoint the weights start.
        proposes: whether proposals are to be written.
    """
    folder = runs.out / name
    words = ["fit", *runs.configs(row, *protocols), "--seed_everything", str(seed), "--data.seed", str(seed)]
    words += ["--trainer.default_root_dir", str(folder), *_loggers(runs, name, about)]
    if start is not None:
        words += ["--model.start_from", f"{runs.out / start}/last.ckpt"]
    if proposals is not None:
        for split in ("train", "val"):
            words += [f"--data.{split}_proposals", f"{runs.out / proposals}/{split}/proposals.safetensors"]
    steps = [
        Step("fit", (*words, *runs.given), resumable=True, collect=("last.ckpt",)),
        _test(runs, name, f"{folder}/last.ckpt"),
    ]
    if proposes:
        for split, selection in (("train", "training"), ("val", "testing")):
            words = [
                "predict",
                "--ckpt_path",
                f"{folder}/last.ckpt",
                "--split",
                split,
                "--selection",
                selection,
            ]
            steps.append(Step(f"propose_{split}", (*words, "--out", f"{folder}/{split}")))
    return Task(name, tuple(steps), tuple(n for n in dict.fromkeys((proposals, start)) if n), about)


def _test(runs: _Runs, name: str, checkpoint: str, *configs: Path) -> Step:
    words = ["test", *_config_words(configs), "--ckpt_path", checkpoint]
    words += ["--trainer.default_root_dir", str(runs.out / name)]
    words += ["--trainer.logger", json.dumps(_csv(runs, name))]
    return Step("test", (*words, *runs.given), collect=("scores.json", "curves.json"))


def _csv(runs: _Runs, name: str) -> dict[str, Any]:
    return {
        "class_path": "fpn.lit.metrics_file.MetricsFile",
        "init_args": {"save_dir": str(runs.out), "name": name},
    }


def _loggers(runs: _Runs, name: str, about: dict[str, Any] | None) -> list[str]:
    loggers = [_csv(runs, name)]
    if runs.wandb:
        table, row, *_ = name.split("/")
        toggles = [t if on else f"no {t}" for t, on in (about or {}).get("toggles", {}).items()]
        tags = [table, f"{table} {row}", runs.family, Path(runs.data).stem, *toggles]
        arguments = {
            "name": name.replace("/", " "),
            "group": f"{table}/{row}",
            "tags": tags,
            "save_dir": str(runs.out),
        }
        loggers.append({"class_path": "fpn.lit.wandb.Dashboard", "init_args": arguments})
    return ["--trainer.logger", json.dumps(loggers)]


def _about(runs: _Runs, table: str, key: str, seed: int) -> dict[str, Any]:
    row = trained = TABLES[table][key]
    if row.detector is not None:
        its_table, its_row = _table_and_row(row.detector)
        trained = TABLES[its_table][its_row]
    detector = yaml.safe_load((CONFIGS / trained.file).read_text())["model"]["detector"]
    neck, rpn = (
        detector.get(part, {}) | part_of(runs.settings, f"model.detector.{part}") for part in ("neck", "rpn")
    )
    toggles = {name: neck.get(name, name in ("lateral", "top_down", "smooth")) for name in _TOGGLES}
    if "class_path" in neck:
        toggles = {}
    sizes = rpn.get("sizes", {k: [0] for k in range(2, 7)})
    about = {
        "table": table,
        "row": key,
        "name": row.name,
        "seed": seed,
        "family": runs.family,
        "data": ", ".join([runs.data, *(f"with {one}" for one in altered(runs.settings))]),
        "toggles": toggles | {"shared": rpn.get("shared", True)},
    }
    return about | ({"anchors": _anchors(sizes)} if row.training == "rpn" else {})


_TOGGLES = ("lateral", "top_down", "smooth", "nonlinearity")


def _anchors(sizes: dict[int, list[float]]) -> int:
    """Anchors of three ratios on the paper's input of 800 × 1000 pixels."""
    return sum(3 * len(areas) * ceil(800 / 2**k) * ceil(1000 / 2**k) for k, areas in sizes.items())


def _config_words(files: Iterable[Path]) -> list[str]:
    return [word for file in files for word in ("--config", _shown(file))]


def _shown(file: Path) -> str:
    """Relative where it lies below the working directory, so that commands read as in the README."""
    return str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
