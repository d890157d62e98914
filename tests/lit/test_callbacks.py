import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from pages import page_of

from fpn.evaluation import recall_curves
from fpn.evaluation.inputs import read_results, read_truth
from fpn.lit.cli import main


def test_a_test_writes_the_curves_of_its_proposals(config: str, shapes: Path) -> None:
    content = yaml.safe_load(Path(config).read_text())
    detector = content["model"]["detector"]
    for key in ("roi_head", "roi_sampling", "detections"):
        del detector[key]
    # So many that an untrained network finds some objects.
    detector["testing_proposals"] = {"pre_nms_top_n": 1000, "post_nms_top_n": 400}
    content["model"]["detector"] = {"class_path": "fpn.ProposalNetwork", "init_args": detector}
    Path(config).write_text(yaml.safe_dump(content))
    main(["fit", "--config", config])
    assert not list(Path("runs").rglob("curves.json")), "a validation has no curves"
    main(["test", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"])

    folder = Path("runs/tiny/version_0/test")
    curves = json.loads((folder / "curves.json").read_text())
    scores = json.loads((folder / "scores.json").read_text())
    truth = read_truth(shapes / "annotations" / "instances_val2017.json")
    proposals = read_results(folder / "proposals.json", truth, with_categories=False)
    assert curves == recall_curves(truth, proposals)
    average = dict(zip(curves["by_limit"]["limits"], curves["by_limit"]["AR"], strict=True))
    for limit in (100, 1000):
        assert average[limit] == pytest.approx(scores[f"proposal_AR@{limit}"])
        assert np.mean(curves["by_iou"][f"recall@{limit}"]) == pytest.approx(scores[f"proposal_AR@{limit}"])
    assert average[1000] > 0
    page = page_of(folder / "report.html")
    assert page.headings[1:] == ["Proposals", "Images", "Best", "Worst", "Training", "Settings and versions"]
    told = next(row for row in page.rows if row[:1] == ["all"])
    assert told[-2:] == [f"{100 * average[limit]:.1f}" for limit in (100, 1000)]


def test_no_interval_is_no_logging(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", config, "--trainer.log_every_n_steps", "0"])
    with Path("runs/tiny/version_0/metrics.csv").open() as file:
        columns = next(csv.reader(file))
    assert "val/AP" in columns
    assert not [name for name in columns if name.startswith("train/")]
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.partition(" (")[0] for line in told] == ["epoch 1, step 1 of 4"]


@pytest.mark.parametrize("accumulated", [1, pytest.param(2, marks=pytest.mark.long)])
def test_speed_is_logged_where_epochs_are_shorter_than_the_interval(config: str, accumulated: int) -> None:
    # Five batches an epoch.
    schedule = {"steps": 14, "milestones": [12], "warmup_steps": 2, "reference_images": 2 * accumulated}
    given = ["--model.schedule", json.dumps(schedule), "--trainer.accumulate_grad_batches", str(accumulated)]
    main(["fit", "--config", config, *given, "--trainer.log_every_n_steps", "7"])
    with Path("runs/tiny/version_0/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [int(row["step"]) for row in rows] == [6, 13]
    assert all(float(row["train/images_per_second"]) > 0 for row in rows)


def test_a_dry_run_of_a_test_writes_nothing(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    main(["fit", "--config", config])
    before = {path: path.stat().st_mtime_ns for path in Path().rglob("*")}
    capsys.readouterr()
    main(
        ["test", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt", "--trainer.fast_dev_run", "true"]
    )
    assert "AP50" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path().rglob("*")} == before
