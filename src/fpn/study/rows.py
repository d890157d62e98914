"""The rows of the paper's tables, of `necks` and `recipes`: which files make each, and how it is trained."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fpn.console import say
from fpn.errors import InputError
from fpn.importing import asked_for
from fpn.shipped import config_file
from fpn.study.recipes import JOINTLY, RPN, DetectorOf, FourSteps, OneStep, Row, Study, TwoSteps
from fpn.study.settings import detectors_in, refuse_own, settings_of
from fpn.study.tasks import Task
from fpn.trust import flags_for
from fpn.words import read_yaml


def _table5(depth: int) -> dict[str, Row]:
    net, file = f"resnet{depth}", f"table5/resnet{depth}.yaml"
    return {
        f"{net}_unshared": Row(f"ResNet-{depth}, unshared", file, TwoSteps()),
        f"{net}_shared": Row(f"ResNet-{depth}, shared", file, FourSteps(f"table5/{net}_unshared")),
        f"{net}_joint": Row(f"ResNet-{depth}, joint", file, JOINTLY),
    }


_ON_FPNS = OneStep(("fast_rcnn",), "table1/c")
TABLES: dict[str, dict[str, Row]] = {
    "table1": {
        "a": Row("baseline on conv4", "table1/a_conv4.yaml", RPN),
        "b": Row("baseline on conv5", "table1/b_conv5.yaml", RPN),
        "c": Row("FPN", "table1/c_fpn.yaml", RPN),
        "d": Row("bottom-up pyramid", "table1/d_bottom_up_pyramid.yaml", RPN),
        "e": Row("top-down pyramid, without lateral", "table1/e_no_lateral.yaml", RPN),
        "f": Row("only finest level", "table1/f_finest_level.yaml", RPN),
        "c_unshared": Row("FPN, one head a level", "table1/c_unshared.yaml", RPN),
        "d_unshared": Row("bottom-up pyramid, one head a level", "table1/d_unshared.yaml", RPN),
        "c_no_border_anchors": Row("FPN, no border anchors", "table1/c_no_border_anchors.yaml", RPN),
        "c_nonlinearity": Row("FPN, ReLU in the neck", "table1/c_nonlinearity.yaml", RPN),
        "c_no_smoothing": Row("FPN, no 3×3 smoothing", "table1/c_no_smoothing.yaml", RPN),
        "a_multi_scale": Row("conv4 at five sizes", "table1/a_multi_scale.yaml", RPN),
        "a_image_pyramid": Row(
            "conv4 at five sizes, on a pyramid of images",
            "fig1/a_image_pyramid.yaml",
            DetectorOf("table1/a_multi_scale", by_own_file=True),
        ),
    },
    "table2": {
        "a": Row("baseline on conv4", "table2/a_conv4.yaml", _ON_FPNS),
        "b": Row("baseline on conv5", "table2/b_conv5.yaml", _ON_FPNS),
        "c": Row("FPN", "table2/c_fpn.yaml", _ON_FPNS),
        "d": Row("bottom-up pyramid", "table2/d_bottom_up_pyramid.yaml", _ON_FPNS),
        "e": Row("top-down pyramid, without lateral", "table2/e_no_lateral.yaml", _ON_FPNS),
        "f": Row("only finest level", "table2/f_finest_level.yaml", _ON_FPNS),
        "c_no_smoothing": Row("FPN, no 3×3 smoothing", "table2/c_no_smoothing.yaml", _ON_FPNS),
    },
    "table3": {
        "star": Row("baseline of He et al. 2016", "table3/star_he_et_al.yaml", TwoSteps(), JOINTLY),
        "a": Row("baseline on conv4", "table3/a_conv4.yaml", OneStep(("fast_rcnn",), "table1/a"), JOINTLY),
        "b": Row("baseline on conv5", "table3/b_conv5.yaml", OneStep(("fast_rcnn",), "table1/b"), JOINTLY),
        # FPN on proposals of its own kind is Table 2 (c), and has its numbers in the paper.
        "c": Row("FPN", "table3/c_fpn.yaml", DetectorOf("table2/c"), JOINTLY),
    },
    "table4": {
        "resnet101": Row(
            "ResNet-101, doubled schedule",
            "table4/resnet101.yaml",
            OneStep(("faster_rcnn", "double_schedule")),
        )
    },
    "table5": _table5(50) | _table5(101),
    "necks": {
        "fpn": Row("FPN", "table3/c_fpn.yaml", JOINTLY),
        "no_top_down": Row("FPN without top-down", "table1/d_bottom_up_pyramid.yaml", JOINTLY),
        "no_lateral": Row("FPN without lateral", "table1/e_no_lateral.yaml", JOINTLY),
        "pafpn": Row("PAFPN (PANet)", "necks/pafpn.yaml", JOINTLY, early=True),
        "bifpn": Row("BiFPN, 3 layers", "necks/bifpn.yaml", JOINTLY, early=True),
        "balanced": Row("balanced pyramid (Libra R-CNN)", "necks/balanced.yaml", JOINTLY, early=True),
        "carafe": Row("FPN, CARAFE as upsampling", "necks/carafe.yaml", JOINTLY, early=True),
        "fapn": Row("FaPN", "necks/fapn.yaml", JOINTLY, early=True),
        "nas_fpn": Row("NAS-FPN, 7 times", "necks/nas_fpn.yaml", JOINTLY, early=True),
    },
    "recipes": {
        "plain": Row("FPN", "table3/c_fpn.yaml", JOINTLY),
        "giou": Row("GIoU as box loss", "table3/c_fpn.yaml", JOINTLY, late="recipes/giou.yaml"),
        "group_norm": Row("GroupNorm in neck and head", "recipes/group_norm.yaml", JOINTLY, early=True),
        "sync_batch_norm": Row("BatchNorm over processes", "recipes/sync_batch_norm.yaml", JOINTLY),
        "four_conv_head": Row("head of 4 convolutions", "recipes/four_conv_head.yaml", JOINTLY, early=True),
        "two_conv_rpn": Row("RPN of 2 convolutions", "recipes/two_conv_rpn.yaml", JOINTLY),
        "class_agnostic_boxes": Row("one box for all classes", "recipes/class_agnostic_boxes.yaml", JOINTLY),
        "soft_nms": Row("Soft-NMS", "recipes/soft_nms.yaml", DetectorOf("recipes/plain", by_own_file=True)),
        "cascade": Row("Cascade R-CNN", "recipes/cascade.yaml", JOINTLY),
        "multi_scale": Row("images of several sizes", "recipes/multi_scale.yaml", JOINTLY),
        "cosine": Row("half a cosine", "recipes/cosine.yaml", JOINTLY),
        "ema": Row("averaged weights", "recipes/ema.yaml", JOINTLY),
        "all": Row("all of these", "recipes/all.yaml", JOINTLY, early=True, late="recipes/giou.yaml"),
    },
}

FAMILIES = ("paper", "modern")
SCALES: dict[str, tuple[str, ...]] = {
    "coco": (),
    "shapes": ("scale/pocket",),
    "framed": ("scale/pocket", "scale/framed"),
    "shapes_512": ("scale/pocket", "scale/twofold"),
    "framed_512": ("scale/pocket", "scale/framed", "scale/twofold"),
    "framed_768": ("scale/pocket", "scale/framed", "scale/threefold"),
}
"""The files between base and row, by data set."""


def plan(
    tables: Sequence[str],
    rows: Sequence[str] = (),
    seeds: Sequence[int] = (0,),
    family: str = "paper",
    data: str = "coco",
    out: str | Path = "runs/study",
    wandb: bool = False,
    given: Sequence[str] = (),
    devices_per_run: int = 1,
) -> list[Task]:
    """The tasks that make some tables, or some rows of one, those that others need first.

    The modern family trains jointly what the paper trains in steps. Table 2, on fixed proposals, and Table 5,
    which compares the ways of training, are the paper's alone.

    Args:
        tables: as table1.
        rows: of one table; none for all. As c, or a configuration file of the user's own, as ./c_panet.yaml:
            the file says what the detector is, its stem is the row's key, its first comment line the name.
        seeds: one run of each row for each.
        family: paper or modern.
        data: a name in SCALES, or a configuration file of the user's own between base and row.
        out: folder of the study.
        wandb: log to Weights & Biases too, grouped by table and row.
        given: further arguments of every `fpn fit` and `fpn test`.
        devices_per_run: GPUs of each run; 0 for the CPU, unless an accelerator is given.

    Raises:
        InputError: there is no such table, row or file, a seed is negative, `given` sets what each run has of
            its own, or a file names what no checkpoint may.
    """
    tables = list(dict.fromkeys(tables))
    if rows and len(tables) > 1:
        raise InputError(
            f"rows are of one table, not of {', '.join(tables)}: leave out --rows or all but one"
        )
    if unknown := [table for table in tables if table not in TABLES]:
        raise InputError(f"no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    if family == "modern" and (steps := {"table2", "table5"}.intersection(tables)):
        raise InputError(
            f"{min(steps)} is about training in steps, which the modern family does not: leave out --family"
        )
    if min(seeds, default=0) < 0:
        raise InputError(f"seed {min(seeds)}: give 0 or more")
    refuse_own(settings_of(given))
    known = {f"{table}/{key}": row for table, of_table in TABLES.items() for key, row in of_table.items()}
    asked = [f"{table}/{key}" for table in tables for key in TABLES[table]]
    if rows:
        chosen: dict[str, Row] = {}
        for name, row in (_row(tables[0], word) for word in rows):
            if chosen.setdefault(name, row) != row:
                raise InputError(f"{chosen[name].file} and {row.file} are both {name}: give one another name")
        known, asked = known | chosen, list(chosen)
    if devices_per_run == 0 and "trainer.accelerator" not in settings_of(given):
        given = ["--trainer.accelerator", "cpu", *given]  # else Apple's GPUs are used
    scale = tuple(map(config_file, SCALES.get(data, (data,))))
    known |= {name: _own(known[name], scale) for name in asked if not known[name].shipped}
    study = Study(known, scale, family, data, Path(out), wandb, tuple(given), devices_per_run)
    tasks: dict[str, Task] = {}
    for seed in dict.fromkeys(seeds):
        for name in asked:
            try:
                of_row = study.tasks(name, seed)
            except InputError as error:
                if rows:
                    raise
                say(f"left out: {error}")
                continue
            for task in of_row:
                # A row that another table needs too has more steps there, to write its proposals.
                if task.name not in tasks or len(task.steps) > len(tasks[task.name].steps):
                    tasks[task.name] = task
    return list(tasks.values())


def _row(table: str, word: str) -> tuple[str, Row]:
    """A row by its key, or of a file, with its name as table1/c."""
    if word in TABLES[table]:
        return f"{table}/{word}", TABLES[table][word]
    path = Path(word)
    if not path.is_file():
        known = ", ".join(TABLES[table])
        raise InputError(
            f"{table} has no row {word!r}; it has {known}; or give a file of your own, as ./mine.yaml"
        )
    if table == "table5":
        raise InputError("table5 compares ways of training: a file can be a row of the other tables")
    if path.stem in TABLES[table]:
        raise InputError(f"{table} has a row {path.stem!r} of its own: give {word} another name")
    comments = (line.lstrip("# ").strip() for line in path.read_text().splitlines() if line.startswith("#"))
    first = next(iter(TABLES[table].values()))  # whose recipes are the table's
    name = next(filter(None, comments), path.stem)
    return f"{table}/{path.stem}", Row(name, word, first.recipe, first.modern, shipped=False)


def _own(row: Row, scale: Sequence[Path]) -> Row:
    """A row of the user's, whose classes are as wide as the data's files say if they have such options.

    Raises:
        InputError: it names a class of a module that `fpn test` imports only when asked.
    """
    from fpn.checkpoints import read_detector  # and PyTorch, which a runner does without

    file = Path(row.file)
    asked = tuple(f"--import {module}." for module in asked_for())  # which brings what is below it too
    flags = flags_for([read_yaml(file), read_detector(detectors_in("base", file))])
    if missing := [flag for flag in flags if not f"{flag}.".startswith(asked)]:
        raise InputError(f"{row.file}: `fpn test` imports it only when asked: add {' '.join(missing)}")
    named = settings_of(["--config", row.file]).items()
    if not scale or not any(_is_class(name, value) for name, value in named):
        return row
    adds = "+:" in file.read_text()  # to a list, which would be done twice
    early = not adds and read_detector(detectors_in("base", file, *scale)) is not None
    if not early:
        reason = "the file adds to a list" if adds else "they lack an option that --data sets"
        say(f"{row.file}: its classes keep their own widths, as {reason}")
    return row._replace(early=early)


def _is_class(name: str, value: Any) -> bool:
    return name.startswith("model.detector") and isinstance(value, str) and "." in value
