"""A callback or logger that fails costs nothing that was trained, and is named in one line."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lit_runs import TEN_STEPS, at_call, kept, rows

from fpn.lit.cli import main
from fpn.lit.metrics_file import MetricsFile

RUNS = Path("runs/tiny")


class Failing(Callback):
    """As a user's may."""


def fail(*_: Any) -> None:
    raise KeyError("no such\nthing")


def fit(config: str, *given: str) -> None:
    steps = ["--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    main(["fit", "--config", config, *steps, *given])


@pytest.mark.parametrize(
    ("hook", "call", "step"),
    [
        pytest.param("on_train_batch_start", 4, 3, marks=pytest.mark.long),
        ("on_before_optimizer_step", 4, 3),
        pytest.param("on_train_batch_end", 3, 3, marks=pytest.mark.long),
        ("on_train_batch_end", 5, 5),  # the last of an epoch, not validated yet
        pytest.param("on_validation_epoch_start", 1, 5, marks=pytest.mark.long),
        ("on_validation_end", 2, 10),
        pytest.param("on_train_epoch_end", 1, 5, marks=pytest.mark.long),
        ("log_metrics", 10, 5),  # of the logger: two rows a step, the rate and the losses
    ],
)
def test_a_failing_callback_leaves_a_checkpoint(
    hook: str,
    call: int,
    step: int,
    config: str,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    failing: type = MetricsFile if hook == "log_metrics" else Failing
    given = [f"--trainer.callbacks={__name__}.Failing"]
    with monkeypatch.context() as patch:
        original = at_call(call, getattr(failing, hook), fail)
        patch.setattr(failing, hook, lambda self, *given, **named: original(self, *given, **named))
        with pytest.raises(SystemExit) as caught:
            fit(config, *given)
    assert caught.value.code == 2
    printed = capsys.readouterr().err
    assert "Traceback" not in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("fpn: "))
    kind = "logger MetricsFile" if hook == "log_metrics" else "callback Failing"
    last = RUNS / "version_0/checkpoints/last.ckpt"
    assert line.startswith(f"fpn: the {kind} failed: KeyError: 'no such\\nthing'; {last} is ")
    assert line.endswith(": a fit goes on with --ckpt_path of it")
    assert kept(RUNS / "version_0", "last")["global_step"] == step

    fit(config, *given, "--ckpt_path", str(last))
    whole, begun, rest = (rows(run) for run in (unbroken, RUNS / "version_0", RUNS / "version_1"))
    assert rest == whole[len(whole) - len(rest) :]
    assert [row["step"] for row in begun + rest if row["val/AP"]].count("4") == 1 or hook.startswith("on_val")
    expected, found = (kept(run, "last")["state_dict"] for run in (unbroken, RUNS / "version_1"))
    assert all(torch.equal(found[name], value) for name, value in expected.items())


def test_the_whole_story_on_demand(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Failing, "on_train_start", fail)
    monkeypatch.setenv("FPN_TRACEBACK", "1")
    with pytest.raises(ValueError, match="the callback Failing failed: KeyError") as caught:
        fit(config, f"--trainer.callbacks={__name__}.Failing")
    assert isinstance(caught.value.__cause__, KeyError)
