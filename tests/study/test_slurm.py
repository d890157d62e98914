"""Array jobs, with an sbatch that runs every index here and now."""

import json
import os
import re
import runpy
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from fpn.errors import InputError
from fpn.study.rows import TABLES
from fpn.study.slurm import script, submit

HERE = Path(__file__).resolve().parent
ABLATE = HERE.parents[1] / "scripts" / "ablate.py"
TIME_OUT = 60.0

SBATCH = f"""#!{sys.executable} -S
import os, re, shlex, subprocess, sys
text = open(sys.argv[1]).read()
first, last = re.search(r"^#SBATCH --array=(\\d+)-(\\d+)$", text, re.M).groups()
(logs,) = shlex.split(re.search(r"^#SBATCH --output=(.*)$", text, re.M)[1])
for index in range(int(first), int(last) + 1):
    output = logs.replace("%x", "name").replace("%A", "17").replace("%a", str(index))
    environment = dict(os.environ, SLURM_ARRAY_JOB_ID="17", SLURM_ARRAY_TASK_ID=str(index), SLURM_NTASKS="1")
    with open(output, "a") as file:
        subprocess.run(["bash", sys.argv[1]], env=environment, stdout=file, stderr=file)
print("Submitted batch job 17")
"""
SCONTROL = """#!/bin/sh
echo "$@" >> scontrol.txt
"""
# One index's command: the tasks of its name and one that all need.
WORK = f"""
import sys
from fpn.study.runner import run
from fpn.study.tasks import Step, Task

def task(name, *needs):
    arguments = ("fit", "8", "0.2", "--folder", f"study/{{name}}/fit")
    return Task(name, (Step("fit", arguments, resumable=True, collect=("last.ckpt",)),), needs)

tasks = [task("stage"), task(sys.argv[1], "stage")]
sys.exit(run(tasks, "study", program=(sys.executable, "-S", {str(HERE / "fake_program.py")!r})))
"""


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with SLURM's commands on the path."""
    monkeypatch.chdir(tmp_path)
    commands = tmp_path / "bin"
    commands.mkdir()
    for name, text in (("sbatch", SBATCH), ("scontrol", SCONTROL)):
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    torch.save({}, "template.ckpt")
    monkeypatch.setenv("TEMPLATE", str(tmp_path / "template.ckpt"))
    Path("work.py").write_text(WORK)
    return tmp_path


def steps(name: str) -> list[str]:
    path = Path("study") / name / "events.txt"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [line.split(" ", 1)[1] for line in lines if " step " in line]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_OUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def lines_of(text: str) -> dict[str, str]:
    """The #SBATCH lines."""
    lines = [line.removeprefix("#SBATCH --") for line in text.splitlines() if line.startswith("#SBATCH --")]
    keys = [line.partition("=")[0] for line in lines]
    assert len(set(keys)) == len(keys)
    return {line.partition("=")[0]: line.partition("=")[2] for line in lines}


def test_every_index_runs_its_command_and_what_they_share_is_run_once(cluster: Path) -> None:
    commands = [[sys.executable, "work.py", name] for name in ("a b", "c")]
    text = script("table1", commands, "study/slurm")
    assert submit(text, "study/slurm/table1.sh") == "Submitted batch job 17"
    for name in ("stage", "a b", "c"):
        assert steps(name) == [f"step {i}" for i in range(8)]
    logs = [Path(f"study/slurm/name-17_{index}.txt").read_text() for index in range(2)]
    assert "stage: finished (" in logs[0]
    assert "a b: finished (" in logs[0]
    assert "stage: finished earlier" in logs[1]
    assert "c: finished (" in logs[1]


def test_preempted_or_out_of_time_a_job_goes_on_where_it_was(cluster: Path) -> None:
    path = cluster / "job.sh"
    path.write_text(script("table1", [[sys.executable, "work.py", "a"]], "."))
    environment = os.environ | {"SLURM_ARRAY_JOB_ID": "17", "SLURM_ARRAY_TASK_ID": "0", "SLURM_NTASKS": "1"}
    for number, requeued in ((signal.SIGTERM, []), (signal.SIGUSR1, ["requeue 17_0"])):
        so_far = len(steps("stage"))
        job = subprocess.Popen(["bash", str(path)], env=environment, start_new_session=True)
        eventually(lambda n=so_far: len(steps("stage")) > n + 1)  # type: ignore[misc]
        job.send_signal(number)
        assert job.wait(TIME_OUT) == 143
        asked = Path("scontrol.txt").read_text().splitlines() if Path("scontrol.txt").exists() else []
        assert asked == requeued
        assert not Path("study/stage/fit.done").exists()
    assert subprocess.run(["bash", str(path)], env=environment, check=False).returncode == 0
    for name in ("stage", "a"):
        assert steps(name) == [f"step {i}" for i in range(8)]
    assert Path("scontrol.txt").read_text().splitlines() == ["requeue 17_0"]


def test_defaults_follow_the_number_of_gpus_and_give_way_to_options(tmp_path: Path) -> None:
    eight = lines_of(script("t", [["x"]] * 3, tmp_path, ["partition=long", "exclusive"], 8, at_once=2))
    assert eight["gpus-per-node"] == "8"
    assert eight["partition"] == "long"
    assert eight["exclusive"] == ""
    assert eight["array"] == "0-2%2"
    own = lines_of(script("t", [["x"]], tmp_path, ["gres=gpu:a100:2", "cpus-per-task=3", "signal=B:USR1@9"]))
    assert own["gres"] == "gpu:a100:2"
    assert own["cpus-per-task"] == "3"
    assert own["signal"] == "B:USR1@9"
    assert "gpus-per-node" not in own
    assert "gpus-per-node" not in lines_of(script("t", [["x"]], tmp_path, devices=0))
    for option in ("array=0-3", "=x", "partition gpu"):
        with pytest.raises(InputError, match="sbatch option"):
            script("t", [["x"]], tmp_path, [option])


def test_without_sbatch_and_refused_by_it(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cluster / "bin" / "sbatch").write_text(
        "#!/bin/sh\necho 'sbatch: error: no such partition' >&2; exit 1\n"
    )
    with pytest.raises(InputError, match=r"sbatch refused job\.sh: sbatch: error: no such partition"):
        submit("text", "job.sh")
    monkeypatch.setenv("PATH", str(cluster / "none"))
    with pytest.raises(InputError, match=r"submit on the cluster: sbatch new/job\.sh"):
        submit("text", "new/job.sh")
    assert Path("new/job.sh").read_text() == "text"


def ablate(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status of scripts/ablate.py."""
    monkeypatch.setattr(sys, "argv", [str(ABLATE), *words])
    try:
        status: int = runpy.run_path(str(ABLATE))["main"]()
    except SystemExit as ending:
        return int(ending.code or 0)
    return status


def test_ablate_submits_an_index_for_each_row_and_seed(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    # Each index tells what it was asked to run instead of running it.
    told = '#!/bin/sh\nfor word in "$@"; do printf \'%s\\n\' "$word"; done >> told.txt; echo . >> told.txt\n'
    Path("python").write_text(told)
    Path("python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(cluster / "python"))
    words = ["table3", "--rows", "star", "c", "--seeds", "0", "4", "--data", "shapes", "--out", "my study"]
    words += ["--devices_per_run", "2", "--wandb", "--slurm", "partition=gpu"]
    given = ["--", "--trainer.max_epochs", "1", "--dry-run"]  # the last, too, is for fpn
    assert ablate(monkeypatch, *words, *given) == 0
    printed = capsys.readouterr().out
    assert "Submitted batch job 17: 4 runs by my study/slurm/table3-" in printed
    calls = [call.split("\n") for call in Path("told.txt").read_text().removesuffix("\n.\n").split("\n.\n")]
    assert [(c[c.index("--rows") + 1], c[c.index("--seeds") + 1]) for c in calls] == [
        (row, seed) for seed in ("0", "4") for row in ("star", "c")
    ]
    for call in calls:
        assert call[:2] == [str(ABLATE), "table3"]
        assert call[call.index("--") :] == given
        asked = dict(pairwise(call))
        assert (asked["--out"], asked["--data"], asked["--devices_per_run"]) == ("my study", "shapes", "2")
        assert "--wandb" in call
        assert "--slurm" not in call


def test_ablate_submits_several_tables_at_once(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ablate(monkeypatch, "table2", "table3", "table2", "--seeds", "3", "--slurm", "--dry-run") == 0
    text = capsys.readouterr().out
    rows = re.findall(r"(table\d) --rows (\w+) --seeds 3 ", text)
    assert sorted(rows) == sorted((table, row) for table in ("table2", "table3") for row in TABLES[table])


def test_ablate_told_to_do_nothing_does_nothing(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(cluster.rglob("*"))
    assert ablate(monkeypatch, "table1", "--rows", "c", "--data", "shapes", "--slurm", "--dry-run") == 0
    assert lines_of(capsys.readouterr().out)["array"] == "0-0"
    assert ablate(monkeypatch, "table1", "--rows", "c", "--data", "shapes", "--dry-run") == 0
    assert "table1/c/seed_0\n  fit: would start\n" in capsys.readouterr().out
    assert sorted(cluster.rglob("*")) == before


def test_ablate_refuses_in_one_line(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for words, part in (
        (["table1", "--rows", "z"], "no row 'z'"),
        (["table1", "--jobs", "0"], "--jobs must be at least 1"),
        (["table1", "--jobs", "-1", "--slurm"], "--jobs must be at least 1"),
        (["table1", "--devices_per_run", "-1", "--slurm", "--dry-run"], "--devices_per_run at least 0"),
        (["table1", "--seeds", "0", "-1"], "seed -1: give 0 or more"),
        (["table1", "--slurm", "array=3"], "sbatch option array"),
    ):
        assert ablate(monkeypatch, *words) == 2
        message = capsys.readouterr().err
        assert part in message
        assert message.startswith("ablate.py: ")
        assert message.count("\n") == 1


@pytest.mark.parametrize("more", [[], ["--slurm"], ["--dry-run"]])
def test_ablate_names_an_out_that_cannot_be_written(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    Path("file").write_text("")
    words = ["table1", "--rows", "c", "--data", "shapes", "--out", "file/study"]
    assert ablate(monkeypatch, *words, *more) == 2
    message = capsys.readouterr().err
    assert message.startswith("ablate.py: file/study")
    assert message.endswith(": Not a directory\n")
    assert message.count("\n") == 1


def test_a_finished_row_is_not_run_again_by_ablate(
    cluster: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from fpn.study.rows import plan

    (task,) = plan(["table1"], rows=["c"], data="shapes")
    folder = Path("runs/study") / task.name
    folder.mkdir(parents=True)
    for step in task.steps:
        (folder / f"{step.name}.done").write_text(json.dumps({"arguments": step.arguments}))
    (folder / "scores.json").write_text('{"proposal_AR@1000": 0.5634}')
    assert ablate(monkeypatch, "table1", "--rows", "c", "--data", "shapes") == 0
    assert "table1/c/seed_0: finished earlier (AR@1000 56.3)" in capsys.readouterr().out
