"""Validation images without an object: no score, told at the start, and never the best."""

import json
from pathlib import Path

import pytest

from fpn.evaluation.inputs import read_truth
from fpn.lit.cli import main


@pytest.fixture
def empty(config: str, shapes: Path) -> list[str]:
    """Options to validate on images in which there is nothing."""
    data = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    Path("empty.json").write_text(json.dumps(data | {"annotations": []}))
    return ["--config", config, "--data.val.annotations", "empty.json"]


def test_nan_is_told_at_the_start_and_never_the_best(
    empty: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.warns(UserWarning, match="empty.json has no object to find"):
        main(["fit", *empty])
    assert [path.name for path in Path("runs").rglob("*.ckpt")] == ["last.ckpt"]
    out = capsys.readouterr().out
    assert "best" not in out
    assert "last.ckpt" in out


@pytest.mark.parametrize("area", [0, -5, -0.5])
def test_an_area_of_no_object_is_the_boxs(area: float) -> None:
    data = {
        "images": [{"id": 5}],
        "categories": [{"id": 3, "name": "cat"}],
        "annotations": [{"image_id": 5, "category_id": 3, "bbox": [0, 0, 8, 8], "area": area}],
    }
    with pytest.warns(UserWarning, match="1 areas are 0 or less"):
        assert read_truth(data).areas.tolist() == [64]
