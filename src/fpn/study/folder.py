"""A task's folder on disk: which steps are finished, where one goes on, who is at it."""

import fcntl
import hashlib
import json
import math
import os
import shutil
import socket
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import yaml

from fpn.errors import InputError
from fpn.files import replacing
from fpn.study.log import Log
from fpn.study.tasks import Step, Task
from fpn.weights import read_checkpoint

_LAST = "last.ckpt"


class TaskFolder:
    """What the folder of a task tells, and what is written there.

    Beside what the steps write themselves it holds `log.txt`, `run.json` (what a report has to
    know), the collected files, and for each step NAME.begun and NAME.done: its arguments, the
    SHA-256 of the configuration files among them, the working directory, and when the tasks it needs
    were finished. `lock` is locked while somebody is at the task.

    Args:
        task: what is run there.
        root: folder of the study; the task's is root/task.name. Folders of other tasks may lie in it.
        needs: the tasks that it needs.
    """

    def __init__(self, task: Task, root: Path, needs: Sequence[Task] = ()) -> None:
        self.task, self.needs = task, [TaskFolder(need, root) for need in needs]
        self.path = root / task.name
        self.log = Log(self.path / "log.txt")

    def next_step(self) -> Step | None:
        """The first step that is not finished, None after the last.

        Raises:
            InputError: a step has been finished with other arguments, with a configuration file that
                has changed since, or on a result of another task that is no longer there.
        """
        missing = None
        for step in self.task.steps:
            done = _read(self._marker(step, "done"))
            if done is None:
                missing = missing or step
            else:
                self._refuse_another(step, done)
        return missing

    def checkpoint(self, step: Step) -> Path | None:
        """The newest intact last.ckpt that this step has written, None if it starts anew.

        Raises:
            InputError: it was written with other arguments or from other files, as in `next_step`.
        """
        if not step.resumable:
            return None
        for path in self._written(step, _LAST):
            try:
                read_checkpoint(path)
            except InputError:
                continue
            begun = _read(self._marker(step, "begun"))
            if begun is not None:
                self._refuse_another(step, begun)
            return path
        return None

    def begin(self, step: Step) -> tuple[str, ...]:
        """Write down that a step starts now.

        Earlier results of this step and of those after it count no more: what was collected from them
        is removed.

        Returns:
            Its arguments, with the checkpoint it goes on from if there is one.

        Raises:
            InputError: see `checkpoint`.
        """
        checkpoint = self.checkpoint(step)
        redone = self.task.steps[self.task.steps.index(step) :]
        stale = [self._marker(later, "done") for later in redone]
        stale += [self.path / name for later in redone for name in later.collect]
        for path in stale:
            path.unlink(missing_ok=True)
        if self.task.about is not None:
            steps = [list(other.arguments) for other in self.task.steps]
            _write(self.path / "run.json", {**self.task.about, "arguments": steps})
        begun = {
            **self._made_from(step),
            "started": _now(),
            "host": socket.gethostname(),
            "resumed": None if checkpoint is None else str(checkpoint),
        }
        _write(self._marker(step, "begun"), begun)
        return resumed(step, checkpoint)

    def finish(self, step: Step, seconds: float) -> None:
        """Collect what a step has written and, last of all, mark it as finished.

        Args:
            step: it has just ended well.
            seconds: since it was last started.

        Raises:
            InputError: a file to be collected was not written.
        """
        for name in step.collect:
            source = next(self._written(step, name), None)
            if source is None:
                raise InputError(f"{step.name} ended well but has written no {name} below {self.path}")
            _link(source, self.path / name)
        begun = _read(self._marker(step, "begun")) or {}
        times = {"finished": _now(), "seconds": round(seconds, 1), "host": socket.gethostname()}
        _write(self._marker(step, "done"), {**begun, "arguments": list(step.arguments), **times})

    def lock(self) -> int | None:
        """Lock the folder, made if it is missing.

        Returns:
            A file descriptor: the lock lasts until it is closed, here and in every process that inherited
            it. None while somebody else holds the lock.

        Raises:
            InputError: the file system has no locks.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT, 0o666)
        if not _try_lock(lock, fcntl.LOCK_EX, self.path):
            os.close(lock)
            return None
        os.ftruncate(lock, 0)
        os.write(lock, f"{socket.gethostname()}, process {os.getpid()}\n".encode())
        return lock

    def is_locked(self) -> bool:
        """Whether somebody is at the task just now; nothing is written to find out."""
        try:
            lock = os.open(self.path / "lock", os.O_RDONLY)
        except FileNotFoundError:
            return False
        try:
            return not _try_lock(lock, fcntl.LOCK_SH, self.path)
        finally:
            os.close(lock)

    def holder(self) -> str:
        """Host and process of whoever locked the folder last."""
        path = self.path / "lock"
        return path.read_text().strip() if path.is_file() else ""

    def score(self) -> str:
        """The main score in percent, as "AP 36.1"; empty without scores.json."""
        scores = _read(self.path / "scores.json") or {}
        name = next((name for name in ("AP", "proposal_AR@1000") if name in scores), None)
        if name is None:
            return ""
        value = scores[name]
        none = value is None or math.isnan(value)
        return f"{name.removeprefix('proposal_')} " + ("-" if none else f"{100 * value:.1f}")

    def _marker(self, step: Step, kind: str) -> Path:
        return self.path / f"{step.name}.{kind}"

    def _written(self, step: Step, name: str) -> Iterator[Path]:
        """Files of a name below the folder that this step has written, the newest first."""
        index = self.task.steps.index(step)
        since = 0
        if index:
            before = self._marker(self.task.steps[index - 1], "done")
            since = before.stat().st_mtime_ns if before.is_file() else 0
        others = {lock.parent for lock in self.path.glob("*/**/lock")}
        found = [p for p in self.path.glob(f"*/**/{name}") if p.is_file() and others.isdisjoint(p.parents)]
        times = sorted(((p.stat().st_mtime_ns, p) for p in found), reverse=True)
        return (path for time_ns, path in times if time_ns >= since)

    def _finished(self) -> str | None:
        """When the task was finished, which tells its results apart; None where it is not."""
        done = _read(self._marker(self.task.steps[-1], "done")) or {}
        return done.get("finished")

    def _made_from(self, step: Step) -> dict[str, Any]:
        """What the result of a step depends on, as things stand now."""
        return {
            "arguments": list(step.arguments),
            "directory": str(Path.cwd()),
            "contents": _configs(step.arguments),
            "needs": {need.task.name: need._finished() for need in self.needs},
        }

    def _refuse_another(self, step: Step, marker: dict[str, Any]) -> None:
        """Raise an InputError if a marker tells of a step that was run from something else than now.

        What an older marker does not tell counts as the same.
        """
        now = self._made_from(step)
        edited = _changed(marker.get("contents", {}), now["contents"])
        renewed = _changed(marker.get("needs", {}), now["needs"])
        if marker.get("arguments") != now["arguments"]:
            difference = f"with other arguments, {_difference(marker.get('arguments', ()), step.arguments)}"
        elif edited:
            difference = f"before {edited} was changed"
        elif renewed:
            difference = f"on a result of {renewed} that is no longer there"
        else:
            return
        directory, remedy = "", "remove the folder or choose another --out"
        if marker.get("directory", now["directory"]) != now["directory"]:
            directory = f" in the directory {marker['directory']}"
            remedy = f"go on from that directory, {remedy}"
        raise InputError(f"{self.path}: its {step.name} was run{directory} {difference}; {remedy}")


def resumed(step: Step, checkpoint: Path | None) -> tuple[str, ...]:
    """A step's arguments when it goes on from a checkpoint, or starts anew without one."""
    return step.arguments + (() if checkpoint is None else ("--ckpt_path", str(checkpoint)))


def _configs(arguments: Sequence[str]) -> dict[str, str]:
    """SHA-256 of what the configuration files among some arguments say, of those that can be read."""
    files = [value for option, value in pairwise(arguments) if option in ("-c", "--config")]
    files += [word.partition("=")[2] for word in arguments if word.startswith("--config=")]
    hashes = {}
    for file in files:
        with suppress(OSError):
            hashes[file] = _hash(Path(file).read_bytes())
    return hashes


@cache
def _hash(text: bytes) -> str:
    """Of YAML without its comments and layout, which make no other run."""
    with suppress(yaml.YAMLError, UnicodeDecodeError):
        text = yaml.safe_dump(yaml.safe_load(text)).encode()
    return hashlib.sha256(text).hexdigest()


def _changed(then: dict[str, str | None], now: dict[str, str | None]) -> str | None:
    """The first name of which something else was known then."""
    return next((name for name, value in then.items() if value is not None and now.get(name) != value), None)


def _difference(then: Sequence[str], now: Sequence[str]) -> str:
    before, after = _options(then), _options(now)
    gone = " ".join(option for option in before if option not in after) or "nothing more"
    new = " ".join(option for option in after if option not in before) or "nothing more"
    return f"then {textwrap.shorten(gone, 150)}, now {textwrap.shorten(new, 150)}"


def _options(arguments: Sequence[str]) -> list[str]:
    """Each option with its values as one text."""
    options: list[str] = []
    for argument in arguments:
        if argument.startswith("-") or not options:
            options.append(argument)
        else:
            options[-1] += f" {argument}"
    return options


def _try_lock(lock: int, kind: int, path: Path) -> bool:
    try:
        fcntl.flock(lock, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise InputError(
            f"{path} cannot be locked ({error.strerror}); choose an --out on a file system with locks"
        ) from error
    return True


def _read(path: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise InputError(f"{path} is not JSON; remove it") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} does not hold an object; remove it")
    return content


def _write(path: Path, content: dict[str, Any]) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=2) + "\n")


def _link(source: Path, target: Path) -> None:
    if target.exists() and source.samefile(target):
        return  # renaming a link onto its twin would leave both
    with replacing(target) as new:
        try:
            os.link(source, new)
        except OSError:
            shutil.copy2(source, new)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
