"""A study on a SLURM cluster: one array job, each index of which runs one of several commands."""

import shlex
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from fpn.errors import InputError

_GPUS = {"gres", "gpus", "gpus-per-node", "gpus-per-task"}
_CPUS = {"cpus-per-task", "cpus-per-gpu"}

# SIGTERM comes with a preemption, after which SLURM itself puts the job back in the queue, and with scancel,
# after which nobody must. SIGUSR1 is asked for ahead of the time limit, after which SLURM does not do it.
_BODY = """
cd {directory} || exit
case "$SLURM_ARRAY_TASK_ID" in
{cases}
  *) echo "no command for index $SLURM_ARRAY_TASK_ID" >&2; exit 2 ;;
esac

time_is_up=
trap 'kill -TERM "$runner"' TERM
trap 'time_is_up=yes; kill -TERM "$runner"' USR1
"${{command[@]}}" &
runner=$!
wait "$runner"; status=$?
while kill -0 "$runner" 2> /dev/null; do wait "$runner"; status=$?; done
if [ -n "$time_is_up" ] && [ "$status" -gt 128 ]; then
  scontrol requeue "${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
fi
exit "$status"
"""


def script(
    name: str,
    commands: Sequence[Sequence[str]],
    logs: str | Path,
    options: Sequence[str] = (),
    devices: int = 1,
    at_once: int | None = None,
    directory: str | Path | None = None,
) -> str:
    """The sbatch script of an array job.

    Two minutes ahead of the time limit, or when it is preempted, a command gets a SIGTERM, and it is
    started again when the job is back from the queue; so it must be one that goes on where it was.

    Args:
        name: of the job.
        commands: one for each index, as words.
        logs: folder, which must exist, for the output of each index.
        options: of sbatch, as "partition=gpu" or "exclusive"; they win over what is set here.
        devices: GPUs of each index, on one node.
        at_once: indices that may run at a time; None for all.
        directory: where the commands are run; by default the current one.

    Raises:
        InputError: an option cannot be given.
    """
    given = dict(_option(option) for option in options)
    wanted = {
        "job-name": name,
        "output": f"{Path(logs).resolve()}/%x-%A_%a.txt",
        "open-mode": "append",
        "nodes": "1",
        "ntasks": "1",
        "cpus-per-task": str(max(8 * devices, 2)),
        "gpus-per-node": str(devices),
        "requeue": "",
        "signal": "B:USR1@120",
    }
    if devices == 0 or _GPUS & given.keys():
        del wanted["gpus-per-node"]
    if _CPUS & given.keys():
        del wanted["cpus-per-task"]
    array = f"0-{len(commands) - 1}" + (f"%{at_once}" if at_once else "")
    lines = {**wanted, **given, "array": array}
    head = [f"#SBATCH --{key}" + (f"={shlex.quote(value)}" if value else "") for key, value in lines.items()]
    cases = [f"  {index}) command=({shlex.join(command)}) ;;" for index, command in enumerate(commands)]
    body = _BODY.format(directory=shlex.quote(str(Path(directory or "").resolve())), cases="\n".join(cases))
    return "\n".join(["#!/usr/bin/env bash", *head, body])


def submit(text: str, path: str | Path) -> str:
    """Write a script and give it to sbatch.

    Args:
        text: the script.
        path: where it is written; its folder is made if it is missing.

    Returns:
        What sbatch answered.

    Raises:
        InputError: there is no sbatch here, or it refused the script.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    if shutil.which("sbatch") is None:
        raise InputError(f"there is no sbatch on this machine; submit on the cluster: sbatch {path}")
    answer = subprocess.run(["sbatch", str(path)], capture_output=True, text=True, check=False)
    if answer.returncode:
        raise InputError(f"sbatch refused {path}: {' '.join(answer.stderr.split())}")
    return answer.stdout.strip()


def _option(text: str) -> tuple[str, str]:
    key, _, value = text.removeprefix("--").partition("=")
    if key == "array":
        raise InputError("sbatch option array cannot be given: its indices are the runs; see --jobs")
    if not key or any(letter.isspace() for letter in key):
        raise InputError(f"sbatch option {text!r} is not KEY=VALUE or KEY; give them as words of their own")
    return key, value
