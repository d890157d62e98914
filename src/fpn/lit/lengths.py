"""Epochs or steps: which of them the one who starts a run means, where both are given."""

from collections.abc import Mapping, Sequence
from typing import Any

from fpn.errors import InputError
from fpn.words import options_of, value_of

_SCHEDULE = "model.schedule"


def displaced_epochs(contents: Sequence[Any], words: Sequence[str]) -> Any:
    """The epochs that a run is told and is not to count, for steps are given later; None if it has none such.

    Where one file gives both, as that of a run does, it counts epochs.

    Args:
        contents: of the configurations, in their order.
        words: of the command line, whose options come after all of them.

    Raises:
        InputError: both are options of the command line, or what multiplies steps comes after the epochs.
    """
    options = _options(words)
    if options.get("epochs") is not None and (others := options.keys() & {"steps", "length"}):
        raise InputError(f"--epochs and --{_SCHEDULE}.{min(others)} both say how long it trains: give one")
    meant, epochs = "", None
    for schedule in (*map(_schedule, contents), options):
        if schedule.get("epochs") is not None:
            meant, epochs = "epochs", schedule["epochs"]
        elif "epochs" in schedule:
            meant, epochs = "", None
        elif "steps" in schedule:
            meant = "steps"
        elif "length" in schedule and meant == "epochs":
            meant = "length"
    if meant == "length":
        raise InputError(
            "model.schedule.length multiplies steps, and this run counts epochs: give --epochs N"
        )
    return epochs if meant == "steps" else None


def _schedule(content: Any) -> Mapping[str, Any]:
    for name in ("model", "schedule"):
        content = content.get(name) if isinstance(content, Mapping) else None
    return content if isinstance(content, Mapping) else {}


def _options(words: Sequence[str]) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name, text in options_of(words):
        value = value_of(text or "")
        if name == _SCHEDULE:
            given |= _schedule({"model": {"schedule": value}})
        elif name.startswith(f"{_SCHEDULE}."):
            given[name.removeprefix(f"{_SCHEDULE}.")] = value
    return given
