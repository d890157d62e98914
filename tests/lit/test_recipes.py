"""Recipes together: trained, scored otherwise than trained, and loaded, by the real command line."""

from pathlib import Path

import pytest
import torch
from lit_runs import scores_of

import fpn
from fpn.lit.cli import main
from fpn.models.cascade import CascadeRCNN
from fpn.models.losses import GIoU
from fpn.models.roi_head import FourConvOneFC

TOGETHER = ("giou", "group_norm", "two_conv_rpn", "soft_nms", "cascade")


def test_recipes_combine(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that give a part another class come before the file that says how wide it is."""
    recipes = [word for name in TOGETHER for word in ("--config", f"recipes/{name}")]
    short = ["--trainer.max_steps", "2", "--trainer.num_sanity_val_steps", "0"]
    main(["fit", *recipes, "--config", config, *short])
    (last,) = Path("runs/tiny").glob("version_*/checkpoints/last.ckpt")
    log = (last.parents[1] / "metrics.csv").read_text()
    assert all(f"{split}/roi_box_{stage}" in log for split in ("train", "val") for stage in (1, 2, 3))
    trained = fpn.load(last).detector
    assert isinstance(trained, CascadeRCNN)
    assert isinstance(trained.roi_box_loss, GIoU)
    heads = [head.head["shared"] for head in trained.heads]
    assert all(isinstance(head, FourConvOneFC) and head.deltas.out_features == 4 for head in heads)
    assert heads[0].fc.out_features == 16
    assert heads[0].convs[0][0].out_channels == 8, "as wide as the neck"
    assert trained.later_ious == (0.6, 0.7)
    assert (trained.detections.suppression, trained.detections.score_threshold) == ("gaussian", 0.0)
    predictor = fpn.Predictor.of(fpn.load(last))
    assert len(predictor(torch.zeros(3, 60, 80, dtype=torch.uint8)).boxes) <= 20

    capsys.readouterr()
    main(["test", "--ckpt_path", str(last), "--model.detector.detections.suppression", "linear"])
    main(["test", "--ckpt_path", str(last), "--model.detector.detections.suppression", "hard"])
    runs = sorted(Path("runs").rglob("scores.json"))
    assert len(runs) == 2
    assert all("AP" in scores_of(run.parent) for run in runs)
