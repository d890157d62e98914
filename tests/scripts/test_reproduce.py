"""The script for whoever has COCO: what it would do and refuses, its page, and small runs of its steps."""

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from detectron2_peer import detector_weights, without_roi_heads
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
)

import reproduce_page
from fpn.study.rows import plan

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "reproduce_coco.sh"


def script(*words: str, status: int = 0, python: str = sys.executable) -> str:
    """What it prints before it ends with this status."""
    command, environment = ["bash", str(SCRIPT), *words], os.environ | {"PYTHON": python}
    done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout if status == 0 else done.stdout + done.stderr


def options(settings: Mapping[str, object]) -> list[str]:
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(content))


def table_of(page: Path) -> dict[str, list[str]]:
    """The cells of a page's table, by the first."""
    rows = [line.strip("| ").split(" | ") for line in page.read_text().splitlines() if line.startswith("|")]
    return {first: cells for first, *cells in rows[2:]}  # below heads and rule


@pytest.mark.long
def test_a_dry_run_says_what_would_be_done_and_writes_nothing(tmp_path: Path) -> None:
    (tmp_path / "d2").mkdir()
    (tmp_path / "d2" / "model_final_b275ba.pkl").touch()
    write(tmp_path / "out" / "published" / "torchvision_v2" / "scores.json", {"AP": 0.467})
    before = sorted(tmp_path.rglob("*"))
    words = ["--out", str(tmp_path / "out"), "--detectron2", str(tmp_path / "d2"), "--devices", "4"]
    words += ["--steps", "modern,torchvision,detectron2", "--images_per_second", "100", "--dry-run"]
    said = script("nowhere", *words, "--", "--data.batch_size", "4")
    assert "4.0 h at 100 images/s (as given)" in said  # 90k steps of 16 images
    assert "torchvision_v2: scored earlier" in said
    assert said.count("left out, as there is no") == 3
    lines = said.splitlines()
    (one,) = (line for line in lines if "detectron2_r50_1x: " in line and " test " in line)
    for part in (
        "--config conventions/detectron2 --config interop/detectron2_r50_1x",
        "d2/model_final_b275ba",
    ):
        assert part in one
    assert one.count("--trainer.devices 4 --data.root nowhere --data.batch_size 4") == 1
    (fit,) = (line for line in lines if " fit --config" in line)
    assert "modern/faster_rcnn.yaml" in fit
    assert "--data.root nowhere --data.batch_size 4" in fit
    # In order of cost, whatever that of the words.
    places = [said.index(f"{name}: /") for name in ("torchvision_coco_v1", "detectron2_r50_1x")]
    assert [*places, said.index(fit)] == sorted([*places, said.index(fit)])
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--steps", "modern,table9"], "no step table9; there are torchvision,detectron2,modern,paper"),
        (["--devices", "all"], "--devices all: give a number of GPUs"),
        (["--images_per_second", "0.0"], "--images_per_second 0.0: give a number above 0"),
        (["--images_per_second", "1.2.3"], "--images_per_second 1.2.3: give a number above 0"),
        (["--detectron2", "nowhere"], "nowhere: no such folder"),
        (["--out"], "--out needs a value"),
        (["--epochs", "3"], "no option --epochs; --help lists them"),
        (["one", "two"], "two roots of COCO, one and two: give one"),
        (["nowhere"], "nowhere/val2017 is missing: give the root of COCO 2017"),
    ],
)
def test_bad_words_get_one_line(words: list[str], message: str) -> None:
    assert script(*words, status=2) == f"reproduce_coco.sh: {message}\n"


def test_the_needs_of_a_training_are_those_counted_otherwise() -> None:
    """torchvision's detector has the same layers; SGD keeps a number for each weight that is trained."""
    tasks = {task.name: task for task in plan(["table2", "table3"])}
    assert reproduce_page.images_of(tasks["table2/a/seed_0"].steps[0]) == 80_000 * 16
    for words, images in (
        (["length", "5e-1"], 40_000 * 16),
        (["steps", "3"], 48),
        (["epochs", "2"], 236_574),
    ):
        given = [f"--model.schedule.{words[0]}", words[1]]
        assert reproduce_page.images_of(plan(["table2"], ["a"], given=given)[-1].steps[0]) == images
    with pytest.raises(reproduce_page.InputError, match="give numbers"):
        reproduce_page.images_of(
            plan(["table1"], ["a"], given=["--model.schedule.length", "long"])[0].steps[0]
        )
    (joint,) = plan(["table3"], ["c"], family="modern")
    with torch.device("meta"):
        theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=81)
    frozen = ("backbone.body.conv1", "backbone.body.bn1", "backbone.body.layer1")
    weights = {name: w.numel() for name, w in theirs.named_parameters()}
    trained = sum(n for name, n in weights.items() if not name.startswith(frozen) and ".bn" not in name)
    expected = 4 * (sum(value.numel() for value in theirs.state_dict().values()) + trained)
    ours = reproduce_page.checkpoint_bytes(reproduce_page.detector_of(joint.steps[0]))
    assert ours == pytest.approx(expected, rel=1e-3)


def test_hours_are_counted_by_hand(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """Of 23 trainings of 16 images a step, 13 have 40k steps and 10 have 80k, of these 3 with conv5 as head.

    Detectron2 takes 0.551 s a step on C4 and 0.210 on FPN, and its 8 V100 train 76 images/s on FPN.
    """
    images, slow = 16 * (13 * 40_000 + 10 * 80_000), 16 * 3 * 80_000
    reproduce_page.needs(["torchvision", "paper"], tmp_path, 2, 0, [])
    said = capsys.readouterr().out
    assert f"{images:,} images to train on, in 23 of the runs" in said
    hours = (images - slow + slow * 0.551 / 0.210) / (2 * 76 / 8) / 3600
    assert f"time: {hours:.1f} h at 19 images/s (Detectron2's, 9.5 a V100)" in said
    assert "    table2 a, table3 star, table3 a count 2.6 times" in said
    kinds = (FasterRCNN_ResNet50_FPN_Weights, FasterRCNN_ResNet50_FPN_V2_Weights)
    kinds += (FasterRCNN_MobileNet_V3_Large_FPN_Weights, FasterRCNN_MobileNet_V3_Large_320_FPN_Weights)
    megabytes = sum(kind.COCO_V1.meta["_file_size"] for kind in kinds)  # of 2**20 bytes
    assert f"{megabytes * 2**20 / 1e9:.1f} GB of weights to download" in said
    for rate, told in (
        (0, "not known on a CPU; give --images_per_second\n"),
        (5, "80.0 h at 5 images/s (as given)"),
    ):
        reproduce_page.needs(["modern"], tmp_path, 0, rate, [])  # 90k steps of 16 images
        assert f"  time: {told}" in capsys.readouterr().out


def test_a_folder_of_results_is_of_one_coco_and_tells_of_other_words(tmp_path: Path) -> None:
    for root, images in (("coco", 5000), ("moved", 5000), ("excerpt", 79)):
        write(tmp_path / root / "annotations" / "instances_val2017.json", {"images": [0] * images})
        (tmp_path / root / "val2017").mkdir()
    out = tmp_path / "out"
    coco, moved, excerpt = (
        [str(tmp_path / root), "--out", str(out), "--steps", "detectron2", "--devices", "0"]
        for root in ("coco", "moved", "excerpt")
    )
    script(*coco, "--dry-run", python="true")
    assert not out.exists()
    assert script(*coco, python="true").count("left out without --detectron2") == 4
    script(*excerpt, "--dry-run", python="true")
    before = {file: file.read_bytes() for file in out.rglob("*")}
    annotations = tmp_path / "excerpt" / "annotations" / "instances_val2017.json"
    assert script(*excerpt, status=2, python="true") == (
        f"reproduce_coco.sh: {out} has results of other annotations than {annotations}: give another --out\n"
    )
    assert {file: file.read_bytes() for file in out.rglob("*")} == before
    for name, words in (
        ("rpn_1x", "--trainer.limit_test_batches\n2\n"),
        ("r50_1x", "--data.num_workers\n2\n"),
    ):
        write(out / "published" / f"detectron2_{name}" / "scores.json", {})
        (out / "published" / f"detectron2_{name}" / "words.txt").write_text(words)
    only = tmp_path / "python"
    only.write_text(f'#!/bin/sh\n[ "$2" != differs ] || exec {shlex.quote(sys.executable)} "$@"\n')
    only.chmod(0o755)
    said = script(*moved, "--", "--data.num_workers", "0", status=1, python=str(only)).splitlines()
    assert "detectron2_r50_1x: scored earlier" in said  # which makes no other result
    reason = "trainer.limit_test_batches was 2, now not given"
    remedy = f"give another --out, or remove {out}/published/detectron2_rpn_1x"
    assert f"detectron2_rpn_1x: scored earlier with other words ({reason}): {remedy}" in said


@pytest.mark.parametrize(("ends", "begun"), [("ABRT", 4), ("KILL", 4), ("TERM", 1), ("HUP", 1)])
def test_what_crashes_is_outlived_and_what_is_asked_to_end_ends_all(
    ends: str, begun: int, tmp_path: Path
) -> None:
    write(tmp_path / "coco" / "annotations" / "instances_val2017.json", {"images": []})
    (tmp_path / "coco" / "val2017").mkdir()
    crashes = tmp_path / "python"
    crashes.write_text(f'#!/bin/sh\n[ "$2" != fpn ] || kill -{ends} $$\n')
    crashes.chmod(0o755)
    words = [
        str(tmp_path / "coco"),
        "--out",
        str(tmp_path / "out"),
        "--steps",
        "torchvision",
        "--devices",
        "0",
    ]
    status = 1 if begun == 4 else 128 + signal.Signals[f"SIG{ends}"]
    command, environment = ["bash", str(SCRIPT), *words], os.environ | {"PYTHON": str(crashes)}
    # A program that the tests were started by may ignore a hang-up, and the script then does too.
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        done = subprocess.run(command, env=environment, text=True, capture_output=True, check=False)
    finally:
        signal.signal(signal.SIGHUP, before)
    assert done.stdout.count(" -m fpn test ") == begun
    assert done.returncode == status


def test_the_page_has_results_beside_others(tmp_path: Path) -> None:
    write(tmp_path / "published" / "torchvision_coco_v1" / "scores.json", {"AP": 0.3698})
    write(tmp_path / "published" / "detectron2_rpn_1x" / "scores.json", {"proposal_AR@1000": 0.581})
    (tmp_path / "published" / "detectron2_rpn_1x" / "words.txt").write_text(
        "--trainer.limit_test_batches\n2\n"
    )
    about = {"seed": 0, "name": "FPN", "data": "coco"}
    for family, table, scores in (
        ("modern", "table3", {"AP": 0.377}),
        ("paper", "table1", {"proposal_AR@1000": 0.565, "AP": None}),
        ("paper", "table2", None),
    ):
        folder = tmp_path / family / table / "c" / "seed_0"
        write(folder / "run.json", about | {"table": table, "row": "c", "family": family})
        if scores:
            write(folder / "scores.json", scores)
    about |= {"table": "table2", "row": "d", "family": "paper"}
    for seed, score in ((0, None), (1, 0.34), (2, 0.35)):
        folder = tmp_path / "paper" / "table2" / "d" / f"seed_{seed}"
        write(folder / "run.json", about | {"seed": seed})
        if score:
            write(folder / "scores.json", {"AP": score})
    reproduce_page.page(tmp_path)
    table = table_of(tmp_path / "results.md")
    v1 = ["AP", "-", "37.0", "37.0", "-", "-0.0", "torchvision, COCO val2017"]
    assert table["torchvision_coco_v1, published weights"] == v1
    assert table["detectron2_rpn_1x, published weights"][:6] == ["AR@1000", "-", "58.0", "58.1", "-", "+0.1"]
    assert table["table3 c, FPN, modern recipe"][:6] == ["AP", "33.9", "37.9", "37.7", "+3.8", "-0.2"]
    assert table["table1 c, FPN, paper recipe"][:6] == ["AR@1000", "56.3", "57.2", "56.5", "+0.2", "-0.7"]
    assert table["table2 c, FPN, paper recipe"][:4] == ["AP", "33.9", "36.4", "-"]
    text = (tmp_path / "results.md").read_text()
    missing = text.partition("## Missing")[2].partition("##")[0]
    several = "table2 d, bottom-up pyramid, paper recipe, seed 1 (2 more in the report)"
    assert table[several][3] == "34.0"
    assert missing.count("\n- ") == len(table) - 5
    assert "- table2 c, FPN, paper recipe" in missing
    assert "- `--trainer.limit_test_batches 2`: detectron2_rpn_1x, published weights\n" in text
    assert (tmp_path / "report" / "report.md").is_file()
    (tmp_path / "published" / "torchvision_coco_v1" / "scores.json").write_text("{")
    with pytest.raises(reproduce_page.InputError, match="remove it, and it is scored again"):
        reproduce_page.page(tmp_path)


SMALL = {
    "data.images.short_side": 96,
    "data.images.max_side": 160,
    "data.num_workers": 0,
    "trainer.limit_val_batches": 1,
    "trainer.limit_test_batches": 1,
}
SLIM = {
    "model.detector.bottom_up.weights": "null",
    "model.detector.bottom_up.frozen_stages": 0,
    "model.detector.bottom_up.width": 8,
    "model.schedule.length": 0.00002,
    "data.batch_size": 8,
}


@pytest.mark.long
@pytest.mark.coco_mini
def test_its_steps_run_and_are_passed_over_the_second_time(coco_mini: Path, tmp_path: Path) -> None:
    """All steps but the paper's tables, which the modern one's command trains too, of other rows."""
    nothing = {"weights": None, "weights_backbone": None}
    for make, file in (
        (fasterrcnn_mobilenet_v3_large_fpn, "fasterrcnn_mobilenet_v3_large_fpn-fb6a3cc7.pth"),
        (fasterrcnn_mobilenet_v3_large_320_fpn, "fasterrcnn_mobilenet_v3_large_320_fpn-907ea3f9.pth"),
    ):
        torch.save(make(**nothing).state_dict(), tmp_path / file)
    torch.save(without_roi_heads(detector_weights(classes=80)), tmp_path / "model_final_02ce48.pkl")
    words = [str(coco_mini), "--devices", "0", "--out", str(tmp_path / "out")]
    of_files = ["--torchvision", str(tmp_path), "--detectron2", str(tmp_path)]
    scoring = [*words, "--steps", "torchvision,detectron2", *of_files, "--", *options(SMALL)]
    training = [*words, "--steps", "modern", "--", *options(SMALL | SLIM)]
    begun = tmp_path / "out" / "published" / "detectron2_rpn_1x.begun"
    write(begun / "config.yaml", {})  # of a test that was killed
    assert script(*scoring).count("written to") == 4  # and the page
    assert not begun.exists()
    assert "table3/c/seed_0: finished in" in script(*training)
    table = table_of(tmp_path / "out" / "results.md")
    done = [name for name, cells in table.items() if cells[3] != "-"]
    assert [name.partition(",")[0].partition(" ")[0] for name in done] == [
        *("torchvision_mobilenet", "torchvision_mobilenet_320", "detectron2_rpn_1x", "table3")
    ]
    again = script(*scoring)
    assert again.count("scored earlier") == 3
    assert again.count("left out, as there is no") == 5
    assert "finished earlier" in script(*training)
