"""What a study runs: tasks of some steps each, and what the folder of a task tells of them.

Beside the folders of its runs a task's folder holds `run.json` (what a report has to know), `log.txt`, links
to the results, and for each step a NAME.json: what it is made from, and once it has ended well, when.
"""

import fcntl
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fpn.errors import InputError
from fpn.files import newest, replacing
from fpn.study.settings import difference, result_settings, settings_of


@dataclass(frozen=True)
class Step:
    """One command of the project.

    Args:
        name: unique within its task, as fit.
        words: what follows `fpn` on the command line.
        resumable: started again with `--ckpt_path` of the newest last.ckpt of its task, if any.
        results: names of files, as last.ckpt, to be linked into the task's folder from the folder of the run;
            the first has to be there, of the others those beside it are.
        writes: names of files in the task's folder that it writes itself, and would not write over.
    """

    name: str
    words: tuple[str, ...]
    resumable: bool = False
    results: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Task:
    """Steps that run one after the other in a folder.

    Args:
        name: also the folder below the root of the study, as table1/c/seed_0.
        root: folder of the study.
        steps: in order.
        needs: the tasks that must be finished first; this one's result counts only with theirs.
        about: what a report has to know; None for what is only a stage of another task's run.
    """

    name: str
    root: Path
    steps: tuple[Step, ...]
    needs: tuple["Task", ...] = ()
    about: Mapping[str, Any] | None = field(default=None, hash=False)

    @property
    def folder(self) -> Path:
        """Where it is run."""
        return self.root / self.name

    def next_step(self) -> Step | None:
        """The first step that is not finished, None after the last.

        Raises:
            InputError: a step has been begun with other settings, or on a result of another task that is
                no longer there.
        """
        for step in self.steps:
            if record := self._record(step):
                now = self._made_from(step)
                reason = difference(record["settings"], now["settings"])
                gone = [name for name, when in record["needs"].items() if now["needs"].get(name) != when]
                if gone:
                    reason = reason or f"it was made from a result of {gone[0]} that is no longer there"
                if reason:
                    remedy = "remove the folder or choose another --out"
                    raise InputError(f"{self.folder}: of its {step.name}, {reason}; {remedy}")
            if "finished" not in record:
                return step
        return None

    def words(self, step: Step) -> tuple[str, ...]:
        """The words of a step, with the checkpoint it goes on from if there is one."""
        last = self._newest("last.ckpt") if step.resumable else None
        return step.words + (() if last is None else ("--ckpt_path", str(last)))

    def begin(self, step: Step) -> None:
        """Write down that a step starts now. Earlier results of it and of the steps after it are removed."""
        for later in self.steps[self.steps.index(step) :]:
            for name in (f"{later.name}.json", *later.results, *later.writes):
                (self.folder / name).unlink(missing_ok=True)
        self._keep_newest(step)
        if self.about is not None:
            _write(self.folder / "run.json", self.about)
        _write(self.folder / f"{step.name}.json", self._made_from(step))

    def finish(self, step: Step) -> None:
        """Link the results of a step that has just ended well, and mark it as finished.

        Raises:
            InputError: a result was not written.
        """
        for first in step.results[:1]:
            newest = self._newest(first)
            if newest is None:
                raise InputError(f"{step.name} ended well but has written no {first} below {self.folder}")
            for result in filter(Path.exists, (newest.with_name(name) for name in step.results)):
                with replacing(self.folder / result.name) as new:
                    new.symlink_to(result.relative_to(self.folder))
        self._keep_newest(step)
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        _write(self.folder / f"{step.name}.json", {**self._record(step), "finished": now})

    @contextmanager
    def locked(self) -> Iterator[int]:
        """Nobody else may be at the task meanwhile.

        Yields:
            A file descriptor: the lock lasts until it is closed in every process that inherited it.

        Raises:
            InputError: somebody is.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError("another command is at it") from None
            yield lock.fileno()

    @property
    def score(self) -> str:
        """The main score in percent, as " (AP 36.1)"; empty without scores."""
        scores = _read(self.folder / "scores.json")
        name = next((name for name in ("AP", "proposal_AR@1000") if name in scores), None)
        if name is None:
            return ""
        value = math.nan if scores[name] is None else 100 * scores[name]
        return f" ({name.removeprefix('proposal_')} {value:.1f})"

    def _record(self, step: Step) -> dict[str, Any]:
        """What is known of a step; nothing before it is begun."""
        return _read(self.folder / f"{step.name}.json")

    def _newest(self, name: str) -> Path | None:
        """The newest file of a name in the folders of runs, of which Lightning makes one a start."""
        return newest(self.folder.glob(f"version_*/**/{name}"))

    def _keep_newest(self, step: Step) -> None:
        """Remove what interrupted starts have left of a result, and later ones went on from; it is large."""
        for name in step.results if step.resumable else ():
            last = self._newest(name)
            for path in self.folder.glob(f"version_*/**/*{name}*"):
                if path != last and path.name.lstrip(".").startswith(name):
                    path.unlink()

    def _made_from(self, step: Step) -> dict[str, Any]:
        """What the result of a step depends on, as things stand now."""
        needs = {need.name: need._record(need.steps[-1]).get("finished") for need in self.needs}
        return {"settings": result_settings(settings_of(step.words)), "needs": needs}


def _read(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    return content


def _write(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as new:
        new.write_text(json.dumps(content, indent=2))
