"""Times of the paper's detectors: what is measured, how it reaches a report, at thumbnail size."""

import math
from pathlib import Path
from typing import Any

import pytest

from fpn.checkpoints import build_detector
from fpn.errors import InputError
from fpn.models.detectors import Detector, ProposalNetwork
from fpn.study import timing
from fpn.study.paper import table
from fpn.study.results import read_runs


def test_figure_1(tmp_path: Path) -> None:
    measured = timing.measure("fig1", ["a"], repeats=2, factor=0.08)
    assert list(measured) == ["a"]
    for numbers in measured.values():
        assert 0 < numbers["seconds_min"] <= numbers["seconds"] <= numbers["seconds_max"]
        peak = numbers["peak_memory_mb"]
        assert math.isnan(peak) or peak > 100  # a ResNet-50 and the libraries
    timing.write_runs("fig1", measured, tmp_path, {"data": "this machine", "toggles": {}})
    runs = read_runs([tmp_path])
    assert [(run.table, run.row, run.scores) for run in runs] == [
        ("fig1", key, numbers) for key, numbers in measured.items()
    ]


def test_figure_1_of_proposals_times_networks_without_a_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[Detector] = []

    def spy(parts: list[Any], classes: int) -> Detector:
        built.append(build_detector(parts, classes))
        return built[-1]

    monkeypatch.setattr(timing, "build_detector", spy)
    timing.measure("fig1_proposals", repeats=1, factor=0.08)
    assert [type(one) for one in built] == [ProposalNetwork] * 4
    levels = [list(one.rpn.levels) for one in built if isinstance(one, ProposalNetwork)]
    assert levels == [[4], [4], [2, 3, 4, 5, 6], [2, 3, 4, 5, 6]]


def test_the_papers_models_are_timed() -> None:
    assert list(timing.TABLES["running_time"]) == list(table("running_time").rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("table1",), "no table 'table1' of times"),
        (("fig1", ["e"]), "fig1 has no row 'e'; it has a, b, c, d"),
        (("fig1", ["d"], 0), "repeats is 0"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        timing.measure(*arguments)  # type: ignore[arg-type]
