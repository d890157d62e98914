"""What a runner shows: one table that is kept up to date on a terminal, a line at each change elsewhere."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text


class State(StrEnum):
    """Where a task stands, in the words that are shown."""

    WAITING = "waiting"
    RUNNING = "running"
    ELSEWHERE = "running elsewhere"
    FINISHED = "finished"
    EARLIER = "finished earlier"
    FAILED = "failed"
    NOT_RUN = "not run"
    STOPPED = "stopped"

    @property
    def is_good(self) -> bool:
        """Finished, by whom and whenever."""
        return self in (State.FINISHED, State.EARLIER)

    @property
    def is_over(self) -> bool:
        """Nothing more will be done about the task."""
        return self not in (State.WAITING, State.RUNNING, State.ELSEWHERE)


_STYLES = {
    State.RUNNING: "cyan",
    State.FINISHED: "green",
    State.EARLIER: "green",
    State.FAILED: "bold red",
    State.NOT_RUN: "red",
    State.STOPPED: "yellow",
}


@dataclass
class Status:
    """What is shown of a task.

    Args:
        name: the task's.
        state: where it stands.
        step: the step it is at, or at which it ended.
        news: the last line of progress, what it waits for, or its score.
        seconds: since it was started by this runner; None before.
    """

    name: str
    state: State = State.WAITING
    step: str = ""
    news: str = ""
    seconds: float | None = None

    @property
    def headline(self) -> str:
        """Its state, and its step where that matters."""
        shows_step = self.state in (State.RUNNING, State.FAILED, State.STOPPED) and self.step
        return f"{self.state}: {self.step}" if shows_step else str(self.state)

    @property
    def elapsed(self) -> str:
        """Time in this runner as h:mm:ss."""
        return "" if self.seconds is None else str(timedelta(seconds=round(self.seconds)))


class Display:
    """Shows statuses, which the runner changes, from entering to leaving.

    Args:
        statuses: one for each task.
        console: where to.
    """

    def __init__(self, statuses: Sequence[Status], console: Console) -> None:
        self.statuses, self.console = statuses, console
        self.live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self.shown: dict[str, str] = {}

    def __enter__(self) -> Self:
        if self.live is not None:
            self.live.start()
        self.refresh()
        return self

    def __exit__(self, *_: object) -> None:
        self.refresh()
        if self.live is not None:
            self.live.update(table(self.statuses))
            self.live.stop()

    def refresh(self) -> None:
        """Show how things stand now."""
        if self.live is not None:
            self.live.update(table(self.statuses, self.console.height - 6), refresh=True)
            return
        for status in self.statuses:
            if self.shown.get(status.name) != status.headline:
                self.shown[status.name] = status.headline
                if status.state is not State.WAITING:
                    self.console.print(_line(status), markup=False, highlight=False, soft_wrap=True)


def table(statuses: Sequence[Status], rows: int | None = None) -> Table:
    """A line for each task.

    Args:
        statuses: one for each task.
        rows: where there are more tasks, only those that are running or have failed get a line.
    """
    shown = statuses
    if rows is not None and len(statuses) > rows:
        shown = [s for s in statuses if s.state in (State.RUNNING, State.ELSEWHERE, State.FAILED)][:rows]
    counts = Counter(str(status.state) for status in statuses)
    caption = ", ".join(f"{counts[state]} {state}" for state in State if counts[state])
    grid = Table(box=None, caption=caption, caption_justify="left", pad_edge=False, expand=True)
    grid.add_column("task", no_wrap=True)
    grid.add_column("state", no_wrap=True)
    grid.add_column("news", ratio=1)
    grid.add_column("time", no_wrap=True, justify="right")
    for status in shown:
        style = _STYLES.get(status.state, "dim")
        grid.add_row(Text(status.name), Text(status.headline, style), Text(status.news), Text(status.elapsed))
    return grid


def _line(status: Status) -> str:
    details = ", ".join(filter(None, (status.news, status.elapsed if status.state.is_over else "")))
    return f"{status.name}: {status.headline}" + (f" ({details})" if details else "")
