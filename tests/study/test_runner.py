"""The runner, on a program that only counts; once on a real detector."""

import io
import json
import multiprocessing
import os
import pty
import re
import runpy
import shutil
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
import yaml
from lightning.fabric.plugins.environments import SLURMEnvironment
from rich.console import Console

from fpn.data.shapes import generate_shapes
from fpn.study.log import Log
from fpn.study.progress import Display, State, Status
from fpn.study.runner import PROGRAM, describe, run
from fpn.study.tasks import Step, Task

HERE = Path(__file__).resolve().parent
FAKE = (sys.executable, "-S", str(HERE / "fake_program.py"))
TIME_OUT = 60.0
COLLECTED = ("last.ckpt", "scores.json")


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"global_step": 1}, "template.ckpt")
    monkeypatch.setenv("TEMPLATE", str(tmp_path / "template.ckpt"))


def task(name: str, *steps: Step, needs: Sequence[str] = (), about: dict[str, object] | None = None) -> Task:
    return Task(name, steps, tuple(needs), about)


def fit(name: str, steps: int = 2, seconds: float = 0.0) -> Step:
    arguments = ("fit", str(steps), str(seconds), "--folder", f"study/{name}/fit")
    return Step("fit", arguments, resumable=True, collect=("last.ckpt",))


def score(name: str, value: float) -> Step:
    arguments = ("test", str(value), "--folder", f"study/{name}/test")
    return Step("test", arguments, collect=("scores.json",))


def leave(name: str, code: int, seconds: float) -> Step:
    arguments = ("leave", str(code), str(seconds), "--folder", f"study/{name}/leave")
    return Step("leave", arguments, collect=("scores.json",))


def go(tasks: Sequence[Task], jobs: int = 1, patience: float = 20.0) -> tuple[int, str]:
    """Run tasks with the fake program: the exit status, and what was printed."""
    console = Console(file=io.StringIO(), width=100)
    status = run(tasks, "study", [{}] * jobs, FAKE, console, patience, interval=0.02)
    return status, console.file.getvalue()  # type: ignore[attr-defined]


def events(name: str) -> list[tuple[str, float]]:
    """Starts, steps and ends of a task's commands, each with its time."""
    path = Path("study") / name / "events.txt"
    lines = [line.split(" ", 1) for line in path.read_text().splitlines()] if path.is_file() else []
    return [(what, float(at)) for at, what in lines]


def happened(name: str) -> list[str]:
    return [what for what, _ in events(name)]


def children(name: str) -> list[int]:
    """Processes that a task's commands have started."""
    return [int(what.split()[1]) for what in happened(name) if what.startswith("child")]


def gone(process: int) -> bool:
    try:
        return "State:\tZ" in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return True


def complaint(printed: str, name: str) -> str:
    """The last line that says why a task failed."""
    return [line for line in printed.splitlines() if line.startswith(f"{name}: failed: ")][-1]


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + TIME_OUT
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Runner:
    """A runner in a process of its own."""

    def __init__(
        self,
        tasks: Sequence[Task],
        program: Sequence[str] = FAKE,
        patience: float = 20.0,
        places: int = 1,
    ) -> None:
        def work() -> None:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # a suite in the background ignores it
            with output.open("w") as file:
                console = Console(file=file)
                status = run(tasks, "study", [{}] * places, program, console, patience, interval=0.02)
            sys.exit(status)

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
    return {str(p): (p.stat().st_mtime_ns, p.stat().st_size) for p in Path("study").rglob("*")}


def test_tasks_start_after_what_they_need_and_as_many_at_a_time_as_allowed() -> None:
    needs = {"a": (), "b": ("a",), "c": ("a",), "d": ("b", "c"), "e": (), "f": ()}
    tasks = [task(name, fit(name, 1, 0.3), needs=needs[name]) for name in needs]
    assert go(tasks, jobs=2)[0] == 0
    start = {name: dict(events(name))["start"] for name in needs}
    end = {name: dict(events(name))["end"] for name in needs}
    for name, before in needs.items():
        assert all(end[other] <= start[name] for other in before)
    at_once = [sum(start[other] <= start[name] < end[other] for other in needs) for name in needs]
    assert max(at_once) == 2


def test_a_finished_task_is_left_alone() -> None:
    about = {"table": "t", "row": "a", "seed": 0}
    tasks = [task("t/a", fit("t/a"), score("t/a", 0.3612), about=about)]
    status, printed = go(tasks)
    assert status == 0
    assert "t/a: finished (AP 36.1" in printed
    folder = Path("study/t/a")
    assert folder.joinpath("last.ckpt").samefile(folder / "fit/version_0/checkpoints/last.ckpt")
    assert json.loads((folder / "scores.json").read_text())["AP"] == 0.3612
    steps = [list(step.arguments) for step in tasks[0].steps]
    assert json.loads((folder / "run.json").read_text()) == {**about, "arguments": steps}
    done = json.loads((folder / "fit.done").read_text())
    assert done["arguments"] == steps[0]
    assert done["seconds"] >= 0
    assert {"started", "finished", "host"} <= done.keys()
    assert "fake_program.py fit 2 0.0 --folder" in (folder / "log.txt").read_text()

    before = everything()
    status, printed = go(tasks)
    assert status == 0
    assert "t/a: finished earlier (AP 36.1)" in printed
    assert everything() == before


def test_other_arguments_are_refused_and_nothing_is_overwritten() -> None:
    go([task("a", fit("a", 2))])
    before = everything()
    status, printed = go([task("a", fit("a", 3)), task("b", fit("b"))])
    assert status == 1
    line = complaint(printed, "a")
    assert "study/a: its fit was run with other arguments, then fit 2 0.0, now fit 3 0.0;" in line
    assert "choose another --out" in line
    assert before.items() <= everything().items()
    assert happened("b")[-1] == "end"


def test_an_unfinished_run_is_not_gone_on_with_by_other_arguments() -> None:
    go([task("a", fit("a", 2))])
    Path("study/a/fit.done").unlink()
    status, printed = go([task("a", fit("a", 3))])
    assert status == 1
    assert "then fit 2 0.0, now fit 3 0.0" in printed


def interrupt(tasks: Sequence[Task], name: str) -> None:
    """Run tasks until one of them has made a step or two, then stop."""
    runner = Runner(tasks)
    eventually(lambda: len(happened(name)) > 2)
    runner.send(signal.SIGTERM)
    assert runner.end()[0] == 143


@pytest.mark.parametrize("finished", [True, False])
def test_a_result_counts_only_with_the_results_it_was_made_from(finished: bool) -> None:
    steps = {name: (fit(name, 8, 0.1), score(name, 0.5)) for name in ("t1/c", "t2/c")}
    tasks = [task("t1/c", *steps["t1/c"]), task("t2/c", *steps["t2/c"], needs=["t1/c"])]
    if finished:
        assert go(tasks)[0] == 0
    else:
        interrupt(tasks, "t2/c")
    before = happened("t2/c")
    shutil.rmtree("study/t1/c")
    for _ in range(2):  # at first there is no result of t1/c, then another one
        status, printed = go(tasks)
        assert status == 1
        line = complaint(printed, "t2/c")
        assert "its fit was run on a result of t1/c that is no longer there; remove the folder or" in line
        assert happened("t2/c") == before
        assert happened("t1/c").count("start") == 2  # its two steps, once
    console = Console(file=io.StringIO(), width=100)
    describe(tasks, "study", FAKE, console)
    assert "would fail: study/t2/c: its fit was run on" in console.file.getvalue()  # type: ignore[attr-defined]
    shutil.rmtree("study/t2/c")
    assert go(tasks)[0] == 0
    assert [what for what in happened("t2/c") if what.startswith("step")] == [f"step {i}" for i in range(8)]
    assert "t2/c: finished earlier" in go(tasks)[1]


@pytest.mark.parametrize("finished", [True, False])
@pytest.mark.parametrize("words", [("--config", "my.yaml"), ("--config=my.yaml",)])
def test_an_edited_configuration_file_counts_as_another(finished: bool, words: tuple[str, ...]) -> None:
    Path("my.yaml").write_text("rate: 1\n")
    Path("other.yaml").write_text("")
    plain = fit("a", 12, 0.1)
    step = Step("fit", (*plain.arguments, "--config", "other.yaml", *words), True, plain.collect)
    tasks = [task("a", step)]
    if finished:
        assert go(tasks)[0] == 0
    else:
        interrupt(tasks, "a")
    before = happened("a")
    Path("my.yaml").write_text("rate: 2\n")
    status, printed = go(tasks)
    assert status == 1
    line = complaint(printed, "a")
    assert "study/a: its fit was run before my.yaml was changed; remove the folder or choose" in line
    assert happened("a") == before
    Path("my.yaml").write_text("# what it was measured to be\nrate:   1\n")
    assert go(tasks)[0] == 0


def test_what_older_markers_do_not_tell_counts_as_the_same() -> None:
    Path("my.yaml").write_text("rate: 1\n")
    plain = fit("b")
    step = Step("fit", (*plain.arguments, "--config", "my.yaml"), True, plain.collect)
    tasks = [task("a", fit("a")), task("b", step, needs=["a"])]
    assert go(tasks)[0] == 0
    for path in Path("study").glob("*/fit.*"):
        marker = json.loads(path.read_text())
        path.write_text(json.dumps({"arguments": marker["arguments"]}))
    Path("my.yaml").write_text("rate: 2\n")
    status, printed = go(tasks)
    assert status == 0
    assert "b: finished earlier" in printed
    Path("study/b/fit.done").unlink()
    assert go(tasks)[0] == 0
    assert json.loads(Path("study/b/fit.done").read_text())["resumed"] is not None
    assert "b: finished earlier" in go(tasks)[1]


def test_other_arguments_for_being_started_in_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study, config = tmp_path / "study", tmp_path / "my.yaml"
    config.write_text("")
    (tmp_path / "elsewhere").mkdir()

    def started_in(directory: Path, file: str) -> str:
        monkeypatch.chdir(directory)
        step = Step("fit", ("fit", "1", "0", "--folder", str(study / "a/fit"), "--config", file))
        console = Console(file=io.StringIO())
        run([task("a", step)], study, program=FAKE, console=console, interval=0.02)
        return console.file.getvalue()  # type: ignore[attr-defined, no-any-return]

    started_in(tmp_path, "my.yaml")
    line = complaint(started_in(tmp_path / "elsewhere", str(config)), "a")
    assert f"was run in the directory {tmp_path} with other arguments, then --config my.yaml, now" in line
    assert "go on from that directory, remove the folder or choose another --out" in line
    assert "directory" not in complaint(started_in(tmp_path, str(config)), "a")
    assert "finished earlier" in started_in(tmp_path, "my.yaml")


def test_a_step_begun_again_leaves_no_earlier_result_to_be_counted() -> None:
    tasks = [task("a", fit("a", 12, 0.1), score("a", 0.5))]
    assert go(tasks)[0] == 0
    folder = Path("study/a")
    (folder / "fit/version_0/checkpoints/step.txt").write_text("0")  # so that there is something to do
    (folder / "fit.done").unlink()
    so_far = len(happened("a"))
    runner = Runner(tasks)
    eventually(lambda: len(happened("a")) > so_far + 1)
    assert not any((folder / name).exists() for name in COLLECTED)
    runner.send(signal.SIGTERM)
    assert runner.end()[0] == 143
    assert (folder / "fit/version_0/checkpoints/last.ckpt").exists()
    assert (folder / "test/version_0/scores.json").exists()
    assert go(tasks)[0] == 0
    assert all((folder / name).exists() for name in COLLECTED)
    (folder / "test.done").unlink()
    go([task("a", fit("a", 12, 0.1), Step("test", score("a", 0.5).arguments, collect=("curves.json",)))])
    assert (folder / "last.ckpt").exists()  # of a step that is not redone


def test_a_step_done_again_takes_what_follows_with_it() -> None:
    tasks = [task("a", fit("a"), score("a", 0.5))]
    go(tasks)
    Path("study/a/fit.done").unlink()
    go(tasks)
    assert [what for what in happened("a") if what in ("start", "end")] == 4 * ["start", "end"]
    assert Path("study/a/scores.json").samefile("study/a/test/version_1/scores.json")


def test_failures_stop_only_what_needs_them() -> None:
    tasks = [
        task("a", Step("fit", ("fail", "fpn: no such file", "and a word of farewell"))),
        task("b", fit("b"), needs=["a"]),
        task("c", fit("c"), needs=["b"]),
        task("d", Step("fit", ("fail", "Traceback", "ValueError: odd", ""))),
        task("e", Step("fit", ("die",))),
        task("f", Step("fit", ("test", "1", "--folder", "study/f/fit"), collect=("last.ckpt",))),
        task("g", fit("g")),
    ]
    status, printed = go(tasks, jobs=2)
    assert status == 1
    lines = printed.splitlines()[-6:]
    assert sorted(lines) == [
        "a: failed: fit: ended with status 2: fpn: no such file (log: study/a/log.txt)",
        "b: not run: needs a",
        "c: not run: needs b",
        "d: failed: fit: ended with status 2: ValueError: odd (log: study/d/log.txt)",
        "e: failed: fit: ended by SIGKILL: nothing was printed (log: study/e/log.txt)",
        "f: failed: fit: fit ended well but has written no last.ckpt below study/f",
    ]
    assert not Path("study/b").exists()
    assert happened("g")[-1] == "end"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_interrupted_and_started_again_every_step_is_run_once(number: signal.Signals) -> None:
    tasks = [task("a", fit("a", 12, 0.2), score("a", 0.5)), task("b", fit("b"), needs=["a"])]
    for _ in range(2):
        so_far = len(happened("a"))
        runner = Runner(tasks)
        eventually(lambda n=so_far: len(happened("a")) > n + 2)  # type: ignore[misc]
        runner.send(number)
        status, printed = runner.end()
        assert status == 128 + number
        assert "a: stopped: fit" in printed
        assert "the same command goes on" in printed
        assert not Path("study/a/fit.done").exists()
    assert go(tasks)[0] == 0
    assert [what for what in happened("a") if what.startswith("step")] == [f"step {i}" for i in range(12)]
    assert Path("study/a/last.ckpt").samefile("study/a/fit/version_2/checkpoints/last.ckpt")
    assert json.loads(Path("study/a/fit.done").read_text())["resumed"].startswith("study/a/fit/version_1/")


def test_a_torn_checkpoint_is_passed_over() -> None:
    tasks = [task("a", fit("a", 4))]
    for version, (step, age) in enumerate([(3, 20), (1, 30), (2, 10)]):
        folder = Path(f"study/a/fit/version_{version}/checkpoints")
        folder.mkdir(parents=True)
        (folder / "step.txt").write_text(str(step))
        content = Path("template.ckpt").read_bytes()
        (folder / "last.ckpt").write_bytes(content[: len(content) // 2] if version == 2 else content)
        os.utime(folder / "last.ckpt", (time.time() - age, time.time() - age))
    before = everything()
    console = Console(file=io.StringIO(), width=100)
    describe(tasks, "study", FAKE, console)
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "fit: would resume from study/a/fit/version_0/checkpoints/last.ckpt" in printed
    assert "--ckpt_path study/a/fit/version_0/checkpoints/last.ckpt" in printed
    assert everything() == before
    assert go(tasks)[0] == 0
    assert [what for what in happened("a") if what.startswith("step")] == ["step 3"]


def test_what_a_task_in_its_folder_has_written_is_not_taken_for_its_own() -> None:
    stage = task("a/1", fit("a/1", 3))
    last = task("a", fit("a", 2), needs=["a/1"])
    assert go([stage, last])[0] == 0
    assert happened("a") == ["start", "step 0", "step 1", "end"]
    assert Path("study/a/last.ckpt").samefile("study/a/fit/version_0/checkpoints/last.ckpt")


def test_two_runners_share_the_work() -> None:
    names = "abcd"
    tasks = [task(n, fit(n, 3, 0.1), needs="a" if n == "d" else ()) for n in names]
    ends = [runner.end() for runner in (Runner(tasks), Runner(tasks))]
    assert [status for status, _ in ends] == [0, 0], ends
    for name in names:
        assert happened(name) == ["start", "step 0", "step 1", "step 2", "end"]


def test_what_a_killed_runner_left_running_is_not_started_beside() -> None:
    first = Runner([task("a", fit("a", 8, 0.2))])
    eventually(lambda: len(happened("a")) > 2)
    first.send(signal.SIGKILL)
    first.end()
    status, printed = go([task("a", fit("a", 8, 0.2))])
    assert status == 0
    assert "a: running elsewhere" in printed
    steps = [what for what in happened("a") if what.startswith("step")]
    assert steps == [f"step {i}" for i in range(8)]


def test_a_step_that_does_not_end_is_killed_with_all_it_started() -> None:
    runner = Runner([task("a", Step("fit", ("stay", "--folder", "study/a/fit")))], patience=0.5)
    eventually(lambda: len(happened("a")) == 2)
    runner.send(signal.SIGTERM)
    assert runner.end()[0] == 143
    eventually(lambda: all(map(gone, children("a"))))


def test_the_steps_of_a_runner_whose_terminal_is_gone_are_ended() -> None:
    user, terminal = pty.openpty()

    def work() -> None:
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a suite under nohup ignores it
        os.close(user)
        for output in (1, 2):
            os.dup2(terminal, output)
        with open(1, "w", closefd=False) as file:
            sys.exit(
                run([task("a", fit("a", 100, 0.1))], "study", [{}], FAKE, Console(file=file), interval=0.02)
            )

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    os.close(terminal)
    eventually(lambda: len(happened("a")) > 2)
    os.close(user)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGHUP)
    process.join(TIME_OUT)
    assert process.exitcode == 128 + signal.SIGHUP
    assert all(map(gone, children("a")))
    assert Path("study/a/fit/version_0/checkpoints/last.ckpt").is_file()


def test_a_second_ctrl_c_does_not_wait_for_a_step_that_does_not_end() -> None:
    runner = Runner([task("a", Step("fit", ("stay", "--folder", "study/a/fit")))], patience=10 * TIME_OUT)
    eventually(lambda: len(happened("a")) == 2)
    runner.send(signal.SIGINT)
    eventually(lambda: "a second Ctrl-C kills them" in runner.output.read_text())
    assert not any(map(gone, children("a")))
    runner.send(signal.SIGINT)
    assert runner.end()[0] == 130
    eventually(lambda: all(map(gone, children("a"))))


@pytest.mark.parametrize("code", [0, 3])
def test_what_a_step_leaves_running_is_killed_as_it_ends(code: int) -> None:
    steps = (leave("a", code, 0.0), score("a", 0.5))
    assert go([task("a", *steps), task("b", fit("b", 8, 0.2))], jobs=2)[0] == (1 if code else 0)
    assert len(children("a")) == 1
    eventually(lambda: gone(children("a")[0]))


@pytest.mark.parametrize("code", [0, 143])
def test_a_step_told_to_end_that_ends_well_is_finished(code: int) -> None:
    tasks = [task("a", leave("a", code, 300.0), score("a", 0.5)), task("b", leave("b", code, 300.0))]
    runner = Runner(tasks, places=2)
    eventually(lambda: all(len(happened(name)) == 2 for name in "ab"))
    runner.send(signal.SIGTERM)
    status, printed = runner.end()
    assert status == 143
    eventually(lambda: all(map(gone, children("a") + children("b"))))
    assert "a: stopped" in printed
    assert ("b: finished (AP 25.0" in printed) == (code == 0)
    for name in "ab":
        assert Path("study", name, "leave.done").exists() == (code == 0)
        assert Path("study", name, "scores.json").exists() == (code == 0)
    if code == 0:
        status, printed = go(tasks)
        assert status == 0
        assert "b: finished earlier (AP 25.0)" in printed
        assert happened("a") == ["start", happened("a")[1], "start", "end"]
        assert len(happened("b")) == 2


def test_a_step_told_to_end_that_ends_well_without_its_result_has_failed() -> None:
    step = Step("leave", leave("a", 0, 300.0).arguments, collect=("curves.json",))
    runner = Runner([task("a", step)])
    eventually(lambda: len(happened("a")) == 2)
    runner.send(signal.SIGTERM)
    status, printed = runner.end()
    assert status == 143
    assert "a: failed: leave: leave ended well but has written no curves.json below study/a" in printed


def test_a_command_is_not_taken_for_one_of_srun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    monkeypatch.setenv("SLURM_JOB_NAME", "table1")
    assert SLURMEnvironment.detect()
    step = Step("fit", ("environment", "--folder", "study/a/fit"), collect=("environment.json",))
    console = Console(file=io.StringIO())
    assert run([task("a", step)], "study", [{"CUDA_VISIBLE_DEVICES": "5"}], FAKE, console) == 0
    environment = json.loads(Path("study/a/environment.json").read_text())
    assert environment["CUDA_VISIBLE_DEVICES"] == "5"
    assert environment["SLURM_JOB_ID"] == "17"
    for name in set(os.environ) - set(environment):
        monkeypatch.delenv(name)
    assert not SLURMEnvironment.detect()


def test_what_would_be_done_is_told_without_doing_it() -> None:
    tasks = [task("a", fit("a"), score("a", 0.5)), task("b", fit("b"), needs=["a"])]
    go(tasks[:1])
    Path("study/a/test.done").unlink()
    before = everything()
    console = Console(file=io.StringIO(), width=40)
    describe(tasks, "study", FAKE, console)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert [line for line in lines if not line.startswith("    ")] == [
        "a",
        "  fit: finished",
        "  test: would start",
        "b (needs a)",
        "  fit: would start",
    ]
    assert f"    {' '.join(FAKE)} test 0.5 --folder study/a/test" in lines
    assert everything() == before


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ([task("a"), task("a")], "two tasks"),
        ([task("a", needs=["b"])], "needs b"),
    ],
)
def test_tasks_that_make_no_sense(tasks: list[Task], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        go(tasks)


def test_a_terminal_of_100_columns() -> None:
    news = "epoch 3, step 12,150 of 640,000 (3 days, 0:02:10 left): loss 1.2  rpn_objectness 0.1"
    statuses = [
        Status("table1/c_unshared/seed_0", State.RUNNING, "fit", news, 7384.2),
        Status("table1/d/seed_0", State.EARLIER, "", "AR@1000 56.3"),
        Status("table2/a/seed_0", State.WAITING, "", "needs table1/c/seed_0"),
        Status("table2/b/seed_0", State.ELSEWHERE, "", "host-12, process 471"),
        Status("table2/[c]/seed_0", State.FAILED, "test", "fpn: x\nsecond", 3),
    ]
    console = Console(file=io.StringIO(), width=100, height=50, force_terminal=True, color_system=None)
    with Display(statuses, console):
        pass
    frames = console.file.getvalue().split("\x1b[?25h")[0]  # type: ignore[attr-defined]
    lines = re.split(r"\n|\x1b\[[0-9;?]*[A-Za-z]|\r", frames)
    printed = "\n".join(lines)
    assert max(map(len, lines)) <= 100
    for words in (
        "epoch 3, step 12,150 of 640,000",
        "2:03:04",
        "AR@1000 56.3",
        "needs table1/c/seed_0",
        "[c]",
    ):
        assert words in printed
    assert "running elsewhere" in printed
    assert "1 waiting, 1 running, 1 running elsewhere, 1 finished earlier, 1 failed" in printed


def test_the_news_of_a_log() -> None:
    log = Log(Path("log.txt"))
    assert log.news() == ""
    line = "epoch 3, step 50 of 400 (1 day, 0:02:10 left): rpn_box 0.1  loss 1.2  images_per_second 9.5\n"
    log.path.write_text("step 40: AP 1.0\n" + line + "a warning\n")
    assert log.news() == "epoch 3, step 50 of 400 (1 day, 0:02:10 left): loss 1.2"
    with log.begin(["fpn", "test", "--ckpt_path", "my last.ckpt"]) as file:
        assert log.news() == ""
        file.write(b"validated 1 of 10 batches\rvalidated 2 of 10 batches\n\n")
    assert log.news() == "validated 2 of 10 batches"
    assert "a warning" in log.path.read_text()
    assert "\n$ fpn test --ckpt_path 'my last.ckpt'\n" in log.path.read_text()


@pytest.mark.parametrize(
    ("printed", "reason"),
    [
        ("", "nothing was printed"),
        ("one\ntwo\n\n", "two"),
        ("fpn: no such file\nfpn: no image\nbye\n", "fpn: no image"),
    ],
)
def test_the_reason_a_log_gives_is_the_last_steps(printed: str, reason: str) -> None:
    log = Log(Path("log.txt"))
    log.path.write_text("fpn: of the step before\n")
    with log.begin(["fpn", "fit"]) as file:
        file.write(printed.encode())
    assert log.complaint() == reason


def test_a_real_detector_interrupted_and_resumed() -> None:
    tiny = runpy.run_path(str(HERE.parent / "lit" / "conftest.py"))["TINY"]
    generate_shapes(Path("shapes"), train=10, val=3, long_side=96)
    tiny = json.loads(json.dumps(tiny))
    tiny["data"]["root"] = "shapes"
    tiny["model"]["schedule"]["steps"] = 60
    tiny["trainer"]["logger"]["init_args"] = {"save_dir": "study/t/a", "name": "fit"}
    Path("tiny.yaml").write_text(yaml.safe_dump(tiny))
    where = ("--trainer.logger.init_args.save_dir", "study/t/a", "--trainer.logger.init_args.name", "test")
    steps = (
        Step("fit", ("fit", "--config", "tiny.yaml"), resumable=True, collect=("last.ckpt",)),
        Step(
            "test",
            ("test", "--config", "tiny.yaml", *where, "--ckpt_path", "study/t/a/last.ckpt"),
            collect=("scores.json",),
        ),
    )
    tasks = [Task("t/a", steps)]
    first = Runner(tasks, PROGRAM)
    eventually(lambda: any(Path("study").rglob("last.ckpt")))
    first.send(signal.SIGTERM)
    status, printed = first.end()
    assert status == 143, printed
    reached = torch.load(next(Path("study").rglob("last.ckpt")), weights_only=True)["global_step"]
    assert 0 < reached < 60

    console = Console(file=io.StringIO(), width=100)
    assert run(tasks, "study", console=console) == 0
    assert "t/a: finished (AP " in console.file.getvalue()  # type: ignore[attr-defined]
    assert torch.load("study/t/a/last.ckpt", weights_only=True)["global_step"] == 60
    assert "AP50" in json.loads(Path("study/t/a/scores.json").read_text())
    log = Path("study/t/a/log.txt").read_text()
    assert f"step {reached + 1} of 60" in log.rpartition("$ ")[0].rpartition("$ ")[2]
    assert "--ckpt_path study/t/a/fit/version_0/checkpoints/last.ckpt" in log
