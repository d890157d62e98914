"""A small data set and the options of a small detector, for runs of the real command line."""

import json
from pathlib import Path

import pytest
import yaml
from lit_runs import TEN_STEPS

from fpn.data.shapes import generate_shapes
from fpn.lit.cli import main

TINY = {
    "trainer": {
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": 1,
        "enable_model_summary": False,
        "logger": {
            "class_path": "fpn.lit.metrics_file.MetricsFile",
            "init_args": {"save_dir": "runs", "name": "tiny"},
        },
    },
    "model": {
        "detector": {
            "bottom_up": {"name": "resnet18", "norm": "batch", "width": 8},
            "neck": {"channels": 8},
            "rpn": {"sizes": {2: [8], 3: [16], 4: [32], 5: [64], 6: [128]}},
            "roi_head": {"canonical_size": 56, "head": {"hidden": 16}},
            "training_proposals": {"pre_nms_top_n": 50, "post_nms_top_n": 50},
            "testing_proposals": {"pre_nms_top_n": 50, "post_nms_top_n": 50},
            "roi_sampling": {"per_image": 16},
            "detections": {"score_threshold": 0.0, "max_detections": 20},
        },
        "schedule": {"steps": 4, "milestones": [3], "warmup_steps": 2, "reference_images": 2},
    },
    "data": {"images": {"short_side": 96, "max_side": 96}, "batch_size": 2, "num_workers": 0},
}


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten training and five validation images."""
    root = tmp_path_factory.mktemp("shapes") / "shapes"
    generate_shapes(root, train=10, val=5, long_side=96)
    return root


@pytest.fixture
def config(tmp_path: Path, shapes: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A configuration file in a folder of its own, which is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return written(tmp_path, shapes)


@pytest.fixture(scope="session")
def unbroken(tmp_path_factory: pytest.TempPathFactory, shapes: Path) -> Path:
    """The folder of a run of ten steps, which nothing has stopped."""
    folder = tmp_path_factory.mktemp("unbroken")
    arguments = ["--trainer.logger.init_args.save_dir", str(folder), "--trainer.num_sanity_val_steps", "0"]
    main(["fit", "--config", written(folder, shapes), "--model.schedule", TEN_STEPS, *arguments])
    return folder / "tiny" / "version_0"


def written(folder: Path, shapes: Path) -> str:
    """The path of the configuration file."""
    content = json.loads(json.dumps(TINY))
    content["data"]["root"] = str(shapes)
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(content))
    return str(path)
