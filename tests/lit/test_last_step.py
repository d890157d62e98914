"""The last step of a run is validated, whatever the interval, and no step twice."""

import json
from pathlib import Path

import pytest
from lit_runs import TEN_STEPS, best_of, kept, rows

from fpn.lit.cli import main

RUN = Path("runs/tiny/version_0")
TIMER = {"class_path": "lightning.pytorch.callbacks.Timer", "init_args": {"duration": {"microseconds": 1}}}
STOP = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"monitor": "val/loss"}}
STOP["init_args"] |= {"divergence_threshold": 0.0}  # at the first look


@pytest.mark.parametrize(
    ("options", "validated"),
    [
        # Five steps an epoch, ten steps in all.
        (["check_val_every_n_epoch=4"], [10]),
        pytest.param(
            ["check_val_every_n_epoch=4", "max_epochs=1", "min_epochs=1"], [5], marks=pytest.mark.long
        ),
        (["check_val_every_n_epoch=null", "val_check_interval=7"], [7, 10]),
        (["val_check_interval=0.4", "max_epochs=1"], [2, 4, 5]),
        pytest.param(["val_check_interval=5"], [5, 10], marks=pytest.mark.long),
        (["check_val_every_n_epoch=4", f"callbacks={json.dumps([TIMER])}"], [1]),
        (["val_check_interval=2", f"callbacks={json.dumps([STOP])}"], [2]),
        (["limit_val_batches=0"], []),
    ],
)
def test_the_last_step_is_validated(
    options: list[str], validated: list[int], config: str, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["limit_val_batches=1", "num_sanity_val_steps=0", *options]
    words = [f"--trainer.{option}" for option in few]
    main(["fit", "--config", config, "--model.schedule", TEN_STEPS, *words])
    assert [int(row["step"]) + 1 for row in rows(RUN) if row["val/AP"]] == validated
    assert (RUN / "checkpoints/best.ckpt").is_file() == bool(validated)
    last = kept(RUN, "last")
    assert last["global_step"] == (validated or [10])[-1]
    told = "ended early: Divergence threshold reached: val/loss = "
    assert (told in capsys.readouterr().out) == ("EarlyStopping" in options[-1])
    if validated:
        assert best_of(last)["best_model_path"] == str(RUN / "checkpoints/best.ckpt")
