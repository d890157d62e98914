"""Runs tasks on this machine: as many at a time as there is room for, each going on where it was."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NamedTuple

from fpn.console import leave_terminal, say
from fpn.errors import InputError
from fpn.study.tasks import Step, Task

PROGRAM = (sys.executable, "-m", "fpn")

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# With these Lightning would take a command that was started here for one that srun has started many of.
_SRUN = ("SLURM_NTASKS", "SLURM_NPROCS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID")


def places(jobs: int | None = None, devices_per_run: int = 1) -> list[dict[str, str]]:
    """Room for runs on this machine: the environment variables that give each run its share.

    GPUs are those that CUDA_VISIBLE_DEVICES leaves visible. Without any, or with none asked for, the runs
    share the CPU cores among them.

    Args:
        jobs: runs at a time, at least 1; None for as many as the GPUs suffice for, on the CPU one.
        devices_per_run: GPUs of each run; 0 keeps it off the GPUs.

    Raises:
        InputError: there are not so many GPUs.
    """
    import torch  # which a runner does without

    from fpn.devices import cpu_cores

    count = torch.cuda.device_count()
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = [name.strip() for name in given.split(",")] if given else [str(index) for index in range(count)]
    if devices_per_run == 0 or (count == 0 and devices_per_run == 1):
        jobs = jobs or 1
        shared = {"CUDA_VISIBLE_DEVICES": ""} if count else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            shared["OMP_NUM_THREADS"] = str(max(cpu_cores() // jobs, 1))
        return [shared] * jobs
    jobs = jobs or max(count // devices_per_run, 1)
    if jobs * devices_per_run > count:
        raise InputError(
            f"{jobs} runs at a time (--jobs) of {devices_per_run} GPUs each (--devices_per_run) need "
            f"{jobs * devices_per_run} GPUs, but {count} are visible"
        )
    starts = range(0, jobs * devices_per_run, devices_per_run)
    return [{"CUDA_VISIBLE_DEVICES": ",".join(names[start:][:devices_per_run])} for start in starts]


def run(
    tasks: Sequence[Task],
    places: Sequence[Mapping[str, str]] = ({},),
    program: Sequence[str] = PROGRAM,
    patience: float = 110.0,
) -> int:
    """Run tasks, each when what it needs is finished; what has been finished before is not run again.

    The output of every step is appended to the `log.txt` of its task's folder. When a task fails, those that
    need it are not run, the others go on. On SIGINT, SIGTERM or SIGHUP the steps under way get a SIGTERM; a
    second SIGINT kills them. Started again, everything goes on where it was.

    Args:
        tasks: each after those that it needs; what it needs and is not among them must be finished.
        places: environment variables for each of the tasks that may run at a time.
        program: what is run with the words of a step.
        patience: seconds that a step is given to end after SIGTERM; SLURM's signal comes 120 before the end.

    Returns:
        The exit status: 0, 1 if any task failed, 128 + the number of the signal that ended it.
    """
    waiting, free = {task.name: task for task in tasks}, list(places)
    outside = {need.name: need for task in tasks for need in task.needs if need.name not in waiting}
    good = {name for name, need in outside.items() if need.next_step() is None}
    failed = dict.fromkeys(outside.keys() - good, "not finished")
    under_way: dict[Future[bool], tuple[Task, Mapping[str, str]]] = {}

    def fail(task: Task, reason: str) -> None:
        failed[task.name] = reason
        say(f"{task.name}: {reason}")

    with _signals() as received, ThreadPoolExecutor(len(places)) as threads:
        while True:
            for task in [] if received else list(waiting.values()):
                lacking = [need.name for need in task.needs if need.name not in good]
                if lost := [name for name in lacking if name in failed]:
                    fail(waiting.pop(task.name), f"not run, as it needs {lost[0]}")
                elif free and not lacking:
                    place = free.pop(0)
                    work = _Work(waiting.pop(task.name), place, program, received, patience)
                    under_way[threads.submit(work.run)] = task, place
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                task, place = under_way.pop(future)
                free.append(place)
                try:
                    good |= {task.name} if future.result() else set()
                except (InputError, OSError) as error:
                    fail(task, f"failed: {error}")
    if received:
        say(f"Stopped by {signal.Signals(received[0]).name}; the same command goes on where this one was")
        return 128 + received[0]
    return 1 if failed else 0


def describe(tasks: Sequence[Task], program: Sequence[str] = PROGRAM) -> None:
    """Print what `run` would do about each task, and the commands in full; start and write nothing."""
    for task in tasks:
        needs = ", ".join(need.name for need in task.needs)
        say(task.name + (f" (needs {needs})" if needs else ""))
        try:
            upcoming = task.next_step()
        except InputError as error:
            say(f"  would fail: {error}")
            continue
        first = len(task.steps) if upcoming is None else task.steps.index(upcoming)
        for number, step in enumerate(task.steps):
            words = task.words(step) if step is upcoming else step.words
            goes_on = "would go on" if words != step.words else "would start"
            say(f"  {step.name}: {'finished' if number < first else goes_on}")
            say(f"    {shlex.join([*program, *words])}")


class _Work(NamedTuple):
    """A task to be run in a thread of its own."""

    task: Task
    place: Mapping[str, str]
    program: Sequence[str]
    received: Sequence[int]
    """The signals so far, of which the main thread is told."""
    patience: float

    def run(self) -> bool:
        """Run the steps that are left; whether all are finished.

        Raises:
            InputError: a step failed.
        """
        task, start = self.task, time.monotonic()
        if task.next_step() is None:
            say(f"{task.name}: finished earlier{task.score}")
            return True
        with task.locked() as lock:
            while (step := task.next_step()) is not None and not self.received:
                task_log = task.folder / "log.txt"
                say(f"{task.name}: {step.name} (log: {task_log})")
                status, reason = self._run_step(step, lock)
                if status == 0:
                    task.finish(step)
                elif not self.received:
                    ended = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
                    raise InputError(f"{step.name} ended {ended}: {reason} (log: {task_log})")
        minutes = (time.monotonic() - start) / 60
        is_finished = step is None
        say(f"{task.name}: " + (f"finished in {minutes:.1f} min{task.score}" if is_finished else "stopped"))
        return is_finished

    def _run_step(self, step: Step, lock: int) -> tuple[int, str]:
        """Its exit status, and the last thing it said."""
        command = [*self.program, *self.task.words(step)]
        self.task.begin(step)
        with (self.task.folder / "log.txt").open("ab+") as log:
            log.write(f"\n[{time.strftime('%Y-%m-%d %H:%M:%S')}]\n$ {shlex.join(command)}\n".encode())
            log.flush()
            begin = log.tell()
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.startswith(_SRUN)} | dict(self.place),
                start_new_session=True,  # a terminal's Ctrl-C is for the runner
                pass_fds=(lock,),  # whatever becomes of the runner, no other one runs this step beside
            )
            deadline = float("inf")
            while (
                process.poll() is None
                and time.monotonic() < deadline
                and self.received.count(signal.SIGINT) < 2
            ):
                if self.received and deadline == float("inf"):
                    # Its first process tells those that load data, which must not die before it.
                    process.terminate()
                    deadline = time.monotonic() + self.patience
                time.sleep(0.05)
            with suppress(ProcessLookupError):
                os.killpg(
                    process.pid, signal.SIGKILL
                )  # where the first process has ended, others may not have
            log.seek(begin)
            lines = [
                line.strip() for line in log.read().decode(errors="replace").splitlines() if line.strip()
            ]
        reasons = [line for line in lines if line.startswith("fpn: ")] or lines or ["nothing was printed"]
        return process.wait(), reasons[-1]


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While it lasts, signals that would end this process are put into a list instead."""
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)
        if number == signal.SIGHUP:
            leave_terminal()

    before = {number: signal.getsignal(number) for number in _SIGNALS}
    caught = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, receive)
    try:
        yield received
    finally:
        for number in caught:
            signal.signal(number, before[number])
