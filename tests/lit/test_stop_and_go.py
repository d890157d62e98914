"""Runs that are asked to end, as clusters do, or are killed, and go on."""

import csv
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from lit_runs import TEN_STEPS, at_call, best_of, kept, rows

from fpn.lit.callbacks import Scores
from fpn.lit.cli import main

RUNS = Path("runs/tiny")


@pytest.mark.parametrize(
    ("hook", "call", "number"),
    [
        ("on_train_batch_end", 2, signal.SIGTERM),
        ("on_train_batch_end", 5, signal.SIGUSR1),
        ("on_validation_batch_end", 2, signal.SIGTERM),
        ("on_validation_end", 1, signal.SIGUSR1),
        ("on_train_epoch_end", 1, signal.SIGTERM),
    ],
)
def test_a_run_ended_by_a_signal_goes_on_as_if_it_had_not_been(
    hook: str,
    call: int,
    number: signal.Signals,
    config: str,
    unbroken: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    given = ["fit", "--config", config, "--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    with monkeypatch.context() as patch:
        ask = at_call(call, getattr(Scores, hook), lambda *_: os.kill(os.getpid(), number))
        patch.setattr(Scores, hook, ask)
        with pytest.raises(SystemExit) as caught:
            main(given)
    assert caught.value.code == 128 + number
    assert f"fpn: ended by {number.name};" in capsys.readouterr().err
    main([*given, "--ckpt_path", str(RUNS / "version_0/checkpoints/last.ckpt")])
    whole, begun, rest = (rows(run) for run in (unbroken, RUNS / "version_0", RUNS / "version_1"))
    steps = [row["step"] for row in rest if row["train/rpn_box"]]
    assert steps == [row["step"] for row in whole if row["train/rpn_box"]][-len(steps) :]
    assert len(begun) + len(rest) >= len(whole)
    assert rest == whole[-len(rest) :]
    # The clock starts with the run, not with an epoch: else the first rate is over the machine's uptime.
    with (RUNS / "version_1/metrics.csv").open() as file:
        assert all(float(row["train/images_per_second"] or 1) > 0.01 for row in csv.DictReader(file))


def test_slurm_keeps_the_signal_by_which_it_puts_jobs_back(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "scontrol").write_text('#!/bin/sh\necho "$@" >> scontrol.txt\n')
    (commands / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    job = {"JOB_ID": "17", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for name, value in job.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    hook = "on_train_batch_end"
    ask = at_call(2, getattr(Scores, hook), lambda *_: os.kill(os.getpid(), signal.SIGUSR1))
    monkeypatch.setattr(Scores, hook, ask)
    main(["fit", "--config", config])
    assert Path("scontrol.txt").read_text() == "requeue 17\n"
    assert kept(RUNS / "version_0", "last")["global_step"] == 4


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
    steps = '{"steps": 24, "milestones": [20], "warmup_steps": 2, "reference_images": 2}'
    given = ["fit", "--config", config, "--model.schedule", steps, *options]
    program = [sys.executable, "-m", "fpn"]
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}

    def run(*more: str) -> None:
        if "ddp" in options:
            subprocess.run([*program, *given, *more], check=True, capture_output=True, env=environment)
        else:
            main([*given, *more])

    run()
    stopped = subprocess.Popen(
        [*program, *given],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )
    assert stopped.stdout is not None
    for line in stopped.stdout:
        if "step 12 of 24" in line:
            (os.killpg if to_all else os.kill)(stopped.pid, signal.SIGTERM)
            break
    rest_of_output = stopped.communicate(timeout=120)[0]
    assert stopped.returncode == 128 + signal.SIGTERM, rest_of_output
    assert rest_of_output.count("fpn: ended by SIGTERM") == 1
    last = RUNS / "version_1/checkpoints/last.ckpt"
    assert 12 <= kept(RUNS / "version_1", "last")["global_step"] < 24
    run("--ckpt_path", str(last))
    unbroken, rest = (kept(RUNS / f"version_{v}", "last")["state_dict"] for v in (0, 2))
    assert all(torch.equal(unbroken[name], rest[name]) for name in unbroken)


def test_a_killed_run_loses_what_came_after_the_last_checkpoint_only(config: str) -> None:
    """Losses, scores and the choice of the best checkpoint are those of a run that was not killed."""
    content = yaml.safe_load(Path(config).read_text())
    detector = content["model"]["detector"]
    for key in ("roi_head", "roi_sampling", "detections"):
        del detector[key]
    # Recall that first rises and then falls: the best checkpoint is an early one.
    detector["testing_proposals"] = {"pre_nms_top_n": 1000, "post_nms_top_n": 400}
    content["model"] |= {
        "detector": {"class_path": "fpn.ProposalNetwork", "init_args": detector},
        "optimizer": {"class_path": "fpn.lit.module.PaperSGD", "init_args": {"lr": 1.5}},
        "schedule": {"steps": 12, "milestones": [10], "warmup_steps": 2, "reference_images": 2},
    }
    last = {"class_path": "fpn.lit.checkpointing.LastCheckpoint", "init_args": {"every_n_steps": 3}}
    content["trainer"] |= {"val_check_interval": 2, "callbacks": [last]}
    Path(config).write_text(yaml.safe_dump(content))
    main(["fit", "--config", config])

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    at = chance.randrange(4, 10)
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    command = [sys.executable, "-m", "fpn", "fit", "--config", config]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as killed:
        assert killed.stdout is not None
        next(line for line in killed.stdout if f"step {at} of 12" in line)
        time.sleep(chance.uniform(0, 0.05))
        killed.kill()
    main(["fit", "--config", config, "--ckpt_path", str(RUNS / "version_1/checkpoints/last.ckpt")])

    whole, begun, rest = (rows(RUNS / f"version_{version}") for version in range(3))
    done = kept(RUNS / "version_1", "last")["global_step"]
    assert (at - 1) // 3 * 3 <= done <= 12
    assert begun == whole[: len(begun)]
    assert [row["step"] for row in rest if row["train/rpn_box"]] == [str(step) for step in range(done, 12)]
    assert rest == whole[-len(rest) :]
    assert len(begun) + len(rest) >= len(whole)

    best, again = (kept(RUNS / f"version_{version}", "best") for version in (0, 2))
    scores = {
        int(row["step"]) + 1: float(row["val/proposal_AR@1000"]) for row in whole if not row["train/rpn_box"]
    }
    assert best["global_step"] == max(scores, key=lambda step: scores[step]) < 12
    assert again["global_step"] == best["global_step"]
    assert all(torch.equal(again["state_dict"][name], value) for name, value in best["state_dict"].items())
    for version in (0, 2):
        told = best_of(kept(RUNS / f"version_{version}", "last"))
        assert float(told["best_model_score"]) == pytest.approx(max(scores.values()))
        assert Path(told["best_model_path"]) == RUNS / f"version_{version}/checkpoints/best.ckpt"


def test_a_best_checkpoint_that_is_not_the_remembered_one_is_not_taken_along(
    config: str, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """As when it was replaced between the last checkpoint and the end, or is gone."""
    main(["fit", "--config", config])
    last = RUNS / "version_0/checkpoints/last.ckpt"
    state = torch.load(last, weights_only=True)
    (told,) = (told for name, told in state["callbacks"].items() if name.startswith("BestCheckpoint"))
    told["best_model_score"] = told["best_model_score"] + 0.5
    torch.save(state, last)
    steps = json.dumps({"steps": 6, "milestones": [], "warmup_steps": 2, "reference_images": 2})
    caplog.clear()
    main(["fit", "--config", config, "--model.schedule", steps, "--ckpt_path", str(last)])
    assert "the best checkpoint is chosen anew" in capsys.readouterr().err + caplog.text
    assert kept(RUNS / "version_1", "best")["global_step"] > 4
