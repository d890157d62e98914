"""Real images: four of them learned by heart, and one epoch, test and prediction of a ResNet-50 over all."""

import json
from pathlib import Path

import pytest
import yaml

from fpn.lit.cli import main

pytestmark = pytest.mark.coco_mini


def four_images(coco_mini: Path, out: Path) -> Path:
    """A file with the first four images that have a few objects of some size each."""
    content = json.loads((coco_mini / "annotations" / "instances_train2017.json").read_text())
    chosen = []
    for image in content["images"]:
        mine = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        if 1 <= len(mine) <= 5 and all(a["area"] > 64**2 and not a["iscrowd"] for a in mine):
            chosen.append(image)
    content["images"] = chosen[:4]
    ids = {image["id"] for image in content["images"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    out.write_text(json.dumps(content))
    return out


@pytest.mark.long
def test_four_images_are_learned_by_heart(
    coco_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    file, images = str(four_images(coco_mini, tmp_path / "four.json")), str(coco_mini / "train2017")
    config = {
        "trainer": {"accelerator": "cpu", "check_val_every_n_epoch": 1000, "enable_model_summary": False},
        "model": {
            "detector": {
                "bottom_up": {"name": "resnet18", "norm": "group", "width": 16},
                "neck": {"channels": 32},
                "rpn": {"sizes": {2: [12], 3: [24], 4: [48], 5: [96], 6: [192]}},
                "roi_head": {"canonical_size": 84, "head": {"hidden": 256}},
                "roi_sampling": {"per_image": 64},
                "training_proposals": {"pre_nms_top_n": 200, "post_nms_top_n": 200},
            },
            "optimizer": {"class_path": "torch.optim.AdamW", "init_args": {"lr": 0.003}},
            "schedule": {"steps": 140, "milestones": [115], "warmup_steps": 20, "reference_images": 4},
        },
        "data": {
            "train": {"images": images, "annotations": file},
            "val": {"images": images, "annotations": file},
            "images": {"short_side": 96, "max_side": 144, "flip_probability": 0.0},
            "batch_size": 4,
            "num_workers": 0,
        },
    }
    Path("four.yaml").write_text(yaml.safe_dump(config))
    main(["fit", "--config", "four.yaml"])
    main(["test", "--ckpt_path", "runs/fpn/version_0/checkpoints/last.ckpt"])
    scores = json.loads(Path("runs/fpn/version_0/test/scores.json").read_text())
    # Every object is found; how tightly depends on the machine's rounding in so short a run.
    assert scores["AP50"] >= 0.9
    assert scores["AP"] >= 0.7


@pytest.mark.filterwarnings("ignore:the bottom-up starts from random weights")
def test_resnet50_over_all_of_it(coco_mini: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = str(Path(__file__).resolve().parents[2] / "configs" / "base.yaml")
    small = ["--data.images.short_side", "96", "--data.images.max_side", "160", "--data.num_workers", "0"]
    few = ["--model.detector.roi_sampling.per_image", "64"]
    few += ["--model.detector.testing_proposals.post_nms_top_n", "100"]
    few += ["--model.detector.bottom_up.width", "16", "--model.detector.neck.channels", "64"]
    few += ["--model.detector.roi_head.head.hidden", "64"]
    scratch = ["--model.detector.bottom_up.weights", "null", "--model.detector.bottom_up.frozen_stages", "0"]
    data = ["--data.root", str(coco_mini), "--trainer.accelerator", "cpu", "--data.batch_size", "8"]
    data += ["--trainer.limit_val_batches", "4"]  # all are tested below
    main(["fit", "--config", base, *data, *small, *few, *scratch, "--trainer.max_epochs", "1"])
    checkpoint = "runs/fpn/version_0/checkpoints/last.ckpt"
    main(["test", "--ckpt_path", checkpoint])
    truth = json.loads((coco_mini / "annotations" / "instances_val2017.json").read_text())
    scores = json.loads(Path("runs/fpn/version_0/test/scores.json").read_text())
    assert 0 <= scores["AP"] <= 1
    assert 0 < scores["proposal_AR@1000"] < 1
    main(
        ["predict", "--ckpt_path", checkpoint, "--images", str(coco_mini / "val2017"), "--pictures", "false"]
    )
    listed = json.loads(Path("predictions/predictions.json").read_text())["images"]
    sizes = {image["id"]: (image["height"], image["width"]) for image in truth["images"]}
    assert {image["id"]: (image["height"], image["width"]) for image in listed} == sizes
