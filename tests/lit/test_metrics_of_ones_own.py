"""A metric that a user brings: one class, named in the configuration."""

import csv
from pathlib import Path

import pytest
from lit_runs import kept, scores_of
from processes import together

from fpn.lit.cli import main

FOUND = '''
import torch
from fpn.evaluation import Metric

class Found(Metric):
    """How many boxes are found in an image, and how many there are."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("images", "found", "true"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, batch, found) -> None:
        self.images += len(batch.image_ids)
        self.found += sum(len(one.boxes) for one in found.detections)
        self.true += sum(len(one.boxes) for one in batch.targets)

    def compute(self) -> dict[str, float]:
        return {"found": self.found / self.images, "true": self.true / self.images}
'''


def test_a_metric_of_ones_own(
    config: str, shapes: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import json

    monkeypatch.syspath_prepend(".")
    Path("counting.py").write_text(FOUND)
    given = ["--config", config, "--model.metrics+=counting.Found"]
    main(["fit", *given])
    with Path("runs/tiny/version_0/metrics.csv").open() as file:
        (row,) = (row for row in csv.DictReader(file) if row["val/found"])
    # 20 is detections.max_detections, reached at a score_threshold of 0.
    assert float(row["val/found"]) == 20
    truth = json.loads((shapes / "annotations" / "instances_val2017.json").read_text())
    objects = sum(not one["iscrowd"] for one in truth["annotations"]) / len(truth["images"])
    assert float(row["val/true"]) == pytest.approx(objects)
    assert row["val/AP"]
    assert f"found 20  true {objects:.4g}" in capsys.readouterr().out

    test = ["test", "--config", config, "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"]
    test += ["--model.metrics", '["fpn.evaluation.ProposalRecall", "counting.Found"]']
    main(test)
    assert "found 20\ntrue " in capsys.readouterr().out
    scores = scores_of(Path("runs/tiny/version_0/test"))
    assert (scores["found"], scores["true"]) == (20, pytest.approx(objects))
    assert "AP" not in scores
    together([*test, "--import", "counting"])
    assert scores_of(Path("runs/tiny/version_0/test_2")) == pytest.approx(scores, nan_ok=True)


def test_metrics_that_give_the_same_number(config: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", config, "--model.metrics+=fpn.evaluation.BoxAP"])
    assert caught.value.code == 2
    assert "model.metrics: BoxAP gives AP, as another metric does" in capsys.readouterr().err


def test_a_checkpoint_holds_nothing_of_metrics(
    config: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is scored by others than it was trained with, whatever they keep."""
    monkeypatch.syspath_prepend(".")
    first = "super().__init__()"
    assert first in FOUND
    buffer = "self.register_buffer('edges', torch.ones(3))"
    Path("edged.py").write_text(FOUND.replace(first, f"{first}; {buffer}"))
    main(["fit", "--config", config, "--model.metrics+=edged.Found"])
    last = "runs/tiny/version_0/checkpoints/last.ckpt"
    assert not [name for name in kept(Path("runs/tiny/version_0"), "last")["state_dict"] if "edges" in name]
    main(["test", "--ckpt_path", last, "--model.metrics", "[fpn.evaluation.ProposalRecall]"])
    main(["test", "--ckpt_path", last])
    assert "found 20" in capsys.readouterr().out
