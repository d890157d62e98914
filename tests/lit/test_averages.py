"""Averaged weights: from when on they are the ones that count, and going on without them."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import SingleDeviceStrategy
from lit_runs import TEN_STEPS, kept
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fpn.lit.callbacks import EMA, Scores
from fpn.lit.cli import main
from fpn.lit.module import DetectionModule

RUNS = Path("runs/tiny")
WEIGHT = "detector.neck.laterals.4.0.weight"


LIGHTNINGS = "lightning.pytorch.callbacks.EMAWeightAveraging"


def average(kind: str = LIGHTNINGS, **options: object) -> str:
    return f"--trainer.callbacks={json.dumps([{'class_path': kind, 'init_args': options}])}"


def weights(run: str, name: str, part: str = "state_dict") -> Tensor:
    found: Tensor = kept(RUNS / run, name)[part][WEIGHT]
    return found


def test_until_the_first_average_the_trained_weights_count(
    config: str,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["fit", "--config", config, "--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    main([*given, average(update_starting_at_step=100)])
    never = capsys.readouterr().out
    for name in ("last", "best"):
        expected, found = kept(unbroken, name), kept(RUNS / "version_0", name)
        assert found["global_step"] == expected["global_step"]
        assert all(
            torch.equal(found["state_dict"][key], value) for key, value in expected["state_dict"].items()
        )
    # The average begins with the weights of the ninth step, and is one of two steps.
    steps: list[Tensor] = []

    def record(_: Scores, trainer: Trainer, module: DetectionModule, *rest: Any) -> None:
        steps.append(module.state_dict()[WEIGHT].clone())

    monkeypatch.setattr(Scores, "on_train_batch_end", record)
    main([*given, average(update_starting_at_step=8, decay=0.9)])
    (told,) = (line for line in capsys.readouterr().out.splitlines() if line.startswith("step 5:"))
    assert told in never
    torch.testing.assert_close(weights("version_1", "last"), 0.9 * steps[8] + 0.1 * steps[9])
    assert torch.equal(weights("version_1", "last", "current_model_state"), steps[9])


def test_going_on_without_the_callback_is_told(config: str, caplog: pytest.LogCaptureFixture) -> None:
    few = json.dumps(json.loads(TEN_STEPS) | {"steps": 5})
    given = ["fit", "--config", config, "--trainer.num_sanity_val_steps", "0", "--model.schedule"]
    main([*given, few, average(decay=0.9)])
    main([*given, few])
    with pytest.warns(UserWarning, match="it goes on from those that were trained"):
        main([*given, TEN_STEPS, "--ckpt_path", str(RUNS / "version_0/checkpoints/last.ckpt")])
    main([*given, TEN_STEPS, "--ckpt_path", str(RUNS / "version_1/checkpoints/last.ckpt")])
    assert torch.equal(weights("version_2", "last"), weights("version_3", "last"))


def test_a_few_launches_average_as_tensorflow_does(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorFlow's documentation: min(decay, (1 + num_updates) / (10 + num_updates))."""
    decay = 0.3  # more than is kept at first, and less than is kept at last
    steps: list[dict[str, Tensor]] = []

    def record(_: Scores, trainer: Trainer, module: DetectionModule, *rest: Any) -> None:
        steps.append({name: value.clone() for name, value in module.state_dict().items()})

    monkeypatch.setattr(Scores, "on_train_batch_end", record)
    main(["fit", "--config", config, average("fpn.lit.callbacks.EMA", decay=decay)])
    expected = steps[0]
    for updates, weights in enumerate(steps[1:], 1):
        kept_share = min(decay, (1 + updates) / (10 + updates))
        expected = {
            name: kept_share * expected[name] + (1 - kept_share) * value
            if value.is_floating_point()
            else value
            for name, value in weights.items()
        }
    found = kept(RUNS / "version_0", "last")
    assert found["state_dict"].keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found["state_dict"][name], value)
    assert not torch.equal(expected[WEIGHT], found["current_model_state"][WEIGHT])


def test_the_average_is_where_the_module_will_train(tmp_path: Path) -> None:
    """When callbacks are set up, it is not there yet; an average elsewhere is copied at each step."""
    module = LightningModule()
    module.layer = nn.Linear(2, 2)
    strategy = SingleDeviceStrategy("meta")
    trainer = Trainer(strategy=strategy, accelerator="cpu", logger=False, default_root_dir=tmp_path)
    for given, expected in ((None, "meta"), ("cpu", "cpu")):
        callback = EMA(device=given)
        callback.setup(trainer, module, "fit")
        average = callback._average_model
        assert average is not None
        assert {value.device.type for value in average.module.parameters()} == {expected}


class One(LightningModule):
    """A weight that grows by one a step, and what it was when it was looked at."""

    def __init__(self, weight: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))
        self.seen: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return -self.weight

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.seen.append(self.weight.item())

    test_step = validation_step

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1.0)


@pytest.mark.filterwarnings("ignore:You defined a `validation_step`", "ignore:You're using the WeightAv")
def test_a_later_use_of_the_trainer_has_the_weights_it_is_given(tmp_path: Path) -> None:
    """Not those of the training before, with which Lightning's callback would go on."""
    batches = DataLoader([torch.zeros(1)] * 4)  # type: ignore[arg-type]
    average = EMA(decay=0.5)
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = Trainer(max_steps=4, callbacks=[average], default_root_dir=tmp_path, **options)
    trainer.fit(One(0.0), batches)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    scored, other = One(0.0), One(42.0)
    trainer.test(scored, batches, ckpt_path=str(tmp_path / "last.ckpt"), verbose=False, weights_only=True)
    assert scored.seen == [kept["state_dict"]["weight"].item()] * 4
    trainer.validate(other, batches, verbose=False)
    assert other.seen == [42.0] * 4
    again = Trainer(max_steps=3, callbacks=[average], default_root_dir=tmp_path / "again", **options)
    again.fit(One(0.0), batches)
    assert average._average_model is not None
    assert average._average_model.n_averaged == 3
