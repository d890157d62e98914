"""Times of the paper's detectors: what is measured, how it reaches a report, at thumbnail size."""

import math
import runpy
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import timing
from fpn.errors import InputError
from fpn.models.detectors import Inference, ProposalNetwork
from fpn.study.paper import paper_table
from fpn.study.results import read_runs
from fpn.types import Batch

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "running_time.py"


def test_figure_1(tmp_path: Path) -> None:
    measured = timing.measure("fig1", ["d"], repeats=2, factor=0.08)
    assert list(measured) == ["d"]
    for numbers in measured.values():
        assert 0 < numbers["seconds_min"] <= numbers["seconds"] <= numbers["seconds_max"]
        peak = numbers["peak_memory_mb"]
        assert math.isnan(peak) or peak > 100  # a ResNet-50 and the libraries
    machines = ("this machine", "Another, of 2")
    for machine in machines:
        timing.write_runs("fig1", measured, tmp_path, {"data": machine})
    runs = {(run.table, run.row, run.data): run.scores for run in read_runs([tmp_path])}
    assert runs == {
        ("fig1", key, machine): numbers for key, numbers in measured.items() for machine in machines
    }


def test_each_neck_is_timed_in_its_detector() -> None:
    with torch.device("meta"):
        rows = timing.TABLES["neck_times"].items()
        built = {key: timing.detector_of("base", *row.files).neck for key, row in rows}
    kinds = {key: type(neck).__name__ for key, neck in built.items()}
    assert kinds["pafpn"] == "PAFPN"
    assert kinds["no_top_down"] == "FeaturePyramid"
    assert not built["no_top_down"].top_down
    assert len(set(kinds.values())) == 7  # FPN and its two switches are one class


@pytest.mark.long
def test_figure_1_of_proposals_times_networks_without_a_second_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    forward = ProposalNetwork.forward

    def spy(self: ProposalNetwork, batch: Batch) -> Inference:
        found = forward(self, batch)
        assert found.detections is None
        seen.append((list(self.rpn.levels), batch.sizes[0][0], len(found.proposals[0].boxes)))
        return found

    monkeypatch.setattr(ProposalNetwork, "forward", spy)
    timing.measure("fig1_proposals", ["a", "d"], repeats=1, factor=0.25)
    pyramid = [([4], side) for side in (100, 150, 200, 250, 300)]
    assert [one[:2] for one in seen] == 2 * [*pyramid, ([2, 3, 4, 5, 6], 200)]
    assert {number for levels, side, number in seen if levels == [4] and side >= 200} == {1000}, (
        "random boxes would be suppressed"
    )


def test_the_papers_models_are_timed() -> None:
    assert list(timing.TABLES["running_time"]) == list(paper_table("running_time").rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("fig1", ["e"]), "fig1 has no row 'e'; it has a, b, c, d"),
        (("fig1", ["d"], 1, "cpu", 0.0), "factor is 0"),
        (("fig1_proposals", ["d"], 1, "cpu", -1.0), "factor is -1"),
    ],
)
def test_mistakes(arguments: tuple[object, ...], message: str) -> None:
    with pytest.raises(InputError, match=message):
        timing.measure(*arguments)  # type: ignore[arg-type]


def test_where_times_cannot_be_written_none_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr(timing, "measure", lambda *_: pytest.fail("measured first"))
    monkeypatch.setattr(sys, "argv", ["running_time.py", "--out", str(tmp_path / "file" / "study")])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"running_time.py: {tmp_path / 'file' / 'study'}: Not a directory\n"
