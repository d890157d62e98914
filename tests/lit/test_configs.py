"""What the shipped configuration files resolve to, through the real parser."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fpn.data.options import ImageOptions
from fpn.lit.cli import main

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def resolved(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    with pytest.raises(SystemExit) as caught:
        main(["fit", *arguments, "--print_config"])
    assert caught.value.code == 0
    content: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return content


def test_base_is_the_papers(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(capsys, "--config", str(CONFIGS / "base.yaml"))
    detector = config["model"]["detector"]
    assert detector["class_path"].endswith("FasterRCNN")
    parts = detector["init_args"]
    bottom_up, neck = parts["bottom_up"]["init_args"], parts["neck"]["init_args"]
    assert (bottom_up["name"], bottom_up["weights"], bottom_up["norm"]) == (
        "resnet50",
        "IMAGENET1K_V1",
        "frozen",
    )
    toggles = ("lateral", "top_down", "smooth", "nonlinearity", "channels")
    assert [neck[name] for name in toggles] == [True, True, True, False, 256]
    sizes = {int(k): v for k, v in parts["rpn"]["init_args"]["sizes"].items()}
    assert sizes == {2: [32], 3: [64], 4: [128], 5: [256], 6: [512]}
    assert parts["anchor_sampling"]["per_image"] == 256
    assert parts["roi_sampling"]["per_image"] == 512
    assert parts["training_proposals"]["post_nms_top_n"] == 2000
    assert parts["testing_proposals"]["post_nms_top_n"] == 1000
    optimizer = config["model"]["optimizer"]["init_args"]
    assert optimizer == {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.0001, "fused": None}
    schedule = config["model"]["schedule"]
    assert (schedule["steps"], schedule["milestones"], schedule["reference_images"]) == (80000, [60000], 16)
    data = config["data"]["init_args"]
    images = ImageOptions(**data["images"]).settings
    assert (images.short_side, images.max_side, data["batch_size"]) == (800, 1333, 2)
    assert config["trainer"]["use_distributed_sampler"] is False


def test_defaults_without_any_file_are_the_papers_too(capsys: pytest.CaptureFixture[str]) -> None:
    base, bare = resolved(capsys, "--config", str(CONFIGS / "base.yaml")), resolved(capsys)
    bottom_up = base["model"]["detector"]["init_args"]["bottom_up"]["init_args"]
    assert (bottom_up.pop("weights"), bottom_up.pop("frozen_stages")) == ("IMAGENET1K_V1", 2)
    mine = bare["model"]["detector"]["init_args"]["bottom_up"]["init_args"]
    assert (mine.pop("weights"), mine.pop("frozen_stages")) == (None, 0)
    assert base["model"] == bare["model"]
    assert base["data"] == bare["data"]


def test_quickstart_draws_and_trains_at_the_same_size(capsys: pytest.CaptureFixture[str]) -> None:
    config = resolved(capsys, "--config", str(CONFIGS / "quickstart.yaml"))
    data = config["data"]["init_args"]
    assert config["data"]["class_path"].endswith("ShapesDataModule")
    # Nothing of the class whose place it takes is left behind.
    assert not {"root"} & data.keys()
    assert (data["images"]["short_side"], data["images"]["max_side"]) == (None, None)
    assert (data["folder"], data["long_side"], data["batch_size"]) == ("datasets/shapes", 256, 8)
    assert config["model"]["optimizer"]["class_path"] == "torch.optim.AdamW"
    assert config["model"]["schedule"]["reference_images"] == data["batch_size"]


@pytest.mark.parametrize(
    "toggle", ["neck.lateral", "neck.top_down", "neck.nonlinearity", "rpn.shared", "roi_head.shared"]
)
def test_a_toggle_is_one_line(toggle: str, capsys: pytest.CaptureFixture[str]) -> None:
    base = str(CONFIGS / "base.yaml")
    before = resolved(capsys, "--config", base)["model"]["detector"]["init_args"]
    part, name = toggle.split(".")
    wanted = not before[part]["init_args"][name]
    after = resolved(capsys, "--config", base, f"--model.detector.{toggle}", str(wanted).lower())
    before[part]["init_args"][name] = wanted
    assert after["model"]["detector"]["init_args"] == before
