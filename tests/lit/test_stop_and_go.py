"""Runs that are asked to end, as clusters do, or are killed, and go on."""

import csv
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lit_runs import TEN_STEPS, at_call, best_of, kept, rows
from processes import Started, pair, together

from fpn.lit.callbacks import Scores
from fpn.lit.cli import main
from fpn.lit.stopping import EndOnSignal

RUNS = Path("runs/tiny")
EVERY_STEP = ["--trainer.callbacks+=fpn.lit.stopping.EndOnSignal", "--trainer.callbacks.every_n_steps=1"]


@pytest.mark.parametrize(
    ("hook", "call", "number"),
    [
        pytest.param("on_train_batch_end", 2, signal.SIGTERM, marks=pytest.mark.long),
        ("on_train_batch_end", 5, signal.SIGUSR1),
        ("on_validation_batch_end", 2, signal.SIGINT),
        ("on_validation_batch_end", 7, signal.SIGTERM),  # the last
        pytest.param("on_validation_end", 1, signal.SIGUSR1, marks=pytest.mark.long),
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
    capfd: pytest.CaptureFixture[str],
) -> None:
    """By the same command, as a cluster starts it again."""
    given = ["fit", "--config", config, "--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    given += ["--ckpt_path", "last"]
    with monkeypatch.context() as patch:
        ask = at_call(call, getattr(Scores, hook), lambda *_: os.kill(os.getpid(), number))
        patch.setattr(Scores, hook, ask)
        with pytest.raises(SystemExit) as caught:
            main(given)
    assert caught.value.code == 128 + number
    printed = capfd.readouterr().err
    assert f"fpn: ended by {number.name};" in printed
    assert printed.count("ending after this step; again to stop at once") == (number == signal.SIGINT)
    main(given)
    whole, begun, rest = (rows(run) for run in (unbroken, RUNS / "version_0", RUNS / "version_1"))
    steps = [row["step"] for row in rest if row["train/rpn_box"]]
    of_all = [row["step"] for row in whole if row["train/rpn_box"]]
    assert steps == of_all[len(of_all) - len(steps) :]
    assert len(begun) + len(rest) >= len(whole)
    assert rest == whole[-len(rest) :]
    # The clock starts with the run, not with an epoch: else the first rate is over the machine's uptime.
    with (RUNS / "version_1/metrics.csv").open() as file:
        assert all(float(row.get("train/images_per_second") or 1) > 0.01 for row in csv.DictReader(file))


@pytest.mark.filterwarnings("ignore:An epoch begun before may repeat or miss images")
def test_a_run_goes_on_with_half_the_batch_and_twice_the_accumulation(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on half the GPUs; the third step was the last, which is in the middle of one now."""
    given = ["fit", "--config", config, "--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    with monkeypatch.context() as patch:
        ask = at_call(3, Scores.on_train_batch_end, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(Scores, "on_train_batch_end", ask)
        with pytest.raises(SystemExit):
            main([*given, "--data.batch_size", "2"])
    half = ["--data.batch_size", "1", "--trainer.accumulate_grad_batches", "2"]
    main([*given, "--ckpt_path", "last", *half])
    assert rows(RUNS / "version_1")[-1]["step"] == "9"


@pytest.mark.parametrize(
    "hook", ["on_validation_batch_end", pytest.param("on_train_batch_end", marks=pytest.mark.long)]
)
def test_averaged_weights_go_on_too(hook: str, config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a validation they are in the place of those that are trained."""
    average = {"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging", "init_args": {"decay": 0.6}}
    given = ["fit", "--config", config, "--model.schedule", TEN_STEPS, "--trainer.num_sanity_val_steps", "0"]
    given.append(f"--trainer.callbacks={json.dumps([average])}")
    main(given)
    with monkeypatch.context() as patch:
        ask = at_call(2, getattr(Scores, hook), lambda *_: os.kill(os.getpid(), signal.SIGTERM))
        patch.setattr(Scores, hook, ask)
        with pytest.raises(SystemExit):
            main(given)
    main([*given, "--ckpt_path", str(RUNS / "version_1/checkpoints/last.ckpt")])
    whole, rest = (kept(RUNS / f"version_{version}", "last") for version in (0, 2))
    for weights in ("state_dict", "current_model_state"):
        assert all(torch.equal(whole[weights][name], rest[weights][name]) for name in whole[weights])
    name = "detector.neck.laterals.4.0.weight"
    assert not torch.equal(whole["state_dict"][name], whole["current_model_state"][name])


@pytest.fixture(autouse=True)
def _in_the_foreground() -> Iterator[None]:
    """A suite in the background ignores Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def handlers() -> Iterator[None]:
    """Those of signals, put back in the end."""
    numbers = (signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP, signal.SIGINT)
    before = {number: signal.getsignal(number) for number in numbers}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("handlers")
def test_a_signal_that_comes_while_processes_ask_each_other_is_not_lost() -> None:
    def reduce(number: torch.Tensor, reduce_op: str) -> torch.Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return number

    strategy = SimpleNamespace(root_device="cpu", reduce=reduce)
    connector = SimpleNamespace(received_sigterm=False)
    trainer: Any = SimpleNamespace(
        world_size=2,
        should_stop=False,
        global_step=3,
        max_steps=9,
        strategy=strategy,
        _signal_connector=connector,
    )
    callback, module = EndOnSignal(), Any
    callback.on_train_start(trainer, module)
    ended = []
    for _ in range(2):
        callback.on_train_epoch_end(trainer, module)
        ended.append(connector.received_sigterm)
    assert ended == [False, True]


@pytest.mark.usefixtures("handlers")
def test_a_process_alone_asks_nobody() -> None:
    connector = SimpleNamespace(received_sigterm=False)
    trainer: Any = SimpleNamespace(
        world_size=1, should_stop=False, global_step=3, max_steps=9, _signal_connector=connector
    )
    callback, module = EndOnSignal(), Any
    callback.on_train_start(trainer, module)
    callback.on_train_epoch_end(trainer, module)
    assert not connector.received_sigterm
    os.kill(os.getpid(), signal.SIGUSR1)
    callback.on_train_epoch_end(trainer, module)
    assert connector.received_sigterm


@pytest.mark.usefixtures("handlers")
def test_what_is_ignored_stays_ignored() -> None:
    """As a run under nohup is not to end with its terminal."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    callback, nothing = EndOnSignal(), Any
    callback.on_train_start(nothing, nothing)
    os.kill(os.getpid(), signal.SIGHUP)
    assert callback.asked == 0
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGINT)
    assert callback.asked == signal.SIGINT


def test_a_run_whose_terminal_is_gone_can_still_write() -> None:
    """Or the step under way would end in an error, and not in a checkpoint."""
    listener, output = os.pipe()
    os.close(listener)
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite under nohup ignores it
        for number in (1, 2):
            os.dup2(output, number)
        callback, nothing = EndOnSignal(), Any
        callback.on_train_start(nothing, nothing)
        os.kill(os.getpid(), signal.SIGHUP)
        try:
            os.write(1, b"step 1")
            os.write(2, b"a warning")
        except BrokenPipeError:
            os._exit(0)
        os._exit(callback.asked)
    os.close(output)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == signal.SIGHUP


def test_a_second_ctrl_c_stops_at_once(config: str, monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def insist(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("asked")
        os.kill(os.getpid(), signal.SIGINT)
        steps.append("went on")

    hook = "on_train_batch_end"
    monkeypatch.setattr(Scores, hook, at_call(2, getattr(Scores, hook), insist))
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", config])
    assert caught.value.code not in (None, 0)
    assert steps == ["asked"]
    assert not list(Path().rglob("*.ckpt"))


def test_a_slurm_job_is_left_to_its_script_and_goes_on_with_nothing_unasked(
    config: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
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
    with monkeypatch.context() as patch:
        patch.setattr(Scores, hook, ask)
        with pytest.raises(SystemExit) as caught:
            main(["fit", "--config", config])
    assert caught.value.code == 128 + signal.SIGUSR1
    assert not Path("scontrol.txt").exists()
    assert kept(RUNS / "version_0", "last")["global_step"] == 2
    assert [path.name for path in Path().rglob("*.ckpt")] == ["last.ckpt"]
    # As an earlier job may have left it.
    (RUNS / "version_0/checkpoints/last.ckpt").rename("hpc_ckpt_1.ckpt")
    with pytest.raises(SystemExit) as caught:
        main(["fit", "--config", config])
    assert caught.value.code == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"fpn: {Path.cwd()}/hpc_ckpt_1.ckpt: Lightning goes on with a file of this name")


@pytest.mark.parametrize(
    ("options", "to_all"),
    [
        # As a runner asks one of two processes.
        pytest.param(["--data.batch_size", "1", *EVERY_STEP], False, marks=pytest.mark.long),
        # As SLURM asks all that belongs to a job, workers included.
        (["--data.num_workers", "1"], True),
    ],
)
def test_processes_end_together_and_go_on(options: list[str], to_all: bool, config: str) -> None:
    """At no particular moment, long before the end."""
    steps = '{"steps": 20, "milestones": [15], "warmup_steps": 2, "reference_images": 2}'
    given = ["fit", "--config", config, "--model.schedule", steps, *options]
    run: Callable[[list[str]], object] = main if to_all else together
    run(given)
    with Started(given) if to_all else pair(given) as started:
        processes = [started] if isinstance(started, Started) else started
        processes[0].wait_for("step 3 of 20")
        (os.killpg if to_all else os.kill)(processes[0].pid, signal.SIGTERM)
        assert {one.status() for one in processes} == {128 + signal.SIGTERM}, processes[0].said()
        assert "".join(one.said() for one in processes).count("fpn: ended by SIGTERM") == 1
    last = RUNS / "version_1/checkpoints/last.ckpt"
    assert 3 <= kept(RUNS / "version_1", "last")["global_step"] < 20
    run([*given, "--ckpt_path", str(last)])
    unbroken, rest = (kept(RUNS / f"version_{v}", "last")["state_dict"] for v in (0, 2))
    assert all(torch.equal(unbroken[name], rest[name]) for name in unbroken)


STUCK = Path(__file__).parent / "stuck.py"
ONE_WORKER = ["--model.schedule", TEN_STEPS, "--data.num_workers", "1", "--trainer.num_sanity_val_steps", "0"]


def test_a_signal_ends_a_run_that_waits_for_its_images(config: str) -> None:
    """In the midst of the batches of a step, which are learned from once when it goes on."""
    given = ["fit", "--config", config, *ONE_WORKER, "--trainer.accumulate_grad_batches", "2"]
    given += ["--model.schedule.steps", "8"]
    main(given)
    with Started(given, script=STUCK) as started:
        started.wait_for("step 1 of 4", 30)
        while not Path("stuck.txt").exists():
            time.sleep(0.01)
        os.kill(started.pid, signal.SIGTERM)
        assert started.status(30) == 128 + signal.SIGTERM, started.said()
        assert started.said().count("fpn: ended by SIGTERM") == 1
        assert "Traceback" not in started.said()
    assert kept(RUNS / "version_1", "last")["global_step"] == 1
    main([*given, "--ckpt_path", str(RUNS / "version_1/checkpoints/last.ckpt")])
    unbroken, rest = (kept(RUNS / f"version_{v}", "last") for v in (0, 2))
    assert unbroken["global_step"] == rest["global_step"]
    assert all(torch.equal(rest["state_dict"][name], x) for name, x in unbroken["state_dict"].items())


def test_a_batch_that_does_not_come_ends_the_run_by_name(config: str) -> None:
    given = ["fit", "--config", config, *ONE_WORKER, "--data.load_timeout", "2"]
    with Started(given, script=STUCK) as started:
        assert started.status(60) == 2, started.said()
        lines = started.said().splitlines()
    assert "Traceback" not in "".join(lines)
    assert lines[-1].startswith("fpn: a batch did not come from its worker in 2 s, that of ")
    assert Path("stuck.txt").read_text() in lines[-1]
    assert lines[-1].count(".jpg") + lines[-1].count(".png") == 2
    assert "data.load_timeout" in lines[-1]
    assert kept(RUNS / "version_0", "last")["global_step"] == 3


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
    last = {"class_path": "fpn.lit.callbacks.LastCheckpoint", "init_args": {"every_n_steps": 3}}
    content["trainer"] |= {"val_check_interval": 2, "callbacks": [last]}
    Path(config).write_text(yaml.safe_dump(content))
    main(["fit", "--config", config])

    seed = random.SystemRandom().randrange(10**6)
    print(f"seed {seed}")  # noqa: T201
    chance = random.Random(seed)
    at = chance.randrange(4, 10)
    with Started(["fit", "--config", config]) as killed:
        killed.wait_for(f"step {at} of 12")
        time.sleep(chance.uniform(0, 0.05))
        os.kill(killed.pid, signal.SIGKILL)
        assert killed.status() in (-signal.SIGKILL, 0)
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
