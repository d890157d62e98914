"""Ids that are no small integers, through the real command line: results carry what the annotations have."""

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from fpn.lit.cli import main

BIG = 2**62


def renamed(source: Path, target: Path, names: dict[str, dict[int, Any]]) -> dict[str, Any]:
    """A copy of an annotation file with other ids; what it holds."""
    data: dict[str, Any] = json.loads(source.read_text())
    for kind in ("images", "categories"):
        for entry in data[kind]:
            entry["id"] = names[kind][entry["id"]]
    for entry in data["annotations"]:
        entry["image_id"] = names["images"][entry["image_id"]]
        entry["category_id"] = names["categories"][entry["category_id"]]
    target.write_text(json.dumps(data))
    return data


@pytest.mark.parametrize(
    "spelt", [lambda id_: str(uuid.uuid5(uuid.NAMESPACE_URL, str(id_))), lambda id_: BIG + id_]
)
def test_results_carry_the_annotations_own_ids(
    config: str, shapes: Path, tmp_path: Path, spelt: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--model.schedule.steps", "1", "--model.schedule.milestones", "[]"]
    for split in ("train", "val"):
        source = shapes / "annotations" / f"instances_{split}2017.json"
        listed = json.loads(source.read_text())
        names = {
            kind: {one["id"]: spelt(one["id"]) for one in listed[kind]} for kind in ("images", "categories")
        }
        data = renamed(source, tmp_path / f"{split}.json", names)
        arguments += [f"--data.{split}.annotations", str(tmp_path / f"{split}.json")]
    images, categories = ({one["id"] for one in data[kind]} for kind in ("images", "categories"))
    main(["fit", "--config", config, *arguments])
    main(["test", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"])
    tested = json.loads(next(Path("runs").rglob("detections.json")).read_text())
    common = ["--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--images", str(shapes / "val2017")]
    main(["predict", *common, "--annotations", "val.json", "--out", "found"])
    predicted = json.loads(Path("found/detections.json").read_text())
    for results in (tested, predicted):
        assert results
        assert {one["image_id"] for one in results} <= images
        assert {one["category_id"] for one in results} <= categories
    capsys.readouterr()
    main(["evaluate", "--annotations", "val.json", "--results", "found/detections.json"])
    assert "left out" not in capsys.readouterr().out
    main(["proposals", "found/detections.json", "found.safetensors", "--annotations", "val.json"])
    main(["proposals", "found.safetensors", "back.json", "--annotations", "val.json"])
    back = json.loads(Path("back.json").read_text())
    assert sorted(str(one["image_id"]) for one in back) == sorted(str(one["image_id"]) for one in predicted)
