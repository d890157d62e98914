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
from typing import Any, NamedTuple

from fpn.console import leave_terminal, say
from fpn.errors import InputError
from fpn.importing import asked_for
from fpn.study.tasks import Step, Task

PROGRAM = (sys.executable, "-m", "fpn")

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

    count, given = torch.cuda.device_count(), os.environ.get("CUDA_VISIBLE_DEVICES")
    if devices_per_run == 0 or (count == 0 and devices_per_run == 1):
        jobs = jobs or 1
        shared = {"CUDA_VISIBLE_DEVICES": ""} if count else {}
        if jobs > 1 and "OMP_NUM_THREADS" not in os.environ:
            shared["OMP_NUM_THREADS"] = str(max(cpu_cores() // jobs, 1))
        return [shared] * jobs
    jobs = jobs or max(count // devices_per_run, 1)
    if (needed := jobs * devices_per_run) > count:
        raise InputError(
            f"{jobs} runs at a time (--jobs) of {devices_per_run} GPUs each (--devices_per_run) need "
            f"{needed} GPUs, but {count} are visible"
        )
    names = [name.strip() for name in given.split(",")] if given else [str(index) for index in range(count)]
    shares = (names[start:][:devices_per_run] for start in range(0, needed, devices_per_run))
    return [{"CUDA_VISIBLE_DEVICES": ",".join(share)} for share in shares]


def refuse_without_gpus() -> None:
    """Raise InputError where no GPU is visible, as on a machine of a cluster whose driver is broken."""
    import torch

    if not torch.cuda.device_count():
        raise InputError("no GPU is visible in this job: --devices_per_run 0 runs on the CPU")


def run(
    tasks: Sequence[Task],
    places: Sequence[Mapping[str, str]] = ({},),
    program: Sequence[str] = PROGRAM,
    patience: float = 110.0,
) -> int:
    """Run tasks, each when what it needs is finished; what has been finished before is not run again.

    The output of every step is appended to the `log.txt` of its task's folder. When a task fails, those that
    need it are not run, the others go on. On SIGINT, SIGTERM, SIGHUP or SIGUSR1 the steps under way get
    a SIGTERM; a second SIGINT kills them. Started again, everything goes on where it was.

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
    bad = outside.keys() - good
    under_way: dict[Future[bool], tuple[str, Mapping[str, str]]] = {}

    def fail(name: str, reason: str) -> None:
        bad.add(name)
        say(f"{name}: {reason}")

    with _signals() as received, ThreadPoolExecutor(len(places)) as threads:
        while True:
            for name, task in [] if received else list(waiting.items()):
                lacking = [need.name for need in task.needs if need.name not in good]
                if bad.intersection(lacking):
                    fail(name, f"not run, as it needs {lacking[0]}")
                elif lacking or not free:
                    continue
                else:
                    work = _Work(task, free.pop(0), program, received, patience)
                    under_way[threads.submit(work.run)] = name, work.place
                del waiting[name]
            if not under_way:
                break
            for future in wait(under_way, return_when=FIRST_COMPLETED).done:
                name, place = under_way.pop(future)
                free.append(place)
                try:
                    good |= {name} if future.result() else set()
                except (InputError, OSError) as error:
                    fail(name, f"failed: {error}")
    if received:
        say(f"Stopped by {signal.Signals(received[0]).name}; the same command goes on where this one was")
        return 128 + received[0]
    return 1 if bad else 0


def describe(tasks: Sequence[Task], program: Sequence[str] = PROGRAM) -> None:
    """Print what `run` would do about each task, and the commands in full; start and write nothing."""
    modules = [word for module in asked_for() for word in ("--import", module)]
    for task in tasks:
        needs = ", ".join(need.name for need in task.needs)
        say(task.name + (f" (needs {needs})" if needs else ""))
        try:
            upcoming = task.next_step()
        except InputError as error:
            say(f"  would fail: {error}")
            continue
        state = "finished"
        for step in task.steps:
            words = task.words(step) if step is upcoming else step.words
            if step is upcoming or state != "finished":
                state = "would start" if words == step.words else "would go on"
            say(f"  {step.name}: {state}\n    {shlex.join([*program, *words, *modules])}")


def check(fit: Step, program: Sequence[str] = PROGRAM) -> None:
    """Raise InputError where a training would refuse its words: many jobs would wait to be told so, each."""
    done = subprocess.run(
        [*program, *fit.words, "--print_config"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise InputError(_reason(done.stderr).removeprefix("fpn: "))


def _reason(printed: str) -> str:
    """The last thing that a command said, if possible of what was wrong."""
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    return ([line for line in lines if line.startswith("fpn: ")] or lines or ["nothing was printed"])[-1]


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
        log = task.folder / "log.txt"
        with task.locked() as lock:
            while (step := task.next_step()) is not None and not self.received:
                say(f"{task.name}: {step.name} (log: {log})")
                status, reason = self._run_step(step, lock)
                if status == 0:
                    task.finish(step)
                elif not self.received:
                    ended = f"with status {status}" if status > 0 else f"by {signal.Signals(-status).name}"
                    raise InputError(f"{step.name} ended {ended}: {reason} (log: {log})")
        minutes = (time.monotonic() - start) / 60
        say(
            f"{task.name}: "
            + (f"stopped at {step.name}" if step else f"finished in {minutes:.1f} min{task.score}")
        )
        return step is None

    def _run_step(self, step: Step, lock: int) -> tuple[int, str]:
        """Its exit status, and the last thing it said."""
        command = [*self.program, *self.task.words(step)]
        self.task.begin(step)
        with (self.task.folder / "log.txt").open("ab+") as log:
            log.write(f"\n[{time.strftime('%Y-%m-%d %H:%M:%S')}]\n$ {shlex.join(command)}\n".encode())
            log.flush()
            begin, deadline = log.tell(), float("inf")
            process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env={k: v for k, v in os.environ.items() if not k.startswith(_SRUN)} | dict(self.place),
                start_new_session=True,  # a terminal's Ctrl-C is for the runner
                pass_fds=(lock,),  # whatever becomes of the runner, no other one runs this step beside
            )
            while process.poll() is None and time.monotonic() < deadline:
                if self.received and deadline == float("inf"):
                    process.terminate()  # it tells the processes that load data, which must not die before it
                    deadline = time.monotonic() + self.patience
                if self.received.count(signal.SIGINT) > 1:
                    break
                time.sleep(0.05)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what a first process that has ended left behind
            log.seek(begin)
            reason = _reason(log.read().decode(errors="replace"))
        return process.wait(), reason


@contextmanager
def _signals() -> Iterator[list[int]]:
    """While it lasts, signals that would end this process are put into a list instead."""
    received: list[int] = []

    def receive(number: int, _: Any) -> None:
        received.append(number)
        if number == signal.SIGHUP:
            leave_terminal()

    ending = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
    before = {one: signal.getsignal(one) for one in ending if signal.getsignal(one) is not signal.SIG_IGN}
    try:
        for number in before:
            signal.signal(number, receive)
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
