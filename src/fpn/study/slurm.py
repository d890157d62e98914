"""A study on a SLURM cluster: a job for each task, started when the tasks it needs have ended well."""

import os
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from shutil import which

from fpn.console import say
from fpn.errors import InputError
from fpn.files import replacing
from fpn.study.tasks import Task

# SIGTERM comes with a preemption, after which SLURM itself puts the job back in the queue, and with scancel,
# after which nobody must. SIGUSR1 is asked for ahead of the time limit, after which SLURM does not do it.
_SCRIPT = """#!/usr/bin/env bash
{options}

cd {directory} || exit
export FPN_IMPORT={modules}
time_is_up=
trap 'kill -TERM "$runner"' TERM
trap 'time_is_up=yes; kill -TERM "$runner"' USR1
{command} &
runner=$!
wait "$runner"; status=$?
while kill -0 "$runner" 2> /dev/null; do wait "$runner"; status=$?; done
if [ -n "$time_is_up" ] && [ "$status" -gt 128 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
"""


def script(task: Task, command: Sequence[str], options: Sequence[str] = (), devices: int = 1) -> str:
    """The sbatch script of a task.

    Two minutes ahead of the time limit, or when it is preempted, the command gets a SIGTERM, and it is
    started again when the job is back from the queue; so it must be one that goes on where it was.

    Args:
        task: gives the job its name and the folder of its output.
        command: what runs the task, as words, in the current directory.
        options: of sbatch, as "partition=gpu" or "exclusive"; they win over what is set here.
        devices: GPUs, on one node.

    Raises:
        InputError: an option cannot be given.
    """
    given = dict(_option(option) for option in options)
    wanted = {
        "job-name": task.name.replace("/", "-"),
        "output": str(task.folder.resolve() / "slurm.txt"),
        "open-mode": "append",
        "nodes": "1",
        "ntasks": "1",
        "requeue": "",
        "signal": "B:USR1@120",
    }
    if not {"cpus-per-task", "cpus-per-gpu"} & given.keys():
        wanted["cpus-per-task"] = str(max(8 * devices, 2))
    if devices and not {"gres", "gpus", "gpus-per-node", "gpus-per-task"} & given.keys():
        wanted["gpus-per-node"] = str(devices)
    lines = (f"#SBATCH --{k}" + (f"={shlex.quote(v)}" if v else "") for k, v in {**wanted, **given}.items())
    return _SCRIPT.format(
        options="\n".join(lines),
        directory=shlex.quote(str(Path.cwd())),
        modules=shlex.quote(os.environ.get("FPN_IMPORT", "")),
        command=shlex.join(command),
    )


def submit(
    tasks: Sequence[Task],
    command: Callable[[Task], Sequence[str]],
    options: Sequence[str] = (),
    devices: int = 1,
    at_once: int | None = None,
    dry_run: bool = False,
) -> int:
    """Give sbatch a job for each task that is neither finished nor in the queue.

    A task that was begun with other settings, and those that need it, have none.

    Args:
        tasks: each after those that it needs.
        command: what runs a task, which may rely on those that it needs.
        options: see `script`.
        devices: see `script`.
        at_once: of these jobs, how many may run at a time; None for all.
        dry_run: only print the calls of sbatch and the scripts.

    Returns:
        The exit status: 0, 1 if any task has no job that should have one.

    Raises:
        InputError: there is no sbatch here, or it refused a script.
    """
    jobs: dict[str, str] = {}
    submitted: list[str] = []
    bad: set[str] = set()
    for task in tasks:
        if lacking := next((need.name for need in task.needs if need.name in bad), None):
            bad.add(task.name)
            say(f"{task.name}: not submitted, as it needs {lacking}")
            continue
        try:
            finished = task.next_step() is None
        except InputError as error:
            bad.add(task.name)
            say(f"{task.name}: not submitted: {error}")
            continue
        if finished:
            say(f"{task.name}: finished earlier{task.score}")
            continue
        path, text = task.folder / "job.sh", script(task, command(task), options, devices)
        queued, known = _in_queue(task)
        steps = [step.name for step in task.steps]
        if queued and {*steps} <= {*known}:
            jobs[task.name] = queued
            submitted.append(queued)
            other = path.is_file() and path.read_text() != text
            remedy = f", as it was submitted ({path}): for what is given now, scancel {queued} first"
            say(f"{task.name}: in the queue as job {queued}{remedy if other else ''}")
            continue
        after = [f"afterok:{jobs[need.name]}" for need in task.needs if need.name in jobs]
        if queued:  # for less: its proposals may be asked for only now
            after.append(f"afterany:{queued}")
        if at_once and len(submitted) >= at_once:
            after.append(f"afterany:{submitted[-at_once]}")
        waits = [f"--dependency={','.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
        call = ["sbatch", "--parsable", *waits, str(path)]
        if dry_run:
            job = f"JOB({task.name})"
            say(f"{shlex.join(call)}\n{text}")
        else:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
            job = _asked(call)
            with replacing(task.folder / "job.txt") as new:
                new.write_text(" ".join([job, *steps]))
            say(f"{task.name}: job {job}" + (f", {', '.join(after)}" if after else ""))
        jobs[task.name] = job
        submitted.append(job)
    return 1 if bad else 0


def _in_queue(task: Task) -> tuple[str, list[str]]:
    """The job that was submitted for a task and its steps, if it waits or runs; else an empty number."""
    path = task.folder / "job.txt"
    if path.is_file() and which("squeue") is not None:
        job, *steps = path.read_text().split()
        try:
            if _asked(["squeue", "--noheader", f"--jobs={job}"]):
                return job, steps
        except InputError as error:
            if "Invalid job id" not in str(error):  # else it is forgotten
                raise
    return "", []


def _asked(call: Sequence[str]) -> str:
    """What a command of SLURM answers; of sbatch the number of the job."""
    try:
        answer = subprocess.run(call, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise InputError(f"there is no {call[0]} on this machine: give this command on the cluster") from None
    if answer.returncode:
        raise InputError(f"{call[0]} refused {call[-1]}: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip().partition(";")[0]


def _option(text: str) -> tuple[str, str]:
    key, _, value = text.removeprefix("--").partition("=")
    if key in ("array", "dependency"):
        raise InputError(
            f"sbatch option {key} cannot be given: each task is a job that waits for what it needs"
        )
    if key == "nodes" and value != "1":
        raise InputError("sbatch option nodes cannot be given: a run of a study is on one node")
    if len(key) < 2 or any(letter.isspace() for letter in key):
        raise InputError(f"sbatch option {text!r} is no KEY=VALUE or KEY with the option's long name")
    return key, value
