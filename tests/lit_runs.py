"""Runs of the command line, looked at afterwards: what they logged, and where they can be interfered with."""

import csv
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

# Ten images in batches of two, five images to validate on.
TEN_STEPS = json.dumps({"steps": 10, "milestones": [8], "warmup_steps": 2, "reference_images": 2})

_KEPT = ("step", "train/rpn_objectness", "train/rpn_box", "train/roi_class", "train/roi_box")
_KEPT += ("val/AP", "val/proposal_AR@1000")


def rows(run: Path) -> list[dict[str, str]]:
    """What a run logged of losses and scores, in order."""
    with (run / "metrics.csv").open() as file:
        found = [{key: row.get(key, "") for key in _KEPT} for row in csv.DictReader(file)]
    return [row for row in found if any(value for key, value in row.items() if key != "step")]


def scores_of(run: Path) -> dict[str, Any]:
    """What a test wrote, in JSON as the standard has it; NaN where there is no object."""
    text = (run / "scores.json").read_text()
    content = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
    return {key: math.nan if value is None else value for key, value in content.items()}


def kept(run: Path, name: str) -> dict[str, Any]:
    """One of a run's checkpoints, `last` or `best`."""
    content: dict[str, Any] = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)
    return content


def best_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint tells of the best one."""
    (state,) = (state for name, state in checkpoint["callbacks"].items() if name.startswith("BestCheckpoint"))
    return dict(state)


def at_call(call: int, of: Callable[..., Any], act: Callable[..., None]) -> Callable[..., Any]:
    """A function that does as another, and once besides: after its so manieth call, with its arguments."""
    calls = 0

    def watched(*arguments: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = of(*arguments, **named)
        if calls == call:
            act(*arguments)
        return result

    return watched
