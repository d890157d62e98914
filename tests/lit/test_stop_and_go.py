"""Runs that are asked to end by SIGTERM, as clusters do, and go on."""

import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from fpn.lit.callbacks import Scores
from fpn.lit.cli import main

# Ten images in batches of two, five images to validate on.
STEPS = '{"steps": 10, "milestones": [8], "warmup_steps": 2, "reference_images": 2}'


def rows(version: int) -> list[dict[str, str]]:
    """What a run logged of losses and scores, in order."""
    path = Path(f"runs/tiny/version_{version}/metrics.csv")
    kept = ("step", "train/rpn_objectness", "train/rpn_box", "train/roi_class", "train/roi_box", "val/AP")
    kept += ("val/proposal_AR@1000",)
    found = [{k: v for k, v in row.items() if k in kept} for row in csv.DictReader(path.open())]
    return [row for row in found if any(v for k, v in row.items() if k != "step")]


@pytest.mark.parametrize(
    ("hook", "call"),
    [
        ("on_train_batch_end", 2),
        ("on_train_batch_end", 5),
        ("on_validation_batch_end", 2),
        ("on_validation_end", 1),
        ("on_train_epoch_end", 1),
    ],
)
def test_a_run_ended_by_sigterm_goes_on_as_if_it_had_not_been(
    hook: str, call: int, config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["fit", "--config", config, "--model.schedule", STEPS, "--trainer.num_sanity_val_steps", "0"]
    main(given)
    calls = 0
    original = getattr(Scores, hook)

    def ended(self: Callback, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        nonlocal calls
        original(self, trainer, *args, **kwargs)
        calls += 1
        if calls == call:
            os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(Scores, hook, ended)
        with pytest.raises(SystemExit) as caught:
            main(given)
    assert caught.value.code == 128 + signal.SIGTERM
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    main([*given, "--ckpt_path", last])
    unbroken, begun, rest = (rows(version) for version in (0, 1, 2))
    steps = [row["step"] for row in rest if row["train/rpn_box"]]
    assert steps == [row["step"] for row in unbroken if row["train/rpn_box"]][-len(steps) :]
    assert len(begun) + len(rest) >= len(unbroken)
    assert rest == unbroken[-len(rest) :]
    # The clock starts with the run, not with an epoch: else the first rate is over the machine's uptime.
    with Path("runs/tiny/version_2/metrics.csv").open() as file:
        assert all(float(row["train/images_per_second"] or 1) > 0.01 for row in csv.DictReader(file))


@pytest.mark.parametrize(
    ("options", "to_all"),
    [
        # As a runner asks one of two processes.
        (["--trainer.devices", "2", "--trainer.strategy", "ddp", "--data.batch_size", "1"], False),
        # As SLURM asks all that belongs to a job, workers included.
        (["--data.num_workers", "2"], True),
    ],
)
def test_processes_end_together_and_go_on(options: list[str], to_all: bool, config: str) -> None:
    """At no particular moment."""
    steps = '{"steps": 40, "milestones": [30], "warmup_steps": 2, "reference_images": 2}'
    given = [sys.executable, "-m", "fpn", "fit", "--config", config, "--model.schedule", steps, *options]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(given, check=True, capture_output=True, env=environment)
    stopped = subprocess.Popen(
        given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if "step 12 of 40" in line:
            (os.killpg if to_all else os.kill)(stopped.pid, signal.SIGTERM)
            break
    rest_of_output = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 128 + signal.SIGTERM, rest_of_output
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    step = torch.load(last, weights_only=True)["global_step"]
    assert 12 <= step < 40
    subprocess.run([*given, "--ckpt_path", last], check=True, capture_output=True, env=environment)
    unbroken, rest = (
        torch.load(f"runs/tiny/version_{v}/checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for v in (0, 2)
    )
    assert all(torch.equal(unbroken[name], rest[name]) for name in unbroken)
