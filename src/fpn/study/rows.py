"""The rows of the paper's tables: which configuration file makes each, by which recipe."""

from collections.abc import Sequence
from pathlib import Path

from fpn.errors import InputError
from fpn.study.given import refuse_own, settings_of
from fpn.study.recipes import CONFIGS, RPN, DetectorOf, FastRCNN, FourSteps, Jointly, Row, Study, TwoSteps
from fpn.study.tasks import Task


def _table5(depth: int) -> dict[str, Row]:
    net, file = f"resnet{depth}", f"table5/resnet{depth}.yaml"
    return {
        f"{net}_unshared": Row(f"ResNet-{depth}, unshared", file, TwoSteps()),
        f"{net}_shared": Row(f"ResNet-{depth}, shared", file, FourSteps(f"table5/{net}_unshared")),
        f"{net}_joint": Row(f"ResNet-{depth}, joint", file, Jointly()),
    }


_ON_FPNS = FastRCNN("table1/c")
TABLES: dict[str, dict[str, Row]] = {
    "table1": {
        "a": Row("baseline on conv4", "table1/a_conv4.yaml", RPN()),
        "b": Row("baseline on conv5", "table1/b_conv5.yaml", RPN()),
        "c": Row("FPN", "table1/c_fpn.yaml", RPN()),
        "d": Row("bottom-up pyramid", "table1/d_bottom_up_pyramid.yaml", RPN()),
        "e": Row("top-down pyramid, without lateral", "table1/e_no_lateral.yaml", RPN()),
        "f": Row("only finest level", "table1/f_finest_level.yaml", RPN()),
        "c_unshared": Row("FPN, one head a level", "table1/c_unshared.yaml", RPN()),
        "d_unshared": Row("bottom-up pyramid, one head a level", "table1/d_unshared.yaml", RPN()),
        "c_no_border_anchors": Row("FPN, no border anchors", "table1/c_no_border_anchors.yaml", RPN()),
        "c_nonlinearity": Row("FPN, ReLU in the neck", "table1/c_nonlinearity.yaml", RPN()),
        "c_no_smoothing": Row("FPN, no 3×3 smoothing", "table1/c_no_smoothing.yaml", RPN()),
        "a_multi_scale": Row("conv4 at five sizes", "table1/a_multi_scale.yaml", RPN()),
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
        "star": Row("baseline of He et al. 2016", "table3/star_he_et_al.yaml", TwoSteps(), Jointly()),
        "a": Row("baseline on conv4", "table3/a_conv4.yaml", FastRCNN("table1/a"), Jointly()),
        "b": Row("baseline on conv5", "table3/b_conv5.yaml", FastRCNN("table1/b"), Jointly()),
        # FPN on proposals of its own kind is Table 2 (c), and has its numbers in the paper.
        "c": Row("FPN", "table3/c_fpn.yaml", DetectorOf("table2/c"), Jointly()),
    },
    "table4": {
        "resnet101": Row(
            "ResNet-101, doubled schedule", "table4/resnet101.yaml", Jointly(("double_schedule",))
        )
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
        InputError: there is no such table, row, family or file, a seed is negative, or `given` sets what each
            run has of its own.
    """
    tables = list(dict.fromkeys(tables))
    if rows and len(tables) > 1:
        raise InputError(
            f"rows are of one table, not of {', '.join(tables)}: leave out --rows or all but one"
        )
    for table in tables:
        _require_known(table, rows, family)
    if min(seeds, default=0) < 0:
        raise InputError(f"seed {min(seeds)}: give 0 or more")
    scale = SCALES.get(data, (Path(data),))
    if not all(file.is_file() for file in scale):
        raise InputError(f"data {data!r} is none of {', '.join(SCALES)}, nor a configuration file")
    settings = settings_of(given)
    refuse_own(settings)
    study = Study(TABLES, scale, family, data, Path(out), wandb, tuple(given), settings)
    tasks: dict[str, Task] = {}
    for seed in dict.fromkeys(seeds):
        for table in tables:
            for row in rows or TABLES[table]:
                for task in study.tasks(f"{table}/{row}", seed):
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
