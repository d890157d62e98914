"""What the runner runs: tasks of some steps each, every one a folder of its own."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """One command of the project.

    Args:
        name: unique within its task, as fit.
        arguments: what follows `fpn` on the command line.
        resumable: started again with `--ckpt_path` of the newest last.ckpt below its task's folder, if any.
        collect: files, as last.ckpt, to be linked into the task's folder from where the step has just
            written them below it, and removed from there when the step is begun again.
    """

    name: str
    arguments: tuple[str, ...]
    resumable: bool = False
    collect: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Steps that run one after the other in a folder.

    Args:
        name: also the folder below the root of the study, as table1/c/seed_0.
        steps: in order.
        needs: names of the tasks that must be finished first; this one's result counts only with theirs.
        about: what a report has to know, written to the folder's run.json; None for what is only a stage of
            another task's run.
    """

    name: str
    steps: tuple[Step, ...]
    needs: tuple[str, ...] = ()
    about: dict[str, Any] | None = field(default=None, hash=False)
