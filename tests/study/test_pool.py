"""Tasks on this machine, by a program that only counts."""

import json
import multiprocessing
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from lightning.fabric.plugins.environments import SLURMEnvironment

from fpn.errors import InputError
from fpn.study.pool import describe, places, run
from fpn.study.tasks import Step, Task

HERE = Path(__file__).resolve().parent
FAKE = (sys.executable, "-S", str(HERE / "fake_program.py"))
TIME_OUT = 60.0
ROOT = Path("study")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def task(name: str, *steps: Step, needs: Sequence[Task] = (), about: dict[str, object] | None = None) -> Task:
    return Task(name, ROOT, steps, tuple(needs), about)


def fit(name: str, steps: int = 2, seconds: float = 0.0, *more: str) -> Step:
    words = ("fit", str(steps), str(seconds), "--folder", f"study/{name}", "--steps", str(steps), *more)
    return Step("fit", words, resumable=True, results=("last.ckpt",))


def score(name: str, value: float) -> Step:
    return Step("test", ("test", str(value), "--folder", f"study/{name}"), results=("scores.json",))


def go(tasks: Sequence[Task], jobs: int = 1) -> int:
    return run(tasks, [{}] * jobs, FAKE, patience=20.0)


def events(name: str) -> list[tuple[str, float]]:
    """Starts, steps and ends of a task's commands, each with its time."""
    path = ROOT / name / "events.txt"
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(what, float(at)) for at, what in lines]


def happened(name: str) -> list[str]:
    return [what for what, _ in events(name)]


def steps_of(name: str) -> list[str]:
    return [what for what in happened(name) if what.startswith("step")]


def gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_OUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Runner:
    """A runner in a process of its own."""

    def __init__(self, tasks: Sequence[Task], program: Sequence[str] = FAKE, patience: float = 20.0) -> None:
        def work() -> None:
            for number in (signal.SIGINT, signal.SIGHUP):  # a suite in the background ignores them
                signal.signal(number, signal.default_int_handler)
            sys.stdout = output.open("w")
            sys.exit(run(tasks, [{}], program, patience))

        output = self.output = Path(f"runner_{time.time_ns()}.txt")
        self.process = multiprocessing.get_context("fork").Process(target=work)
        self.process.start()

    def send(self, number: int) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def end(self) -> tuple[int | None, str]:
        """Its exit status, and what it printed."""
        self.process.join(TIME_OUT)
        return self.process.exitcode, self.output.read_text()


def everything() -> dict[str, tuple[int, int]]:
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in ROOT.rglob("*")}


def test_tasks_start_after_what_they_need_and_as_many_at_a_time_as_allowed() -> None:
    needs = {"a": "", "b": "a", "c": "a", "d": "bc", "e": "", "f": ""}
    tasks: dict[str, Task] = {}
    for name, before in needs.items():
        tasks[name] = task(name, fit(name, 1, 0.3), needs=[tasks[need] for need in before])
    assert go(list(tasks.values()), jobs=2) == 0
    start = {name: dict(events(name))["start"] for name in needs}
    end = {name: dict(events(name))["end"] for name in needs}
    for name, before in needs.items():
        assert all(end[other] <= start[name] for other in before)
    at_once = [sum(start[other] <= start[name] < end[other] for other in needs) for name in needs]
    assert max(at_once) == 2


def test_a_finished_task_is_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    about = {"table": "t", "row": "a", "seed": 0}
    tasks = [task("t/a", fit("t/a"), score("t/a", 0.3612), about=about)]
    assert go(tasks) == 0
    assert "(AP 36.1)" in capsys.readouterr().out
    folder = ROOT / "t/a"
    assert (folder / "last.ckpt").samefile(folder / "version_0/checkpoints/last.ckpt")
    assert json.loads((folder / "scores.json").read_text())["AP"] == 0.3612
    assert json.loads((folder / "run.json").read_text()) == about
    assert "fake_program.py fit 2 0.0 --folder" in (folder / "log.txt").read_text()
    before = everything()
    assert go(tasks) == 0
    assert "t/a: finished earlier (AP 36.1)" in capsys.readouterr().out
    assert everything() == before


def interrupt(tasks: Sequence[Task], name: str) -> None:
    """Run tasks until one of them has made a step or two, then stop."""
    so_far = len(happened(name))
    runner = Runner(tasks)
    eventually(lambda: len(happened(name)) > so_far + 2)
    runner.send(signal.SIGTERM)
    assert runner.end()[0] == 143


@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_other_settings_is_not_taken_for_the_one_that_is_asked_for(
    finished: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = Path("mine.yaml")
    mine.write_text("rate: 1\n")
    words = ("--config=mine.yaml",)
    if finished:
        assert go([task("a", fit("a", 6, 0.0, *words))]) == 0
    else:
        interrupt([task("a", fit("a", 6, 0.1, *words))], "a")
    before = everything()
    for content, more, told in (
        ("rate: 2\n", (), "of its fit, rate was 1, now 2; remove the folder or choose another --out"),
        ("rate: 1\n", ("--model.schedule.length", "2"), "model.schedule.length was not given, now 2"),
    ):
        mine.write_text(content)
        assert go([task("a", fit("a", 6, 0.0, *words, *more)), task("b", fit("b"))]) == 1
        assert told in capsys.readouterr().out
        assert before.items() <= everything().items()
        assert happened("b")[-1] == "end", "the others go on"
    mine.write_text("# what it was measured to be\nrate:   1\n")
    assert (
        go([task("a", fit("a", 6, 0.0, *words, "--trainer.devices", "8", "--data.root", "elsewhere"))]) == 0
    )
    assert steps_of("a") == [f"step {i}" for i in range(6)]


def test_a_result_counts_only_with_the_results_it_was_made_from(capsys: pytest.CaptureFixture[str]) -> None:
    first = task("t1/c", fit("t1/c"), score("t1/c", 0.5))
    tasks = [first, task("t2/c", fit("t2/c"), score("t2/c", 0.5), needs=[first])]
    assert go(tasks) == 0
    before = happened("t2/c")
    shutil.rmtree("study/t1/c")
    for _ in range(2):  # at first there is no result of t1/c, then another one
        assert go(tasks) == 1
        assert "of its fit, it was made from a result of t1/c that is no longer" in capsys.readouterr().out
        assert happened("t2/c") == before
        assert happened("t1/c").count("start") == 2  # its two steps, once
    describe(tasks, FAKE)
    assert "would fail: study/t2/c: of its fit, it was made from" in capsys.readouterr().out
    shutil.rmtree("study/t2/c")
    assert go(tasks) == 0


def test_a_step_begun_again_leaves_no_earlier_result_to_be_counted() -> None:
    tasks = [task("a", fit("a", 2, 0.1), score("a", 0.5))]
    assert go(tasks) == 0
    (ROOT / "a/version_0/checkpoints/last.ckpt").write_text("0")  # so that there is something to do
    (ROOT / "a/fit.json").unlink()
    interrupt([task("a", fit("a", 12, 0.1), score("a", 0.5))], "a")
    assert not any((ROOT / "a" / name).exists() for name in ("last.ckpt", "scores.json"))


def test_failures_stop_only_what_needs_them(capsys: pytest.CaptureFixture[str]) -> None:
    a = task("a", Step("fit", ("fail", "fpn: no such file", "and a word of farewell")))
    b = task("b", fit("b"), needs=[a])
    tasks = [
        a,
        b,
        task("c", fit("c"), needs=[b]),
        task("d", Step("fit", ("fail", "Traceback", "ValueError: odd", ""))),
        task("e", Step("fit", ("test", "1", "--folder", "study/e"), results=("last.ckpt",))),
        task("f", fit("f")),
    ]
    ROOT.mkdir()
    assert go(tasks, jobs=2) == 1
    printed = capsys.readouterr().out.splitlines()
    for line in (
        "a: failed: fit ended with status 2: fpn: no such file (log: study/a/log.txt)",
        "b: not run, as it needs a",
        "c: not run, as it needs b",
        "d: failed: fit ended with status 2: ValueError: odd (log: study/d/log.txt)",
        "e: failed: fit ended well but has written no last.ckpt below study/e",
    ):
        assert line in printed
    assert not (ROOT / "b").exists()
    assert happened("f")[-1] == "end"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_interrupted_and_started_again_every_step_is_run_once(number: signal.Signals) -> None:
    a = task("a", fit("a", 8, 0.1), score("a", 0.5))
    tasks = [a, task("b", fit("b"), needs=[a])]
    runner = Runner(tasks)
    eventually(lambda: len(happened("a")) > 2)
    runner.send(number)
    status, printed = runner.end()
    assert status == 128 + number
    assert "a: stopped" in printed
    assert "the same command goes on" in printed
    assert go(tasks) == 0
    assert steps_of("a") == [f"step {i}" for i in range(8)]
    assert (ROOT / "a/last.ckpt").samefile("study/a/version_1/checkpoints/last.ckpt")
    assert len([*ROOT.glob("a/version_*/**/last.ckpt")]) == 1, "what it went on from is needed no more"


def test_what_was_written_and_not_recorded_is_made_again() -> None:
    """The runner may die between the end of a command and the record of it."""
    propose = Step("propose", ("test", "0.5", "--folder", "study/a"), writes=("val/proposals.safetensors",))
    a = task("a", fit("a"), propose)
    file, part = (
        ROOT / "a/val/proposals.safetensors",
        ROOT / "a/version_0/checkpoints/.last.ckpt-12345678.part",
    )
    for left in (file, part):
        left.parent.mkdir(parents=True)
        left.touch()
    assert go([a]) == 0
    assert not file.exists(), "which the command, unlike this one, would refuse to write over"
    assert not part.exists(), "of a write that was cut off"


def test_what_a_task_in_its_folder_has_written_is_not_taken_for_its_own() -> None:
    stage = task("a/1", fit("a/1", 3))
    assert go([stage, task("a", fit("a", 2), needs=[stage])]) == 0
    assert happened("a") == ["start", "step 0", "step 1", "end"]
    assert (ROOT / "a/last.ckpt").samefile("study/a/version_0/checkpoints/last.ckpt")


def test_what_a_killed_runner_left_running_is_not_started_beside(capsys: pytest.CaptureFixture[str]) -> None:
    tasks = [task("a", fit("a", 8, 0.2))]
    first = Runner(tasks)
    eventually(lambda: len(happened("a")) > 2)
    first.send(signal.SIGKILL)
    first.end()
    assert go(tasks) == 1
    assert "a: failed: another command is at it" in capsys.readouterr().out
    eventually(lambda: happened("a")[-1] == "end")
    assert steps_of("a") == [f"step {i}" for i in range(8)]


@pytest.mark.parametrize("hurried", [True, False])
def test_a_step_that_does_not_end_is_killed_with_all_it_started(hurried: bool) -> None:
    stays = task("a", Step("fit", ("stay", "--folder", "study/a")))
    runner = Runner([stays], patience=10 * TIME_OUT if hurried else 0.5)
    eventually(lambda: len(happened("a")) == 2)
    runner.send(signal.SIGINT)
    if hurried:
        time.sleep(0.2)
        runner.send(signal.SIGINT)
    assert runner.end()[0] == 130
    (child,) = (int(what.split()[1]) for what in happened("a") if what.startswith("child"))
    eventually(lambda: gone(child))


def test_a_command_is_not_taken_for_one_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NAME", "table1")
    assert SLURMEnvironment.detect()
    step = Step("fit", ("environment", "--folder", "study/a"), results=("environment.json",))
    assert run([task("a", step)], [{"CUDA_VISIBLE_DEVICES": "5"}], FAKE) == 0
    environment = json.loads(Path("study/a/environment.json").read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] == "5"
    assert environment["SLURM_JOB_ID"] == "17"
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    assert not SLURMEnvironment.detect()


def test_what_would_be_done_is_told_without_doing_it(capsys: pytest.CaptureFixture[str]) -> None:
    a = task("a", fit("a"), score("a", 0.5))
    tasks = [a, task("b", fit("b"), needs=[a])]
    go(tasks[:1])
    Path("study/a/test.json").unlink()
    before = everything()
    capsys.readouterr()
    describe(tasks, FAKE)
    lines = capsys.readouterr().out.splitlines()
    states = ["a", "  fit: finished", "  test: would start", "b (needs a)", "  fit: would start"]
    assert [line for line in lines if not line.startswith("    ")] == states
    assert f"    {' '.join(FAKE)} test 0.5 --folder study/a" in lines
    assert everything() == before


def test_what_is_needed_and_not_among_the_tasks_must_be_finished(capsys: pytest.CaptureFixture[str]) -> None:
    a = task("a", fit("a"))
    b = task("b", fit("b"), needs=[a])
    assert go([b]) == 1
    assert "b: not run, as it needs a" in capsys.readouterr().out
    assert go([a]) == go([b]) == 0


def test_every_run_has_gpus_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places()] == ["0", "1", "2", "3", "4"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7,3,GPU-ab,2,1")
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(None, 2)] == ["7,3", "GPU-ab,2"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(1, 2)] == ["7,3"]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in places(None, 0)] == [""]
    for jobs, devices, needed in ((3, 2, 6), (None, 6, 6)):
        with pytest.raises(InputError, match=f"need {needed} GPUs, but 5 are visible"):
            places(jobs, devices)


def test_runs_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(7)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert places() == [{}]
    assert places(2) == 2 * [{"OMP_NUM_THREADS": "3"}]
    assert places(9) == 9 * [{"OMP_NUM_THREADS": "1"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert places(2) == [{}, {}]
    with pytest.raises(InputError, match="0 are visible"):
        places(None, 2)
