"""Jobs on a cluster, with an sbatch that runs each here and now."""

import json
import os
import re
import runpy
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from fpn.errors import InputError
from fpn.study import pool
from fpn.study.commands import ablate
from fpn.study.slurm import script, submit
from fpn.study.tasks import Step, Task

HERE = Path(__file__).resolve().parent
TIME_OUT = 60.0

# Runs the script at once: what it needs was submitted before. Tells what it was given.
SBATCH = f"""#!{sys.executable} -S
import os, re, shlex, subprocess, sys
number = len(open("calls.txt").readlines()) + 1 if os.path.exists("calls.txt") else 1
open("calls.txt", "a").write(" ".join(sys.argv[1:]) + chr(10))
(output,) = shlex.split(re.search(r"^#SBATCH --output=(.*)$", open(sys.argv[-1]).read(), re.M)[1])
with open(output, "a") as file:
    environment = dict(os.environ, SLURM_JOB_ID=str(number), SLURM_NTASKS="1")
    environment.pop("FPN_IMPORT", None)
    subprocess.run(["bash", sys.argv[-1]], env=environment, stdout=file, stderr=file)
print(f"{{number}};cluster")
"""
SCONTROL = """#!/bin/sh
echo "$@" >> scontrol.txt
"""
SQUEUE = """#!/bin/sh
case "$*" in *--jobs=7*) echo RUNNING ;; *) echo "Invalid job id" >&2; exit 1 ;; esac
"""
# A job's command: one of three tasks, of which two need the first.
WORK = f"""
import sys
from pathlib import Path
from fpn.study.pool import run
from fpn.study.tasks import Step, Task

def task(name, *needs):
    words = ("fit", "8", "0.1", "--folder", f"study/{{name}}")
    return Task(name, Path("study"), (Step("fit", words, resumable=True, results=("last.ckpt",)),), needs)

stage = task("stage")
tasks = {{name: task(name, stage) for name in ("a", "b c")}} | {{"stage": stage}}
if __name__ == "__main__":
    sys.exit(run([tasks[sys.argv[1]]], program=(sys.executable, "-S", {str(HERE / "fake_program.py")!r})))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with SLURM's commands on the path."""
    monkeypatch.chdir(tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL), ("squeue", SQUEUE)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    Path("work.py").write_text(WORK)
    return tmp_path


def tasks() -> dict[str, Task]:
    found: dict[str, Task] = runpy.run_path("work.py")["tasks"]
    return {name: found[name] for name in ("stage", "a", "b c")}


def work(task: Task) -> list[str]:
    return [sys.executable, "work.py", task.name]


def steps(name: str) -> list[str]:
    path = Path("study") / name / "events.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.split(" ", 1)[1] for line in lines if " step " in line]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_OUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def a_task() -> Task:
    return Task("t/a", Path("study"), (Step("fit", ("fit",)),))


def lines_of(*given: str, devices: int = 1) -> dict[str, str]:
    """The #SBATCH lines."""
    text = script(a_task(), ["x"], given, devices)
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    keys = [line.partition("=")[0] for line in lines]
    assert len(set(keys)) == len(keys)
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def test_each_task_is_a_job_that_starts_after_those_it_needs(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    submit(list(tasks().values()), work)
    for name in ("stage", "a", "b c"):
        assert steps(name) == [f"step {i}" for i in range(8)]
        assert f"{name}: finished in " in Path("study", name, "slurm.txt").read_text()
    waits = "--parsable --dependency=afterok:1 --kill-on-invalid-dep=yes study/"
    calls = ["--parsable study/stage/job.sh", f"{waits}a/job.sh", f"{waits}b c/job.sh"]
    assert Path("calls.txt").read_text().splitlines() == calls
    assert "b c: job 3, afterok:1" in capsys.readouterr().out
    submit(list(tasks().values()), work)
    assert len(Path("calls.txt").read_text().splitlines()) == 3, "all are finished"
    assert "stage: finished earlier" in capsys.readouterr().out


def test_a_job_that_is_in_the_queue_is_waited_for(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, job in (("stage", "7"), ("a", "6")):  # the second is there no more
        Path("study", name).mkdir(parents=True)
        Path("study", name, "job.txt").write_text(f"{job} fit test")
    submit([tasks()["stage"], tasks()["a"]], work)
    printed = capsys.readouterr().out
    assert "stage: in the queue as job 7" in printed
    assert "a: job 1, afterok:7" in printed


def test_a_job_in_the_queue_that_does_less_is_followed_by_another(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table 1 waits when Table 2, which needs the proposals of one of its rows, is asked for."""
    Path("bin/sbatch").write_text('#!/bin/sh\necho "$@" >> calls.txt; expr 6 + $(wc -l < calls.txt)\n')
    words = ["--data", "shapes", "--rows", "c", "--slurm"]
    assert ablate(["table1", *words]) == 0
    assert ablate(["table1", *words]) == 0
    assert ablate(["table1", *words, "time=1:00"]) == 0
    assert ablate(["table2", *words]) == 0
    printed = capsys.readouterr().out.splitlines()
    other = "as it was submitted (runs/study/table1/c/seed_0/job.sh): for what is given now, scancel 7 first"
    assert printed == [
        "table1/c/seed_0: job 7",
        "table1/c/seed_0: in the queue as job 7",
        f"table1/c/seed_0: in the queue as job 7, {other}",
        "table1/c/seed_0: job 8, afterany:7",
        "table2/c/seed_0: job 9, afterok:8",
    ]


def test_a_task_of_other_settings_does_not_keep_others_from_the_queue(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("bin/sbatch").write_text('#!/bin/sh\necho "$@" >> calls.txt; wc -l < calls.txt\n')
    begun = tasks()["stage"]
    begun.folder.mkdir(parents=True)
    begun.begin(begun.steps[0])
    record = Path("study/stage/fit.json")
    record.write_text(json.dumps(json.loads(record.read_text()) | {"settings": {"model.optimizer.lr": 1}}))
    assert submit([*tasks().values(), a_task()], work) == 1
    printed = capsys.readouterr().out
    assert "stage: not submitted: study/stage: of its fit, model.optimizer.lr was 1, now not given" in printed
    assert "a: not submitted, as it needs stage" in printed
    assert "t/a: job 1" in printed


def test_what_waits_already_counts_among_those_that_run_at_a_time(cluster: Path) -> None:
    Path("bin/sbatch").write_text('#!/bin/sh\necho "$@" >> calls.txt; expr 7 + $(wc -l < calls.txt)\n')
    Path("study/stage").mkdir(parents=True)
    Path("study/stage/job.txt").write_text("7 fit test")
    submit([tasks()["stage"], a_task()], work, at_once=1)
    assert "--dependency=afterany:7 " in Path("calls.txt").read_text()


def test_a_queue_that_does_not_answer_is_not_taken_for_empty(cluster: Path) -> None:
    Path("study/stage").mkdir(parents=True)
    Path("study/stage/job.txt").write_text("7 fit")
    Path("bin/squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out' >&2; exit 1\n")
    with pytest.raises(InputError, match="squeue refused --jobs=7: slurm_load_jobs error: Socket timed out"):
        submit([tasks()["stage"]], work)
    assert not Path("calls.txt").exists()


def test_only_some_run_at_a_time(cluster: Path) -> None:
    Path("bin/sbatch").write_text('#!/bin/sh\necho "$@" >> calls.txt; wc -l < calls.txt\n')
    submit(list(tasks().values()), work, at_once=2)
    last = Path("calls.txt").read_text().splitlines()[-1]
    assert "--dependency=afterok:1,afterany:1 " in last


def test_preempted_or_out_of_time_a_job_goes_on_where_it_was(cluster: Path) -> None:
    stage = tasks()["stage"]
    Path("job.sh").write_text(script(stage, work(stage)))
    environment = os.environ | {"SLURM_JOB_ID": "17", "SLURM_NTASKS": "1"}
    for number, requeued in ((signal.SIGTERM, []), (signal.SIGUSR1, ["requeue 17"])):
        so_far = len(steps("stage"))
        job = subprocess.Popen(["bash", "job.sh"], env=environment, start_new_session=True)
        eventually(lambda n=so_far: len(steps("stage")) > n)  # type: ignore[misc]
        job.send_signal(number)
        assert job.wait(TIME_OUT) == 143
        asked = Path("scontrol.txt").read_text().splitlines() if Path("scontrol.txt").exists() else []
        assert asked == requeued
        assert stage.next_step() is not None
    assert subprocess.run(["bash", "job.sh"], env=environment, check=False).returncode == 0
    assert steps("stage") == [f"step {i}" for i in range(8)]
    assert Path("scontrol.txt").read_text().splitlines() == ["requeue 17"]


def test_defaults_follow_the_number_of_gpus_and_give_way_to_options() -> None:
    eight = lines_of("partition=long", "exclusive", devices=8)
    assert eight["gpus-per-node"] == "8"
    assert eight["partition"] == "long"
    assert eight["exclusive"] == eight["requeue"] == ""
    own = lines_of("gres=gpu:a100:2", "cpus-per-task=3", "signal=B:USR1@9")
    assert own["gres"] == "gpu:a100:2"
    assert own["cpus-per-task"] == "3"
    assert own["signal"] == "B:USR1@9"
    assert "gpus-per-node" not in own
    assert "gpus-per-node" not in lines_of(devices=0)
    for option in ("array=0-3", "dependency=singleton", "=x", "partition gpu"):
        with pytest.raises(InputError, match="sbatch option"):
            lines_of(option)


def test_without_sbatch_and_refused_by_it(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("bin/sbatch").write_text("#!/bin/sh\necho 'sbatch: error: no such partition' >&2; exit 1\n")
    with pytest.raises(InputError, match=r"refused study/t/a/job\.sh: sbatch: error: no such partition"):
        submit([a_task()], work)
    monkeypatch.setenv("PATH", str(cluster / "none"))
    with pytest.raises(InputError, match="no sbatch on this machine"):
        submit([a_task()], work)


def told(monkeypatch: pytest.MonkeyPatch, words: Sequence[str]) -> list[list[str]]:
    """The calls of jobs that `fpn ablate` submits; each only tells what it was asked to run."""
    program = Path("fpn")
    program.write_text(
        f"#!{sys.executable} -S\nimport json, os, sys\n"
        "print(json.dumps([os.environ.get('FPN_IMPORT'), *sys.argv[1:]]), file=open('told.txt', 'a'))\n"
    )
    program.chmod(0o755)
    monkeypatch.setattr(pool, "PROGRAM", (str(program.resolve()),))
    assert ablate(words) == 0
    return [json.loads(line) for line in Path("told.txt").read_text().splitlines()]


def test_ablate_submits_the_words_that_plan_the_same_task(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FPN_IMPORT", "my_necks")
    Path("mine.yaml").write_text("# My own\nmodel: {detector: {neck: {channels: 128}}}\n")
    words = ["table3", "--rows", "star", "./mine.yaml", "--seeds", "0", "4", "--data", "shapes"]
    words += ["--out", "my study", "--devices_per_run", "2", "--wandb", "--slurm", "partition=gpu"]
    given = ["--", "--trainer.max_epochs", "1", "--dry-run"]  # the last, too, is for fpn
    calls = told(monkeypatch, [*words, *given])
    assert "--print_config" in calls.pop(0)  # the words are looked at first
    names = [
        f"table3/{row}/seed_{seed}{stage}"
        for seed in (0, 4)
        for row in ("star", "mine")
        for stage in ("/1_rpn", "")
    ]
    assert [call[call.index("--task") + 1] for call in calls] == names
    capsys.readouterr()
    for (modules, command, *again), name in zip(calls, names, strict=True):
        assert (modules, command) == ("my_necks", "ablate")
        assert again[again.index("--") :] == given
        own = again.index("--")
        assert ablate([*again[:own], "--dry-run", *again[own:]]) == 0
        printed = capsys.readouterr().out
        assert printed.startswith(name)
        assert "--trainer.max_epochs 1" in printed
        assert "fpn.lit.wandb.Dashboard" in printed


def test_ablate_told_to_do_nothing_does_nothing(cluster: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(cluster.rglob("*"))
    words = ["table2", "--rows", "c", "--data", "shapes", "--dry-run"]
    assert ablate([*words, "--slurm", "time=1:00:00"]) == 0
    text = capsys.readouterr().out
    calls = [shlex.split(line) for line in text.splitlines() if line.startswith("sbatch")]
    assert calls == [
        ["sbatch", "--parsable", "runs/study/table1/c/seed_0/job.sh"],
        [
            *("sbatch", "--parsable", "--dependency=afterok:JOB(table1/c/seed_0)"),
            *("--kill-on-invalid-dep=yes", "runs/study/table2/c/seed_0/job.sh"),
        ],
    ]
    assert len(re.findall("^#SBATCH --time=1:00:00$", text, re.M)) == 2
    assert ablate(words) == 0
    assert "table1/c/seed_0\n  fit: would start\n" in capsys.readouterr().out
    assert sorted(cluster.rglob("*")) == before


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (["--rows", "z"], "no row 'z'"),
        (["--jobs", "0"], "--jobs must be at least 1"),
        (["--devices_per_run", "-1", "--slurm", "--dry-run"], "--devices_per_run at least 0"),
        (["--seeds", "0", "-1"], "seed -1: give 0 or more"),
        (["--slurm", "array=3"], "sbatch option array"),
        (["--slurm", "nodes=2"], "a run of a study is on one node"),
        (["--", "--trainer.num_nodes", "2"], "trainer.num_nodes is what a study sets"),
        (["--task", "table1/z/seed_0"], "no task 'table1/z/seed_0' among these rows"),
        (
            ["--slurm", "--", "--model.optimiser.lr", "1"],
            "there is no option --model.optimiser.lr, but there is",
        ),
    ],
)
def test_ablate_refuses(cluster: Path, words: list[str], part: str) -> None:
    with pytest.raises(InputError, match=part):
        ablate(["table1", *words])


def test_the_script_refuses_in_one_line(cluster: Path) -> None:
    Path("file").write_text("")
    command = [sys.executable, str(HERE.parents[1] / "scripts" / "ablate.py"), "table1", "--rows", "c"]
    done = subprocess.run([*command, "--out", "file/study"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "fpn: file/study: Not a directory\n")
