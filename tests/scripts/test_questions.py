"""The measures of a study's detectors, by the script, from a study that is trained here for a step a row."""

import csv
import json
import sys
from pathlib import Path

import pytest

import questions
from fpn.data.shapes import generate_shapes
from fpn.lit.cli import main

NECK = "--model.detector.neck"
ROWS = {
    "c": [],
    "c_no_smoothing": [f"{NECK}.smooth", "false"],
    "d": [f"{NECK}.top_down", "false"],
    "e": [f"{NECK}.lateral", "false"],
    "c_nonlinearity": [f"{NECK}.nonlinearity", "true"],
    "f": [f"{NECK}.levels", "[2]", "--model.detector.rpn.sizes", "{2: [32]}"],
}
SETTINGS = """
trainer: {max_steps: 1, limit_val_batches: 0, accelerator: cpu, enable_model_summary: false, logger: false}
model:
  detector:
    class_path: fpn.ProposalNetwork
    init_args:
      bottom_up: {name: resnet10, width: 4, norm: batch}
      neck: {channels: 8}
  schedule: {steps: 1, milestones: [], warmup_steps: 0, reference_images: 2}
data: {images: {short_side: 64, max_side: 96}, batch_size: 2, num_workers: 0}
"""


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("study")
    generate_shapes(folder / "data", train=4, val=2, long_side=96)
    (folder / "settings.yaml").write_text(SETTINGS)
    for row, words in ROWS.items():
        own = folder / "table1" / row / "seed_0"
        given = [
            "fit",
            "--config",
            str(folder / "settings.yaml"),
            "--data.root",
            str(folder / "data"),
            *words,
        ]
        main([*given, "--trainer.default_root_dir", str(own)])
        (last,) = own.rglob("last.ckpt")
        last.rename(own / "last.ckpt")
        about = {"table": "table1", "row": row, "name": row, "seed": 0, "family": "paper", "data": "shapes"}
        (own / "run.json").write_text(json.dumps(about))
        (own / "scores.json").write_text("{}")
    begun = folder / "table1" / "c" / "seed_1"
    begun.mkdir()
    (begun / "run.json").write_text(json.dumps(about | {"row": "c", "seed": 1}))
    return folder


def ask(monkeypatch: pytest.MonkeyPatch, *words: object) -> int:
    monkeypatch.setattr(sys, "argv", ["questions.py", *map(str, words)])
    try:
        questions.main()
    except SystemExit as ending:
        return int(ending.code or 0)
    return 0


def test_every_run_is_measured(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "folder to be made" / "told.csv"
    rows = [row for row in ROWS if row != "f"]
    words = (study, "--data", study / "data", "--images", 2, "--out", out, "--rows", *rows)
    assert ask(monkeypatch, *words) == 0
    measured = list(csv.DictReader(out.open()))
    told = {one["row"]: one for one in measured}
    assert set(told) == set(rows)
    assert len(measured) == len(rows), "an unfinished run has nothing to measure"
    assert str(out) in capsys.readouterr().out.replace("\n", "")
    assert {one["images"] for one in measured} == {"2"}
    for row, one in told.items():
        assert {key.split("/")[1] for key in one if key.startswith("drifts")} == set("12345678")
        assert {key.split("/")[1] for key in one if key.startswith("likeness")} == {"2-3", "3-4", "4-5"}
        assert (one["block_edges/2/nearest"] == "") == (row == "e")  # infinite: all is enlarged
        assert (one["smoothing/random/4/images_after"] != "") == (row == "c")
        assert (one["drifts/4/map"] == one["drifts/4/map_bilinear"]) == (row == "d")
    for level in ("2", "3"):
        smoothed, plain = (
            [told[row][f"block_edges/{level}/{how}"] for how in ("nearest", "after 3×3")]
            for row in ("c", "c_no_smoothing")
        )
        assert smoothed[0] != smoothed[1]
        assert plain[0] == plain[1]


def test_mistakes_are_one_line(
    study: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = ("--data", study / "data")
    generate_shapes(tmp_path / "framed", train=1, val=1, long_side=96, scene="framed")
    (tmp_path / "file").touch()

    def before_anything_is_measured(*_: object) -> None:
        raise AssertionError

    for words, message in (
        ((study, *data, "--out", tmp_path), "is a folder: give a file to write"),
        ((study, *data, "--out", tmp_path / "file" / "told.csv"), str(tmp_path / "file")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(questions, "answers", before_anything_is_measured)
            assert ask(monkeypatch, *words) == 2
        assert message in capsys.readouterr().err
    for words, message in (
        ((study, *data, "--rows", "b"), "has no finished run of table1, row b"),
        ((study, *data, "--rows", "c", "c_no_smoothng"), "no finished run of table1, row c_no_smoothng"),
        ((study, *data, "--rows", "f"), "has no RPN on P2 to P5 of a feature pyramid"),
        ((study, *data, "--images", "0"), "images is 0: give 1 at least"),
        ((study, "--data", tmp_path / "framed"), "other categories: id 23 is absent / 'frame'"),
        ((tmp_path / "absent", *data), "no such folder"),
        ((study, "--data", tmp_path), "instances_val2017.json"),
    ):
        assert ask(monkeypatch, *words) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
