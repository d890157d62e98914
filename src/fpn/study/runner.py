"""Runs tasks: as many at a time as there is room for, each going on where it was."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from rich.console import Console

from fpn.console import leave_terminal
from fpn.errors import InputError
from fpn.study.folder import TaskFolder, resumed
from fpn.study.progress import Display, State, Status
from fpn.study.tasks import Step, Task

PROGRAM = (sys.executable, "-m", "fpn")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# With these Lightning would take a command that was started here for one that srun has started many of.
_SRUN = (
    "SLURM_NTASKS",
    "SLURM_NPROCS",
    "SLURM_NTASKS_PER_NODE",
    "SLURM_PROCID",
    "SLURM_LOCALID",
    "SLURM_NODEID",
)


def run(
    tasks: Sequence[Task],
    root: str | Path,
    places: Sequence[Mapping[str, str]] = ({},),
    program: Sequence[str] = PROGRAM,
    console: Console | None = None,
    patience: float = 110.0,
    interval: float = 0.2,
) -> int:
    """Run tasks, each when what it needs is finished; what has been finished before is not run again.

    The output of every step is appended to the `log.txt` of its task's folder. When a task fails, those
    that need it are not run, the others go on. On SIGINT, SIGTERM or SIGHUP the steps under way get a
    SIGTERM; a second SIGINT kills them. Started again, everything goes on where it was. Several runners may
    work on one root, also from several machines: a task is run by one of them, the others wait for it.

    Args:
        tasks: with all that they need.
        root: folder of the study.
        places: environment variables for each of the tasks that may run at a time, see `fpn.study.places`.
        program: what is run with the arguments of a step.
        console: where progress is shown; by default standard output.
        patience: seconds that a step is given to end after SIGTERM; SLURM's signal comes 120 before the end.
        interval: seconds between two looks at the running steps.

    Returns:
        The exit status: 0, 1 if any task failed, 128 + the number of the signal that ended it.

    Raises:
        OSError: there is no folder `root`, nor can it be made.
        ValueError: two tasks of one name, or one that needs what is not there.
    """
    _check(tasks)
    Path(root).mkdir(parents=True, exist_ok=True)
    console = console or Console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    runner = _Runner(tasks, Path(root), places, program, interval)
    with _signals() as received:
        with Display(list(runner.statuses.values()), console) as display:
            try:
                while not received and runner.advance():
                    display.refresh()
                    time.sleep(interval)
            finally:
                if received and runner.runs:
                    say(
                        f"Stopping: the steps under way are given {patience:.0f} seconds to end, "
                        "a second Ctrl-C kills them"
                    )
                runner.stop(patience, lambda: received.count(signal.SIGINT) > 1)
        failures = runner.failures()
        for line in failures:
            say(line)
        if received:
            name = signal.Signals(received[0]).name
            say(f"Stopped by {name}; the same command goes on where this one was")
            return 128 + received[0]
    return 1 if failures else 0


def describe(
    tasks: Sequence[Task],
    root: str | Path,
    program: Sequence[str] = PROGRAM,
    console: Console | None = None,
) -> None:
    """Print what `run` would do about each task, and the commands in full; start and write nothing.

    Args:
        tasks: as in `run`.
        root: as in `run`.
        program: as in `run`.
        console: as in `run`.
    """
    _check(tasks)
    console = console or Console()
    say = partial(console.print, markup=False, highlight=False, soft_wrap=True)
    for folder in _folders(tasks, Path(root)).values():
        task = folder.task
        needs = f" (needs {', '.join(task.needs)})" if task.needs else ""
        elsewhere = f" ({State.ELSEWHERE}: {folder.holder()})" if folder.is_locked() else ""
        say(f"{task.name}{needs}{elsewhere}")
        try:
            upcoming = folder.next_step()
            for step in task.steps:
                checkpoint = folder.checkpoint(step) if step is upcoming else None
                state = "finished"
                if upcoming is not None and task.steps.index(step) >= task.steps.index(upcoming):
                    state = f"would resume from {checkpoint}" if checkpoint else "would start"
                say(f"  {step.name}: {state}")
                say(f"    {shlex.join([*program, *resumed(step, checkpoint)])}")
        except InputError as error:
            say(f"  would fail: {error}")


class _Runner:
    """The tasks, how each stands, and those under way."""

    def __init__(
        self,
        tasks: Sequence[Task],
        root: Path,
        places: Sequence[Mapping[str, str]],
        program: Sequence[str],
        interval: float,
    ) -> None:
        self.folders = _folders(tasks, root)
        self.statuses = {task.name: Status(task.name) for task in tasks}
        self.free = list(places)
        self.program, self.interval = program, interval
        self.runs: dict[str, _Run] = {}
        self.complaints: dict[str, str] = {}
        self.next_look: dict[str, float] = {}
        for name in self.folders:
            with self._failing(name):
                self._skip_if_finished(name)

    def advance(self) -> bool:
        """Look after every task once; False when there is nothing left to do."""
        for name, status in self.statuses.items():
            with self._failing(name):
                if name in self.runs:
                    self._follow(name)
                elif not status.state.is_over:
                    self._consider(name)
        return not all(status.state.is_over for status in self.statuses.values())

    def stop(self, patience: float, hurried: Callable[[], bool]) -> None:
        """End what is under way, at the latest when hurried, and leave it so that it can be resumed."""
        for run in self.runs.values():
            run.terminate()
        deadline = time.monotonic() + patience
        for name, run in list(self.runs.items()):
            while run.is_under_way and time.monotonic() < deadline and not hurried():
                time.sleep(min(self.interval, 0.1))
            with self._failing(name):
                self.statuses[name].state = State.STOPPED
                if run.finish() and self.folders[name].next_step() is None:
                    self._finish(name, State.FINISHED)
                self._release(name)

    def failures(self) -> list[str]:
        """A line for each task that failed, and for each that was not run therefore."""
        lines = [f"{name}: {complaint}" for name, complaint in self.complaints.items()]
        not_run = [status for status in self.statuses.values() if status.state is State.NOT_RUN]
        return lines + [f"{status.name}: {status.state}: {status.news}" for status in not_run]

    def _skip_if_finished(self, name: str) -> bool:
        if self.folders[name].next_step() is not None:
            return False
        self._finish(name, State.EARLIER)
        return True

    def _finish(self, name: str, state: State) -> None:
        self.statuses[name].state, self.statuses[name].news = state, self.folders[name].score()

    def _consider(self, name: str) -> None:
        """Start a task if it is its turn."""
        status = self.statuses[name]
        needs = [self.statuses[need] for need in self.folders[name].task.needs]
        missing = [need for need in needs if not need.state.is_good]
        if missing:
            status.news = f"needs {missing[0].name}"
            if any(need.state.is_over for need in missing):
                status.state = State.NOT_RUN
            return
        # A lock may lie on a slow file system of many machines.
        if not self.free or time.monotonic() < self.next_look.get(name, 0):
            return
        self.next_look[name] = time.monotonic() + 10 * self.interval
        folder = self.folders[name]
        lock = folder.lock()
        if lock is None:
            status.state, status.news = State.ELSEWHERE, folder.holder()
            return
        run = _Run(folder, lock, self.free.pop(0), self.program, status)
        self.runs[name] = run
        if self._skip_if_finished(name):  # by another runner, meanwhile
            self._release(name)
        else:
            status.state, status.seconds = State.RUNNING, 0.0
            run.start_next()

    def _follow(self, name: str) -> None:
        """Look after a task under way."""
        if not self.runs[name].advance():
            self._finish(name, State.FINISHED)
            self._release(name)

    def _release(self, name: str) -> None:
        run = self.runs.pop(name)
        run.close()
        self.free.append(run.place)

    @contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """What goes wrong with one task is kept from the others."""
        try:
            yield
        except (InputError, OSError) as error:
            status = self.statuses[name]
            status.state, status.news = State.FAILED, str(error)
            self.complaints[name] = f"{status.headline}: {error}"
            if name in self.runs:
                self._release(name)


class _Run:
    """One task under way: its steps, one after the other, in processes of their own."""

    def __init__(
        self,
        folder: TaskFolder,
        lock: int,
        place: Mapping[str, str],
        program: Sequence[str],
        status: Status,
    ) -> None:
        self.folder, self.lock, self.place, self.program, self.status = folder, lock, place, program, status
        self.first_start = self.start = time.monotonic()
        self.step: Step | None = None
        self.process: subprocess.Popen[bytes] | None = None

    def start_next(self) -> bool:
        """Start the first unfinished step; False if there is none."""
        self._kill()
        step = self.step = self.folder.next_step()
        if step is None:
            return False
        self.status.step, self.status.news = step.name, f"log: {self.folder.log.path}"
        command = [*self.program, *self.folder.begin(step)]
        with self.folder.log.begin(command) as log:
            self.start = time.monotonic()
            self.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if k not in _SRUN} | dict(self.place),
                start_new_session=True,  # a terminal's Ctrl-C is for the runner
                pass_fds=(self.lock,),  # whatever becomes of the runner, no other one runs this step beside
            )
        return True

    def advance(self) -> bool:
        """Go on to the next step where one has ended; False when all are finished.

        Raises:
            InputError: the step failed.
        """
        assert self.process is not None
        self.status.seconds = time.monotonic() - self.first_start
        code = self.process.poll()
        if code is None:
            self.status.news = self.folder.log.news() or self.status.news
            return True
        if code:
            ending = f"by {_signal_name(-code)}" if code < 0 else f"with status {code}"
            log = self.folder.log
            raise InputError(f"ended {ending}: {log.complaint()} (log: {log.path})")
        self.finish()
        return self.start_next()

    def finish(self) -> bool:
        """Mark the step as finished if it has ended well; whether it has.

        Raises:
            InputError: it has not written what it should.
        """
        if self.step is None or self.process is None or self.process.poll() != 0:
            return False
        self.folder.finish(self.step, time.monotonic() - self.start)
        return True

    def terminate(self) -> None:
        """Ask the step to end.

        Only its first process is told, and tells its own: processes that load data must not die before
        it, or it takes their end for a failure.
        """
        if self.process is not None:
            self.process.terminate()

    @property
    def is_under_way(self) -> bool:
        """Whether the step's first process has not ended."""
        return self.process is not None and self.process.poll() is None

    def close(self) -> None:
        """Kill what is left of the step, and let go of the folder."""
        self._kill()
        os.close(self.lock)

    def _kill(self) -> None:
        """Kill what is left of the step: where its first process has ended, others may not have."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process = None


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While it lasts, signals that would end this process are put into a list instead."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGHUP:
            leave_terminal()

    handlers = {s: signal.getsignal(s) for s in _SIGNALS}
    caught = [s for s, handler in handlers.items() if handler is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in caught:
            signal.signal(number, handlers[number])


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _folders(tasks: Sequence[Task], root: Path) -> dict[str, TaskFolder]:
    named = {task.name: task for task in tasks}
    return {task.name: TaskFolder(task, root, [named[need] for need in task.needs]) for task in tasks}


def _check(tasks: Sequence[Task]) -> None:
    names = [task.name for task in tasks]
    for task in tasks:
        if names.count(task.name) > 1:
            raise ValueError(f"two tasks are named {task.name}")
        if absent := set(task.needs) - set(names):
            raise ValueError(f"task {task.name} needs {absent.pop()}, which is not among the tasks")
