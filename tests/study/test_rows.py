"""Every row of the paper's tables: what its files resolve to, and one step of it by the real command line."""

import contextlib
import io
import json
import shutil
from collections.abc import Callable, Sequence
from functools import cache
from itertools import pairwise
from math import ceil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from fpn.checkpoints import build_detector
from fpn.data.coco import read_annotations
from fpn.data.options import ImageOptions
from fpn.data.proposals import Stamp, file_hash, write_proposals
from fpn.data.shapes import generate_shapes
from fpn.errors import InputError
from fpn.lit.cli import main
from fpn.lit.module import DetectionModule
from fpn.models.detectors import Inference, ProposalNetwork
from fpn.models.losses import GIoU
from fpn.models.necks import (
    NASFPN,
    PAFPN,
    BalancedFeaturePyramid,
    BiFPN,
    CarafePyramid,
    FaPN,
    FeaturePyramid,
    Neck,
)
from fpn.models.roi_head import Conv5Head, FourConvOneFC, TwoFCHead
from fpn.shipped import CONFIGS
from fpn.study.paper import paper_table
from fpn.study.recipes import DetectorOf, FourSteps
from fpn.study.rows import TABLES, plan
from fpn.study.tasks import Task
from fpn.types import Batch

K = 80


def fits(data: str, family: str = "paper", **more: Any) -> dict[str, Task]:
    """All trainings of all tables, by name."""
    tables = [t for t in TABLES if family == "paper" or t not in ("table2", "table5")]
    tasks = [task for table in tables for task in plan([table], family=family, data=data, **more)]
    return {task.name: task for task in tasks if task.steps[0].name == "fit"}


def resolved(words: Sequence[str]) -> dict[str, Any]:
    """The configuration of a training."""
    config: dict[str, Any] = yaml.load(_printed(tuple(words)), Loader=yaml.CSafeLoader)
    return config


@cache
def _printed(words: tuple[str, ...]) -> str:
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), pytest.raises(SystemExit) as caught:
        main([*words, "--print_config"])
    assert caught.value.code == 0
    return printed.getvalue()


def built(config: dict[str, Any]) -> Any:
    """The detector without its weights, K classes."""
    with torch.device("meta"):
        return build_detector([config["model"]["detector"]], K)


# Trainable parameters, worked out layer by layer: bias where there is no BatchNorm.
def conv(i: int, o: int, k: int) -> int:
    return i * o * k * k + o


def bottleneck(i: int, planes: int, first: bool) -> int:
    """Without BatchNorm, which is frozen."""
    return i * planes + 9 * planes**2 + 4 * planes**2 + (4 * i * planes if first else 0)


def stage(i: int, planes: int, depth: int) -> int:
    return bottleneck(i, planes, True) + (depth - 1) * bottleneck(4 * planes, planes, False)


C3, C4, C5 = stage(256, 128, 4), stage(512, 256, 6), stage(1024, 512, 3)
C4_101 = stage(512, 256, 23)
WIDTHS = {2: 256, 3: 512, 4: 1024, 5: 2048}


def laterals(*levels: int) -> int:
    return sum(conv(WIDTHS[k], 256, 1) for k in levels)


SMOOTH = conv(256, 256, 3)


def rpn(channels: int, areas: int = 1) -> int:
    return conv(channels, channels, 3) + conv(channels, 3 * areas, 1) + conv(channels, 12 * areas, 1)


def predictor(channels: int) -> int:
    return 5 * (channels * (K + 1) + (K + 1))


def two_fc(channels: int) -> int:
    return (49 * channels + 1) * 1024 + 1025 * 1024 + predictor(1024)


def _neck_size(make: Callable[[dict[int, int]], Neck]) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in make(WIDTHS).parameters())


CONV5 = C5 + predictor(2048)
FPN = C3 + C4 + C5 + laterals(2, 3, 4, 5) + 4 * SMOOTH
TOP_ONLY = C3 + C4 + C5 + laterals(5) + 4 * SMOOTH
FINEST = C3 + C4 + C5 + laterals(2, 3, 4, 5) + SMOOTH

FOUR_CONV_HEAD = 4 * conv(256, 256, 3) - 1025 * 1024
"""More than the head of two layers, of which it has the first and the predictor."""
ONE_BOX = -4 * K * 1025
"""More than with a box for each class and the background."""
BATCH_NORMS = 2 * sum(depth * 6 * planes + 4 * planes for planes, depth in ((128, 4), (256, 6), (512, 3)))
"""Scales and shifts of a ResNet-50's conv3 to conv5: 1, 1 and 4 times the planes, and the shortcut's."""

PARAMETERS = {
    "table1/a": C3 + C4 + rpn(1024, 5),
    "table1/b": C3 + C4 + C5 + rpn(2048, 5),
    "table1/c": FPN + rpn(256),
    "table1/d": FPN + rpn(256),
    "table1/e": TOP_ONLY + rpn(256),
    "table1/f": FINEST + rpn(256, 5),
    "table1/c_unshared": FPN + 5 * rpn(256),
    "table1/d_unshared": FPN + 5 * rpn(256),
    "table1/c_no_border_anchors": FPN + rpn(256),
    "table1/c_nonlinearity": FPN + rpn(256),
    "table1/c_no_smoothing": FPN - 4 * SMOOTH + rpn(256),
    "table1/a_multi_scale": C3 + C4 + rpn(1024, 5),
    "table2/a": C3 + C4 + CONV5,
    "table2/b": C3 + C4 + C5 + two_fc(2048),
    "table2/c": FPN + two_fc(256),
    "table2/d": FPN + two_fc(256),
    "table2/e": TOP_ONLY + two_fc(256),
    "table2/f": FINEST + two_fc(256),
    "table2/c_no_smoothing": FPN - 4 * SMOOTH + two_fc(256),
    "table3/star/1_rpn": C3 + C4 + rpn(1024, 4),
    "table3/star": C3 + C4 + CONV5,
    "table3/a": C3 + C4 + CONV5,
    "table3/b": C3 + C4 + C5 + two_fc(2048),
    "table3/c": FPN + two_fc(256),
    "table4/resnet101": FPN - C4 + C4_101 + rpn(256) + two_fc(256),
    **{
        f"table5/resnet{depth}_{stage}": FPN + more + own
        for depth, more in ((50, 0), (101, C4_101 - C4))
        for stage, own in (
            ("unshared/1_rpn", rpn(256)),
            ("unshared", two_fc(256)),
            # Of the features, none are trained.
            ("shared/3_rpn", rpn(256)),
            ("shared/4_fast_rcnn", two_fc(256)),
            ("joint", rpn(256) + two_fc(256)),
        )
    },
    # What each neck has besides FPN's is worked out in tests/models/test_later_necks.py.
    **{
        f"necks/{key}": C3 + C4 + C5 + _neck_size(make) + rpn(256) + two_fc(256)
        for key, make in {
            "fpn": FeaturePyramid,
            "pafpn": PAFPN,
            "bifpn": BiFPN,
            "balanced": BalancedFeaturePyramid,
            "carafe": CarafePyramid,
            "fapn": FaPN,
            "nas_fpn": NASFPN,
        }.items()
    },
    "necks/no_top_down": FPN + rpn(256) + two_fc(256),
    "necks/no_lateral": TOP_ONLY + rpn(256) + two_fc(256),
    **{
        f"recipes/{key}": FPN + rpn(256) + two_fc(256) + more
        for key, more in {
            "plain": 0,
            "giou": 0,
            # Of each 1×1 and 3×3 convolution of the neck, and of four in the head, a scale besides the bias.
            "group_norm": 8 * 256 + FOUR_CONV_HEAD + 4 * 256,
            # Those of the bottom-up that are not frozen: two for each channel of its norms.
            "sync_batch_norm": 8 * 256 + BATCH_NORMS,
            "four_conv_head": FOUR_CONV_HEAD,
            "two_conv_rpn": conv(256, 256, 3),
            "class_agnostic_boxes": ONE_BOX,
            "cascade": ONE_BOX + 2 * (two_fc(256) + ONE_BOX),
            **dict.fromkeys(("multi_scale", "cosine", "ema"), 0),
            "all": 8 * 256 + conv(256, 256, 3) + 3 * (FOUR_CONV_HEAD + 4 * 256 + ONE_BOX) + 2 * two_fc(256),
        }.items()
    },
}
# The paper's Table 1, on an input of 800 × 1000.
ANCHORS = {"a": 47_250, "b": 12_000, "c": 199_974, "d": 199_974, "e": 199_974, "f": 750_000}


def without_seed(name: str) -> str:
    return name.replace("/seed_0", "")


LATER = ("necks/", "recipes/")
"""Rows that are not the paper's: few of them with every change."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=pytest.mark.long)
        if name.startswith(LATER) and name not in ("necks/bifpn/seed_0", "recipes/all/seed_0")
        else name
        for name in sorted(fits("coco"))
    ],
)
def test_rows_at_the_papers_settings(name: str) -> None:
    task, row = fits("coco")[name], without_seed(name)
    config = resolved(task.steps[0].words)
    detector = built(config)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert trained == PARAMETERS[row]
    table, key = row.split("/")[:2]
    model, data = config["model"], config["data"]["init_args"]
    frozen = ["bottom_up", "neck"] if key.endswith("_shared") and ("3_" in row or "4_" in row) else []
    assert model["frozen_parts"] == frozen
    kind = type(detector).__name__
    steps, milestones = (40_000, [30_000]) if kind == "ProposalNetwork" else (80_000, [60_000])
    if table == "table4":
        steps, milestones = 160_000, [120_000]
    assert (model["schedule"]["steps"], model["schedule"]["milestones"]) == (steps, milestones)
    assert model["optimizer"]["init_args"]["lr"] == 0.02
    size = ImageOptions(**data["images"]).settings
    assert (size.short_side, size.max_side) == ((600, 1000) if key == "star" else (800, 1333))
    assert detector.bottom_up.name == ("resnet101" if "resnet101" in key else "resnet50")

    neck = config["model"]["detector"]["init_args"]["neck"]
    if (table == "necks" and key not in ("fpn", "no_top_down", "no_lateral")) or key in (
        "group_norm",
        "sync_batch_norm",
        "all",
    ):
        assert detector.neck.channels == 256
    elif key in ("a", "b", "star", "a_multi_scale"):
        assert neck["init_args"] == {"level": 5 if key == "b" else 4}
    else:
        toggles = {"lateral": True, "top_down": True, "smooth": True, "nonlinearity": False, "channels": 256}
        toggles |= {"levels": [2] if key == "f" else [2, 3, 4, 5], "norm": None}
        off = {"d": "top_down", "e": "lateral", "d_unshared": "top_down", "c_no_smoothing": "smooth"}.get(key)
        off = off or (key.removeprefix("no_") if key in ("no_top_down", "no_lateral") else None)
        toggles |= {off: False} if off else {}
        toggles |= {"nonlinearity": True} if key == "c_nonlinearity" else {}
        assert neck["init_args"] == toggles

    if kind != "FastRCNN":
        assert detector.anchor_sampling.include_border_anchors is (key != "c_no_border_anchors")
        sides = {k: (ceil(800 / 2**k), ceil(1000 / 2**k)) for k in detector.rpn.levels}
        with torch.device("meta"):
            anchors = sum(len(detector.rpn.anchors(k, side, (800, 1000))) for k, side in sides.items())
        if table == "table1":
            assert anchors == ANCHORS[key[0]]
            assert (task.about or {})["anchors"] == anchors
        assert list(detector.rpn.head) == (
            ["2", "3", "4", "5", "6"] if "unshared" in key and table == "table1" else ["shared"]
        )
        assert detector.testing_proposals.post_nms_top_n == (300 if key == "star" else 1000)
        # What enters suppression is counted by level, and a baseline has one where a pyramid has five.
        for selection in (detector.training_proposals, detector.testing_proposals):
            least = 5 * min(selection.post_nms_top_n, 1000)
            assert len(detector.rpn.levels) * selection.pre_nms_top_n >= least
    if kind != "ProposalNetwork":
        single = key in ("a", "star")
        assert detector.roi_head.resolution == (14 if single else 7)
        convs = FourConvOneFC if key in ("group_norm", "four_conv_head", "all") else TwoFCHead
        assert isinstance(detector.roi_head.head["shared"], Conv5Head if single else convs)
        assert detector.roi_head.levels == {"a": (4,), "star": (4,), "b": (5,), "f": (2,)}.get(
            key, (2, 3, 4, 5)
        )
        assert detector.roi_sampling.per_image == (64 if key == "star" else 512)
        assert detector.detections.nms_iou == 0.3
        if key in ("giou", "all"):
            assert (type(detector.roi_box_loss), detector.roi_box_loss.weight) == (GIoU, 10)
        else:
            assert detector.roi_box_loss.beta == 1
    if kind == "FastRCNN":
        assert (detector.training_top_n, detector.testing_top_n) == (2000, 1000)


def test_all_rows_are_pinned() -> None:
    trained = {without_seed(name) for name in fits("coco")}
    assert trained == set(PARAMETERS) - {"table3/c"}
    files = {row.file for table in TABLES.values() for row in table.values() if row.file.startswith("table")}
    assert files == {str(path.relative_to(CONFIGS)) for path in CONFIGS.glob("table*/*.yaml")}


@pytest.mark.parametrize("data", ["coco", "shapes"])
def test_fpn_of_table_3_is_that_of_table_2(data: str) -> None:
    """The same training by the paper's recipe, so that it is run once, and the same numbers in the paper."""
    rpn_task, training, tested = plan(["table3"], ["c"], data=data)
    names = ["table1/c/seed_0", "table2/c/seed_0", "table3/c/seed_0"]
    assert [rpn_task.name, training.name, tested.name] == names
    assert tested.needs == (training,)
    (test,) = tested.steps
    assert test.words[:3] == ("test", "--ckpt_path", "runs/study/table2/c/seed_0/last.ckpt")
    words = list(training.steps[0].words)
    assert words.count("configs/table2/c_fpn.yaml") == 1
    own = [word.replace("table2/c_fpn", "table3/c_fpn") for word in words]
    assert resolved(own) == resolved(words)
    assert paper_table("table3").rows["c"].values == {
        key: paper_table("table2").rows["c"].values[key] for key in paper_table("table3").rows["c"].values
    }


@pytest.mark.long
def test_modern_rows() -> None:
    for name, task in fits("coco", "modern").items():
        config = resolved(task.steps[0].words)
        row = without_seed(name)
        schedule = config["model"]["schedule"]
        times = 2 if row.startswith("table4") else 1
        milestones = [120_000, 160_000] if row.startswith("table4") else [60_000, 80_000]
        assert (schedule["steps"], schedule["milestones"]) == (times * 90_000, milestones)
        detector = built(config)
        joint = row.startswith(("table3", "table4", "necks", "recipes"))
        own = "CascadeRCNN" if row == "recipes/cascade" else "FasterRCNN"
        assert type(detector).__name__ == (own if joint else "ProposalNetwork")
        expected = PARAMETERS[row]
        if row.startswith("table3"):
            expected += {"a": rpn(1024, 5), "star": rpn(1024, 4), "b": rpn(2048, 5), "c": rpn(256)}[row[7:]]
        assert sum(p.numel() for p in detector.parameters() if p.requires_grad) == expected
        images = config["data"]["init_args"]["images"]
        # 640 to 800 pixels at most 1333 long, as Detectron2; rows with other scales are left out.
        assert [round(800 * scale) for scale in images["train_scales"]] == list(range(640, 801, 32))
        assert not images["scale_max_side"]
        assert row not in ("table1/a_multi_scale", "table1/a_image_pyramid")
        assert detector.rpn.grid == "stride"
        assert detector.rpn_box_loss.beta == 0
        if joint:
            assert detector.detections.nms_iou == 0.5
            assert detector.roi_head.aligned


def test_rows_at_pocket_scale() -> None:
    tasks = fits("shapes")
    stages = ("table1/a", "table2/c", "table3/star", "table4/resnet101", "table5/resnet50_joint")
    for name in (f"{row}/seed_0" for row in stages):
        task = tasks[name]
        config = resolved(task.steps[0].words)
        parts = config["model"]["detector"]["init_args"]
        bottom_up = parts["bottom_up"]["init_args"]
        depth = next((d for d in ("resnet101", "resnet50") if d in name), "resnet10")
        assert (bottom_up["name"], bottom_up["width"], bottom_up["weights"]) == (depth, 16, None)
        assert config["model"]["schedule"]["length"] == 0.04
        assert config["data"]["class_path"].endswith("ShapesDataModule")
        if "rpn" in parts:
            assert parts["rpn"]["init_args"]["size_factor"] == 0.25
        if "roi_head" in parts:
            assert parts["roi_head"]["init_args"]["canonical_size"] == 56


def test_necks_differ_in_the_neck_alone() -> None:
    """At pocket scale as wide as FPN's, and headed by a command, whichever the data."""
    for data in ("coco", "shapes"):
        configs = {
            task.name.split("/")[1]: resolved(task.steps[0].words) for task in plan(["necks"], data=data)
        }
        parts = {key: config["model"]["detector"]["init_args"] for key, config in configs.items()}
        necks = {key: part.pop("neck") for key, part in parts.items()}
        assert len({neck["class_path"] for neck in necks.values()}) == 7
        toggles = ("lateral", "top_down")
        assert {
            key: [necks[key]["init_args"][t] for t in toggles] for key in ("fpn", "no_top_down", "no_lateral")
        } == {
            "fpn": [True, True],
            "no_top_down": [True, False],
            "no_lateral": [False, True],
        }
        assert {neck["init_args"]["channels"] for neck in necks.values()} == {256 if data == "coco" else 32}
        # P6 of NAS-FPN is for the RPN.
        assert parts["nas_fpn"]["roi_head"]["init_args"].pop("levels") == [2, 3, 4, 5]
        assert parts["fpn"]["roi_head"]["init_args"].pop("levels") is None
        for key, config in configs.items():
            parts[key]["roi_head"]["init_args"].pop("levels", None)
            config.pop("trainer")  # which names the folder of the run
            assert config == configs["fpn"], key
    for path in (CONFIGS / "necks").glob("*.yaml"):
        assert f"--config configs/necks/{path.name}" in path.read_text()


@pytest.mark.parametrize(
    ("data", "family"),
    [
        ("coco", "paper"),
        *(pytest.param(*two, marks=pytest.mark.long) for two in (("shapes", "paper"), ("coco", "modern"))),
    ],
)
def test_recipes_differ_in_what_they_say(data: str, family: str) -> None:
    """Whatever comes before and after: nothing of a recipe is undone, and nothing else is done."""
    tasks = {t.name.split("/")[1]: t for t in plan(["recipes"], family=family, data=data)}
    (tested,) = tasks.pop("soft_nms").steps
    assert tested.words[:3] == ("test", "--config", "configs/recipes/soft_nms.yaml")
    assert "runs/study/recipes/plain/seed_0/last.ckpt" in tested.words
    configs = {key: _flat(resolved(task.steps[0].words)) for key, task in tasks.items()}
    plain = configs.pop("plain")
    for key, config in configs.items():
        files = [key] if key != "all" else ["all", "giou"]
        contents = [yaml.safe_load((CONFIGS / f"recipes/{file}.yaml").read_text()) for file in files]
        flat = [item for content in contents for item in _flat(content).items()]
        said = {name.replace(".init_args", ""): value for name, value in flat}
        known = {name.replace(".init_args", ""): value for name, value in config.items()}
        before = {name.replace(".init_args", ""): value for name, value in plain.items()}
        for name, value in said.items():
            if name.endswith("+"):  # behind those there are
                name = name[:-1]
                known[name], before[name] = ((one[name] or [])[-len(value) :] for one in (known, before))
            assert _holds(known[name], value), (key, name)
        whole = "model.detector.class_path"  # whose arguments go on
        parts = [n if n == whole else n.removesuffix(".class_path").removesuffix("+") for n in said]
        for name in known.keys() | before.keys():
            if known.get(name) != before.get(name) and not name.startswith("trainer.logger"):
                own = [part for part in parts if name == part or name.startswith(f"{part}.")]
                assert own or "later_ious" in name, (key, name)


def _holds(known: Any, said: Any) -> bool:
    """Whether all that is said is known; classes have arguments of which nothing is said."""
    if isinstance(said, list) and isinstance(known, list):
        return len(known) == len(said) and all(map(_holds, known, said))
    if isinstance(said, dict) and isinstance(known, dict):
        return all(_holds(known.get(key), value) for key, value in said.items())
    return bool(known == said)


def _flat(content: dict[str, Any], before: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in content.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{before}{name}.") if inner else {f"{before}{name}": value}
    return found


def test_a_recipe_is_ten_lines_at_most_and_says_how_it_is_run() -> None:
    for path in (CONFIGS / "recipes").glob("*.yaml"):
        lines = path.read_text().splitlines()
        head = [line for line in lines if line.startswith("#")]
        assert lines[: len(head)] == head
        assert 1 <= len(lines) - len(head) <= 10
        assert f"--config configs/recipes/{path.name}" in "\n".join(head)


def test_the_framed_rows_are_the_pocket_rows_on_other_images() -> None:
    plain, framed = fits("shapes"), fits("framed")
    assert set(plain) == set(framed)
    one, other = (resolved(tasks["table1/d/seed_0"].steps[0].words) for tasks in (plain, framed))
    assert one["model"] == other["model"]
    data, framed_data = one["data"]["init_args"], other["data"]["init_args"]
    assert {key for key in data if data[key] != framed_data[key]} == {"folder", "scene"}
    assert (data["scene"], framed_data["scene"]) == ("plain", "framed")


@pytest.mark.parametrize(
    ("data", "times", "table", "row", "grown"),
    [
        ("shapes_512", 2, "necks", "bifpn", {"rpn.size_factor", "roi_head.canonical_size"}),
        ("framed_512", 2, "table1", "c", {"rpn.size_factor"}),
        ("framed_512", 2, "table2", "d", {"roi_head.canonical_size"}),
        ("framed_768", 3, "necks", "bifpn", {"rpn.size_factor", "roi_head.canonical_size"}),
    ],
)
def test_the_larger_rows_are_the_same_on_enlarged_images(
    data: str, times: int, table: str, row: str, grown: set[str]
) -> None:
    """Anchors and canonical size grow as the objects do, in every stage."""
    usual = data.partition("_")[0]
    one, other = (_flat(resolved(plan([table], [row], data=d)[-1].steps[0].words)) for d in (usual, data))
    changed = {key: (one[key], other[key]) for key in one | other if one[key] != other[key]}
    by = {key.replace("init_args.", ""): after / before for key, (before, after) in changed.items()}
    assert by == {"data.images.scale": times} | {f"model.detector.{name}": times for name in grown}


def test_headers_state_the_papers_numbers_and_a_command() -> None:
    for name, rows in TABLES.items():
        if name in ("necks", "recipes"):
            continue
        numbers = {k: list(r.values.values()) for k, r in paper_table(name).rows.items()}
        for key, row in rows.items():
            if not row.file.startswith("table"):
                continue
            lines = (CONFIGS / row.file).read_text().splitlines()
            header = [line for line in lines if line.startswith("#")]
            assert len(lines) - len(header) <= 15
            text = "\n".join(header)
            assert "fpn fit --config configs/base.yaml" in text
            assert f"--config configs/{row.file}" in text
            for value in numbers.get(key, []):
                assert value is None or (f"{value:,}" if value > 1000 else f"{value:.1f}") in text, (
                    row.file,
                    value,
                )


@pytest.fixture(scope="module")
def tiny_shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("rows") / "shapes"
    generate_shapes(root, train=4, val=2, long_side=96)
    return root


def tiny(root: Path) -> list[str]:
    """One step of two images, and the validation of two."""
    values = {
        "data.folder": root,
        "data.train_count": 4,
        "data.val_count": 2,
        "data.long_side": 96,
        "data.batch_size": 2,
        "data.eval_batch_size": 2,
        "data.num_workers": 0,
        "model.schedule.length": 1e-9,
        "trainer.num_sanity_val_steps": 0,
        "trainer.accelerator": "cpu",
        "trainer.enable_model_summary": "false",
    }
    return [word for key, value in values.items() for word in (f"--{key}", str(value))]


# Of the others, tested above, one of these has the network.
TRAINED = [
    *(f"table1/{key}" for key, row in TABLES["table1"].items() if not isinstance(row.recipe, DetectorOf)),
    *(f"table2/{key}" for key in "abdef"),
    "table3/star",
    "table5/resnet50_shared",
    "table5/resnet50_joint",
    *(f"necks/{key}" for key in TABLES["necks"] if key != "fpn"),
    *(f"recipes/{key}" for key in TABLES["recipes"] if key not in ("plain", "soft_nms")),
]


SHORTLY = (
    "table1/a",
    "table1/c",
    "table1/e",
    "table2/a",
    "necks/bifpn",
)
"""What every change is tried with: the others differ from one of these in a setting. Recipes are tried
together in tests/lit/test_recipes.py."""


@pytest.mark.parametrize(
    "row", [row if row in SHORTLY else pytest.param(row, marks=pytest.mark.long) for row in TRAINED]
)
def test_one_step_at_pocket_scale(
    row: str, tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every training that a row takes, one step each; then every trainable parameter has a gradient."""
    monkeypatch.chdir(tmp_path)
    without: list[str] = []
    stepped = []

    def on_after_backward(self: DetectionModule) -> None:
        trainable = {n: p for n, p in self.named_parameters() if p.requires_grad}
        stepped.append(len(trainable))
        without.extend(name for name, p in trainable.items() if p.grad is None)

    monkeypatch.setattr(DetectionModule, "on_after_backward", on_after_backward)
    table, key = row.split("/")
    recipe = TABLES[table][key].recipe
    given = [*tiny(tiny_shapes), "--model.detector.bottom_up.width", "4"]
    for task in plan([table], [key], data="shapes", out="study", given=given):
        own = task.name.startswith((row, recipe.begin) if isinstance(recipe, FourSteps) else row)
        if own and task.steps[0].name == "fit":
            main(task.steps[0].words)
            (last,) = Path("study", task.name).glob("version_0/checkpoints/last.ckpt")
            shutil.copy(last, Path("study", task.name, "last.ckpt"))
            # On top of what the checkpoint remembers, the same words mean the same run.
            begun, gone_on = (
                resolved(task.steps[0].words + more) for more in ((), ("--ckpt_path", str(last)))
            )
            assert [begun["model"], begun["data"]] == [gone_on["model"], gone_on["data"]]
        for split in ("train", "val"):
            random_proposals(tiny_shapes, split, Path("study", task.name, split, "proposals.safetensors"))
    assert stepped
    assert all(stepped)
    assert not without


def random_proposals(root: Path, split: str, out: Path) -> None:
    """What `fpn predict` would write."""
    annotations = root / "annotations" / f"instances_{split}2017.json"
    ids = read_annotations(annotations).image_ids.tolist()
    corner = 60 * torch.rand(len(ids), 30, 2)
    boxes = torch.cat((corner, corner + 5 + 30 * torch.rand(len(ids), 30, 2)), dim=2)
    stamp = Stamp(file_hash(annotations), annotations.name, "", "random")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_proposals(out, ids, list(boxes), list(torch.rand(len(ids), 30)), stamp)


def test_runs_of_another_model_data_or_schedule_are_not_called_the_rows(tmp_path: Path) -> None:
    def data(*given: str) -> str:
        (task,) = plan(["table1"], ["c"], given=given)
        assert task.about is not None
        return str(task.about["data"])

    machine = tmp_path / "machine.yaml"
    machine.write_text("trainer: {devices: 8, strategy: ddp}\ndata: {init_args: {num_workers: 8}}\n")
    same = ["--data.root", "/data/coco", "--trainer.devices", "8", "--config", str(machine)]
    same += ["--trainer.val_check_interval", "5000"]
    assert data() == data(*same) == "coco"
    other = data("--trainer.devices", "8", "--model.schedule.length", "0.1", "--model.optimizer.lr=1")
    assert other == "coco, with --model.schedule.length 0.1, with --model.optimizer.lr 1"
    assert data("--data.images.scale", "0.5") == "coco, with --data.images.scale 0.5"
    # The paper's images a step on fewer GPUs, to which the schedule is scaled.
    assert data("--data.batch_size", "1", "--trainer.accumulate_grad_batches", "8") == "coco"
    assert data("--data.val.annotations", "/data/instances_val2017.json") == "coco"
    assert data("--data.val.annotations", "easy.json") == "coco, with --data.val.annotations easy.json"
    assert data("--trainer.callbacks+=EarlyStopping").endswith("with --trainer.callbacks [EarlyStopping]")
    assert data("--trainer.max_steps=-1") == "coco, with --trainer.max_steps -1"
    assert data("--trainer.precision", "bf16-mixed") == "coco, with --trainer.precision bf16-mixed"
    assert data("--trainer.sync_batchnorm=true") == "coco, with --trainer.sync_batchnorm true"
    wide = tmp_path / "wide.yaml"
    wide.write_text("model: {detector: {init_args: {neck: {channels: 512}}}}\n")
    assert data(f"--config={wide}") == "coco, with --model.detector.neck.channels 512"


def test_a_dashboard_is_told_which_row_it_is() -> None:
    *_, task = plan(["table2"], ["c"], seeds=[3], wandb=True, given=["--model.schedule.length", "0.1"])
    for step in task.steps:
        words = step.words
        _, dashboard = json.loads(words[words.index("--trainer.logger") + 1])
        told = dashboard["init_args"]
        assert told["tags"] == ["table2", "table2 c", "paper", "coco"]
        assert (told["name"], told["group"]) == ("table2 c seed_3", "table2/c")
        row = {"table": "table2", "row": "c", "name": "FPN", "seed": 3, "family": "paper"}
        assert told["about"] == {"study": row | {"data": "coco, with --model.schedule.length 0.1"}}
    first, *_ = plan(["table3"], ["star"], wandb=True)
    _, dashboard = json.loads(first.steps[0].words[first.steps[0].words.index("--trainer.logger") + 1])
    assert dashboard["init_args"]["about"]["study"]["stage"] == "1_rpn"


def test_anchors_of_other_sizes_or_ratios_are_not_counted() -> None:
    def anchors(*given: str, data: str = "coco") -> object:
        (task,) = plan(["table1"], ["c"], data=data, given=given)
        return (task.about or {}).get("anchors")

    assert anchors(data="shapes") is None, "its images are of another size"

    assert anchors("--model.detector.rpn.shared", "false") == 199_974
    assert (
        anchors("--model.detector.rpn.sizes", "{2: [32, 45], 3: [64], 4: [128], 5: [256], 6: [512]}") is None
    )
    assert anchors("--model.detector.init_args.rpn.init_args.ratios", "[1.0]") is None


def test_proposals_are_made_on_the_machine_that_is_given(tmp_path: Path) -> None:
    def words(*given: str, data: str = "coco", gpus: int = 1) -> list[str]:
        first, _ = plan(["table2"], ["c"], data=data, given=given, devices_per_run=gpus)
        return [word for step in first.steps if step.name.startswith("propose") for word in step.words]

    assert not {"--device", "--devices", "--precision"} & set(words("--trainer.accelerator", "gpu"))
    eight = list(pairwise(words(gpus=8)))
    assert eight.count(("--devices", "8")) == 2
    assert list(pairwise(words(gpus=0))).count(("--device", "cpu")) == 2
    assert "--device" not in words("--trainer.accelerator", "mps", gpus=0)
    told = words("--trainer.accelerator=cpu", "--trainer.precision", "bf16-mixed")
    for option, value in (("--device", "cpu"), ("--precision", "bf16-mixed")):
        assert [after for word, after in pairwise(told) if word == option] == [value, value]
    for short, full in (("bf16", "bf16-mixed"), ("16", "16-mixed"), ("32", "32-true")):
        assert ("--precision", full) in set(pairwise(words("--trainer.precision", short)))
    with pytest.raises(InputError, match="precision is bf16-true"):
        words("--trainer.precision", "bf16-true")
    file = tmp_path / "mine.yaml"
    file.write_text("trainer: {precision: 16, accelerator: cpu}\n")
    assert {("--precision", "16-mixed"), ("--device", "cpu")} <= set(pairwise(words(data=str(file))))
    told = words("--trainer.precision", "32-true", data=str(file))
    assert [after for word, after in pairwise(told) if word == "--precision"] == ["32-true", "32-true"]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ckpt_path", "other.ckpt"),
        ("seed_everything", "3"),
        ("data.seed", "3"),
        ("trainer.enable_checkpointing", "false"),
        ("trainer.fast_dev_run", "true"),
        ("trainer.logger", "false"),
        ("trainer.logger+", "fpn.lit.wandb.Dashboard"),
        ("trainer.logger.init_args.save_dir", "elsewhere"),
        ("data.init_args.train.proposals", "mine.safetensors"),
    ],
)
def test_what_each_run_has_of_its_own_cannot_be_given(name: str, value: str) -> None:
    told = name.replace(".init_args", "").rstrip("+")
    with pytest.raises(InputError, match=f"{told} is what a study sets"):
        plan(["table1"], ["c"], given=[f"--{name}", value])


def test_nor_by_a_file() -> None:
    with pytest.raises(InputError, match=r"trainer\.logger.* --wandb"):
        plan(["table1"], ["c"], given=["--config", str(CONFIGS / "wandb.yaml")])
    with pytest.raises(InputError, match=r"nowhere\.yaml"):
        plan(["table1"], ["c"], given=["--config", "nowhere.yaml"])


def test_plans() -> None:
    names = [task.name for task in plan(["table2"], ["d", "f"], seeds=[0, 1])]
    assert names == [f"{row}/seed_{seed}" for seed in (0, 1) for row in ("table1/c", "table2/d", "table2/f")]
    four = plan(["table5"], ["resnet50_shared"])
    unshared, shared = (f"table5/resnet50_{kind}/seed_0" for kind in ("unshared", "shared"))
    assert [(task.name, tuple(need.name for need in task.needs)) for task in four] == [
        (f"{unshared}/1_rpn", ()),
        (unshared, (f"{unshared}/1_rpn",)),
        (f"{shared}/3_rpn", (unshared,)),
        (f"{shared}/4_fast_rcnn", (f"{shared}/3_rpn", unshared)),
        (shared, (f"{shared}/4_fast_rcnn",)),
    ]
    assert [bool(task.about) for task in four] == [False, True, False, False, True]


@pytest.mark.parametrize("tables", [["table1", "table2"], ["table2", "table1"]])
def test_a_row_that_another_table_needs_is_made_once_and_writes_its_proposals(tables: list[str]) -> None:
    tasks = plan(tables, seeds=[0, 1])
    names = [task.name for task in tasks]
    rows = {f"{table}/{key}/seed_{seed}" for table in tables for key in TABLES[table] for seed in (0, 1)}
    assert sorted(names) == sorted(rows)
    for place, task in enumerate(tasks):
        assert {need.name for need in task.needs} <= set(names[:place])
        proposes = any(step.name == "propose_train" for step in task.steps)
        assert proposes == task.name.startswith("table1/c/")


def test_the_image_pyramid_tests_the_detector_of_another_row() -> None:
    training, tested = plan(["table1"], ["a_image_pyramid"])
    assert (training.name, tested.needs) == ("table1/a_multi_scale/seed_0", (training,))
    (test,) = tested.steps
    assert test.words[0] == "test"
    assert "runs/study/table1/a_multi_scale/seed_0/last.ckpt" in test.words
    assert "anchors" not in (tested.about or {}), "it has those of five images"


def test_the_image_pyramid_is_tested_at_the_sizes_that_are_trained_on(
    tiny_shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    trained_on, tested_on = set(), []
    losses, over_scales = ProposalNetwork.losses, ProposalNetwork.over_scales

    def losses_spy(self: ProposalNetwork, batch: Batch, *more: Any) -> Any:
        trained_on.update(max(size) for size in batch.sizes)
        return losses(self, batch, *more)

    def over_scales_spy(self: ProposalNetwork, batches: Sequence[Batch]) -> Inference:
        tested_on.append([max(batch.sizes[0]) for batch in batches])
        return over_scales(self, batches)

    monkeypatch.setattr(ProposalNetwork, "losses", losses_spy)
    monkeypatch.setattr(ProposalNetwork, "over_scales", over_scales_spy)
    given = [*tiny(tiny_shapes), "--model.detector.bottom_up.width", "4"]
    training, tested = plan(["table1"], ["a_image_pyramid"], data="shapes", out="study", given=given)
    twelve = [
        "--model.schedule.steps",
        "3",
        "--model.schedule.milestones",
        "[]",
        "--model.schedule.length",
        "1",
    ]
    main([*training.steps[0].words, *twelve])
    (last,) = Path("study", training.name).glob("version_0/checkpoints/last.ckpt")
    shutil.copy(last, Path("study", training.name, "last.ckpt"))
    main(tested.steps[0].words)
    assert tested_on
    assert tested_on == [[48, 72, 96, 120, 144]] * len(tested_on)
    assert trained_on == {48, 72, 96, 120, 144}
    (scores,) = Path("study", tested.name).glob("version_*/scores.json")
    assert "proposal_AR@100" in json.loads(scores.read_text())


def test_a_file_of_the_users_own_is_a_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = Path("c_wide.yaml")
    file.write_text("\n# \n# FPN with a wide neck\n# more\nmodel: {detector: {neck: {channels: 512}}}\n")
    shipped, own = plan(["table1"], ["c", "./c_wide.yaml"])
    about = {"table": "table1", "row": "c_wide", "name": "FPN with a wide neck", "seed": 0}
    assert own.name == "table1/c_wide/seed_0"
    assert own.about == about | {"family": "paper", "data": "coco"}, "its anchors are not known"
    # The same words; but what the file says comes after the recipe.
    words = [word.replace("table1/c/", "table1/c_wide/") for word in shipped.steps[0].words]
    place, recipe = (words.index(str(CONFIGS / name)) for name in ("table1/c_fpn.yaml", "paper/rpn.yaml"))
    assert recipe == place + 2
    words[place], words[recipe] = words[recipe], str(file)
    assert words == list(own.steps[0].words)
    own_neck = resolved(own.steps[0].words)["model"]["detector"]["init_args"]["neck"]["init_args"]
    assert own_neck["channels"] == 512

    def names(table: str, **more: Any) -> list[str]:
        return [task.name for task in plan([table], ["c_wide.yaml"], **more)]

    assert names("table2") == ["table1/c/seed_0", "table2/c_wide/seed_0"]
    assert names("table3") == ["table3/c_wide/seed_0/1_rpn", "table3/c_wide/seed_0"]
    assert names("table3", family="modern") == names("table3")[1:]
    (doubled,) = plan(["table4"], ["c_wide.yaml"])
    assert str(CONFIGS / "paper/double_schedule.yaml") in doubled.steps[0].words
    (tracked,) = plan(["table1"], ["c_wide.yaml"], wandb=True)
    _, dashboard = json.loads(dict(pairwise(tracked.steps[0].words))["--trainer.logger"])
    assert dashboard["init_args"]["group"] == "table1/c_wide"
    with pytest.raises(InputError, match="table5 compares ways of training"):
        names("table5")
    Path("other").mkdir()
    Path("other/c_wide.yaml").write_text("model: {detector: {neck: {channels: 64}}}")
    with pytest.raises(InputError, match=r"c_wide\.yaml and other/c_wide\.yaml are both table1/c_wide"):
        plan(["table1"], ["c_wide.yaml", "other/c_wide.yaml"])
    file.rename("c.yaml")
    with pytest.raises(InputError, match=r"table1 has a row 'c' of its own: give \./c.yaml another name"):
        plan(["table1"], ["./c.yaml"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["table9"],), "no table 'table9'; there are table1"),
        ((["table1"], ["g"]), "table1 has no row 'g'; it has a, b, c"),
        ((["table1", "table2"], ["c"]), "rows are of one table, not of table1, table2"),
        ((["table1", "table2"], [], [0], "modern"), "leave out --family"),
        ((["table1"], ["a_multi_scale"], [0], "modern"), "says at which scales it trains"),
        ((["recipes"], ["multi_scale"], [0], "modern"), "as the modern family does: leave out --family"),
        ((["table1"], ["c"], [0], "paper", "imagenet"), "imagenet: no such file, nor a configuration"),
    ],
)
def test_plans_that_make_no_sense(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan(*arguments)
