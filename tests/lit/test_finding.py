"""Lightning's finders of a learning rate and of a batch size."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from lit_runs import kept, rows
from torch import Tensor

from fpn.lit.cli import main
from fpn.lit.optimizer import PaperSGD
from fpn.models.detectors import FasterRCNN

RUNS = Path("runs/tiny")


def finder(name: str, **options: object) -> str:
    one = {"class_path": f"lightning.pytorch.callbacks.{name}", "init_args": options}
    return f"--trainer.callbacks={json.dumps([one])}"


def test_the_learning_rate_found_is_the_optimisers(
    config: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Of a loss that falls at one step of the search; 4 images a step, and a learning rate meant for 8."""
    rates: list[float] = []
    original, step = FasterRCNN.losses, PaperSGD.step

    def losses(self: FasterRCNN, batch: Any, *given: Any) -> dict[str, Tensor]:
        found = original(self, batch, *given)
        if len(rates) >= 20:  # the search is over
            return found
        return {name: 0 * value + (1.0 if len(rates) < 15 else 0.0) for name, value in found.items()}

    def watched(self: PaperSGD, **given: Any) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return step(self, **given)

    monkeypatch.setattr(FasterRCNN, "losses", losses)
    monkeypatch.setattr(PaperSGD, "step", watched)
    given = ["fit", "--config", config, "--data.batch_size", "4", "--model.schedule.reference_images", "8"]
    options = {"min_lr": 1e-4, "max_lr": 0.1, "num_training_steps": 20, "early_stop_threshold": None}
    main([*given, finder("LearningRateFinder", **options)])
    content = yaml.safe_load((RUNS / "version_0/config.yaml").read_text())
    rate = content["model"]["optimizer"]["init_args"]["lr"]
    assert rates[13] <= rate / 2 <= rates[15]
    told = f"a learning rate of {rate / 2:.4g} at 4 images a step, which is model.optimizer.lr {rate:.4g}"
    assert any(told in line for line in caplog.messages)
    # The run is the one that this rate gives.
    assert max(rates[20:]) == pytest.approx(rate / 2)
    assert content["trainer"]["callbacks"] is None
    main([*given, "--model.optimizer.lr", str(rate)])
    assert rows(RUNS / "version_0") == rows(RUNS / "version_1")


@pytest.mark.parametrize(
    ("mode", "room", "found"),
    [
        ("power", 4, 4),
        pytest.param("power", 99, 8, marks=pytest.mark.long),
        pytest.param("binsearch", 6, 5, marks=pytest.mark.long),
    ],
)
def test_the_batch_size_found_is_the_datas(
    mode: str,
    room: int,
    found: int,
    config: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Ten images; a device with room for so many at a time."""
    original = FasterRCNN.losses

    def losses(self: FasterRCNN, batch: Any, *given: Any) -> Any:
        if len(batch.image_ids) > room:
            raise RuntimeError("CUDA out of memory.")
        return original(self, batch, *given)

    monkeypatch.setattr(FasterRCNN, "losses", losses)
    main(["fit", "--config", config, finder("BatchSizeFinder", mode=mode, steps_per_trial=1)])
    assert f"BatchSizeFinder found data.batch_size {found}" in caplog.messages
    last = kept(RUNS / "version_0", "last")
    assert last["fpn"]["images_per_step"] == found
    assert last["fpn"]["config"]["data"]["init_args"]["batch_size"] == found


def test_where_nothing_is_looked_for(
    config: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    look = finder("LearningRateFinder")
    main(["fit", "--config", config, "--trainer.max_steps", "2"])
    last = str(RUNS / "version_0/checkpoints/last.ckpt")
    main(["fit", "--config", config, "--ckpt_path", last, look])
    assert any("LearningRateFinder is left out: a run goes on with" in line for line in caplog.messages)
    for words in (["test", "--ckpt_path", last], ["fit", "--config", config, "--trainer.devices", "2"]):
        with pytest.raises(SystemExit):
            main([*words, look])
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("fpn: LearningRateFinder looks ")
