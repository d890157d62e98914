"""A step of training and one of validation on each layout, by the real command line."""

import logging
from collections.abc import Callable
from pathlib import Path

import layout_files
import pytest

from fpn.lit.cli import main

LAYOUTS: dict[str, tuple[Callable[[Path], Path], list[str], str]] = {
    "coco": (layout_files.coco, [], "COCO 2017: train 4 images, 6 objects, val 2 images, 3 objects"),
    "roboflow": (
        layout_files.roboflow,
        [],
        "Roboflow's COCO export: train 4 images, 6 objects, val 2 images",
    ),
    "yolo": (layout_files.yolo, [], "YOLO: train 4 images, 6 objects, val 2 images, 3 objects"),
    "voc": (layout_files.voc, [], "Pascal VOC: train 4 images, 6 objects, val 2 images, 3 objects"),
    "single": (layout_files.single, ["--data.val_share", "0.3"], "one COCO file: train 4 images"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_it_trains_on(layout: str, config: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    make, options, told = LAYOUTS[layout]
    root = make(tmp_path / "set")
    with caplog.at_level(logging.INFO):
        main(
            ["fit", "--config", config, "--data.root", str(root), *options, "--trainer.fast_dev_run", "true"]
        )
    lines = [record.getMessage() for record in caplog.records]
    assert sum(line.startswith(f"{root}: {told}") for line in lines) == 1
    assert any("max_steps=1" in line for line in lines)


def test_what_is_no_layout_is_one_line(
    config: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for photo in layout_files.PHOTOS["train"]:
        layout_files.draw(tmp_path / "set" / "photos", photo)
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", config, "--data.root", str(tmp_path / "set")])
    assert caught.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no layout that is known: COCO 2017" in line
    assert "Found there: photos/" in line
