"""The benchmark at thumbnail size: what it compares, how it takes turns, and what it tells."""

import importlib.util
import itertools
import json
import multiprocessing
import os
import shutil
import threading
from collections.abc import Callable
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fpn import InputError
from fpn.benchmark import comparison, infer, peer, roi, scaling, score, sides, train
from fpn.benchmark.comparison import DisagreementError
from fpn.benchmark.images import jpeg_files
from fpn.benchmark.plots import Line, Panel
from fpn.benchmark.report import Case, Measured, Report, markdown
from fpn.benchmark.sides import Side
from fpn.benchmark.work import BenchmarkError, Memory, Setup, Work
from fpn.evaluation import evaluate_boxes

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "benchmark.py"


class Threads:
    """In place of multiprocessing's context: starting Python takes seconds."""

    Pipe = staticmethod(multiprocessing.Pipe)

    class Process(threading.Thread):
        exitcode = 0

        def __init__(self, target: Callable[..., None], args: tuple[Any, ...], daemon: bool) -> None:
            # Of its own, as a process would have it: the other is closed once this has begun.
            connection = Connection(os.dup(args[0].fileno()))
            super().__init__(target=target, args=(connection, *args[1:]), daemon=daemon)

        def terminate(self) -> None:
            """It ends with its connection."""


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sides.multiprocessing, "get_context", lambda _: Threads)
    monkeypatch.setattr("fpn.benchmark.work.keep_freed_memory", lambda: False)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("weights") / "weights.pth"
    peer.write_weights(file)
    return file


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("benchmark_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def printed_and_written(
    script: ModuleType, capsys: pytest.CaptureFixture[str], file: Path, *words: str
) -> dict[str, Any]:
    """What a command writes as JSON, which has all that it prints."""
    script.main([*words, "--json", str(file)])
    content: dict[str, Any] = json.loads(file.read_text())
    assert capsys.readouterr().out == markdown(content) + "\n"
    return content


def told(script: ModuleType, capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and the line that a command ends with."""
    with pytest.raises(SystemExit) as ended:
        script.main(list(words))
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return int(str(ended.value.code)), err


@pytest.mark.usefixtures("in_process")
def test_inference(
    script: ModuleType,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(infer, "write_weights", lambda file: shutil.copy(weights, file))
    small = ["infer", "--short_side", "64", "--max_side", "96", "--number", "1"]
    content = printed_and_written(script, capsys, tmp_path / "infer.json", *small, "--rounds", "2")
    (case,) = content["cases"]
    assert [side["side"] for side in case["sides"]] == ["torchvision", "ours"]
    assert content["notes"] == [comparison.SYSTEM_ALLOCATOR]
    assert "100 of 100 detections matched" in content["agreement"][0]
    for side in case["sides"]:
        low, high = sorted(side["all_seconds"])
        assert (side["seconds_min"], side["seconds_max"]) == (low, high)
        assert side["seconds"] == pytest.approx((low + high) / 2)
        assert side["gflops"] == pytest.approx(case["gflop"] / side["seconds"])

    theirs, perturbed = peer.load_theirs(weights, min_size=64, max_size=96), peer.load_ours(weights)
    with torch.no_grad():
        perturbed.neck.get_parameter("smooths.3.0.weight").mul_(1.5)
    monkeypatch.setattr(infer, "load_theirs", lambda *_, **__: theirs)
    monkeypatch.setattr(infer, "load_ours", lambda _: perturbed)
    monkeypatch.setattr(comparison, "take_turns", lambda *_, **__: pytest.fail("timed all the same"))
    status, line = told(script, capsys, *small)
    assert status == 1
    assert line.startswith("benchmark.py: the outputs disagree, so no times are given: ")


def test_losses_are_compared_without_chance(weights: Path, tmp_path: Path) -> None:
    files = jpeg_files(None, 1, tmp_path)
    works = [make(weights, files, 64, 96, "fp32", "cpu") for make in (train.theirs, train.ours)]
    torch.manual_seed(1)
    first, second = (work.outputs() for work in works)
    assert train.same_losses(first, second)
    assert len(first) == 4
    model, _, sample_all = train.our_losses(weights, 64, 96, "cpu")
    usual = model.training_proposals, model.anchor_sampling, model.roi_sampling
    sample_all()()
    assert (model.training_proposals, model.anchor_sampling, model.roi_sampling) == usual
    with pytest.raises(DisagreementError, match="rpn_box"):
        train.same_losses(first, second | {"rpn_box": 1.01 * second["rpn_box"]})
    with pytest.raises(DisagreementError, match="nan"):
        train.same_losses(first, second | {"roi_box": float("nan")})


@pytest.mark.usefixtures("in_process")
def test_roi_pooling(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["roi", "--rois", "16", "--short_side", "128"]
    content = printed_and_written(script, capsys, tmp_path / "roi.json", *words, "--rounds", "1")
    (case,) = content["cases"]
    assert case["gflop"] is None
    assert "of peak" not in markdown(content)
    usual = roi.Pooled.forward
    monkeypatch.setattr(roi.Pooled, "forward", lambda self, x: usual(self, x * 1.001))
    assert told(script, capsys, *words)[0] == 1


def test_rois_are_of_all_levels() -> None:
    boxes = roi._boxes(512, 800, 1088, 0)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    levels = (4 + (sides / 224).log2()).floor().clamp(2, 5)
    assert levels.unique(return_counts=True)[1].tolist() == pytest.approx([128] * 4, abs=110)
    assert (boxes[:, 2] <= 1088).all()
    assert (boxes[:, 3] <= 800).all()


@pytest.mark.usefixtures("in_process")
def test_the_input_pipeline(script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "--number", "3", "--short_side", "700", "--rounds", "1"]
    content = printed_and_written(script, capsys, tmp_path / "data.json", *words)
    assert content["settings"]["images"] == 4
    assert "100.00 % of them" in content["agreement"][0]
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    status, line = told(script, capsys, *words, "--images", str(tmp_path))
    assert status == 2
    assert "broken.jpg: cannot be decoded" in line


@pytest.mark.usefixtures("in_process")
def test_scoring(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["score", "--images", "20", "--detections", "12", "--proposal_images", "10", "--proposals", "9"]
    content = printed_and_written(script, capsys, tmp_path / "score.json", *words)
    assert [case["sides"][0]["side"] for case in content["cases"]] == ["pycocotools"] * 2
    assert len(content["agreement"]) == 4  # of a tenth and of all, twice
    score.write_files(tmp_path / "made", 20, 12)
    scores = evaluate_boxes(tmp_path / "made" / "annotations.json", tmp_path / "made" / "results.json")
    assert 0.1 < scores["AP"] < 0.9
    usual = score.evaluate_proposals

    def wrong(*files: Path, engine: str) -> dict[str, float]:
        scores = usual(*files, engine=engine)  # type: ignore[arg-type]
        return scores if engine == "pycocotools" else {name: s + 1e-6 for name, s in scores.items()}

    monkeypatch.setattr(score, "evaluate_proposals", wrong)
    status, line = told(script, capsys, *words)
    assert status == 1
    assert "scores differ by 1.0e-06" in line


class Point(nn.Module):
    """Stands for a network that learns."""

    def __init__(self) -> None:
        super().__init__()
        self.at = nn.Parameter(torch.ones(3))


def tiny(*_: object) -> train.Learner:
    point = Point()

    def losses(samples: Any) -> dict[str, Tensor]:
        return {"rpn_box": point.at.sum() * len(samples)}

    return point, losses, lambda: lambda: None


@pytest.mark.usefixtures("in_process")
def test_scaling_and_training_to_the_end(
    script: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks that do nothing."""
    nothing = [[torch.tensor([[0.0, 0, 9, 9]]), torch.tensor([0.9]), torch.tensor([1])]]
    for module in (train, scaling):
        monkeypatch.setattr(module, "write_weights", lambda file: None)
    for name in ("their", "our"):
        monkeypatch.setattr(train, f"{name}_losses", tiny)
        idle = Work(lambda point: None, lambda point: nothing)
        monkeypatch.setattr(scaling, f"{name}_inference", lambda *_, work=idle: work)
    monkeypatch.setattr(torch.multiprocessing, "spawn", lambda learn, given, _: learn(0, *given))
    content = printed_and_written(script, capsys, tmp_path / "train.json", "train", "--rounds", "1")
    assert content["cases"][0]["unit"] == "step"

    words = ["--short_sides", "[8, 16]", "--crowds", "[1, 2]", "--boxes", "[1, 2]", "--processes", "[1]"]
    words += ["--plot", str(tmp_path / "figure.png")]
    content = printed_and_written(script, capsys, tmp_path / "scaling.json", "scaling", *words)
    assert [[row[0] for row in table["rows"]] for table in content["tables"]] == [
        [8, 16],
        [10, 100, 1000, 2000],
        [1, 2],
        [1],
    ]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")
    status, line = told(script, capsys, "scaling", "--boxes", "[2, 1]")
    assert status == 2
    assert "boxes is [2, 1]" in line


@pytest.mark.parametrize(
    "words",
    [
        ["infer", "--device", "gpu"],
        ["infer", "--batch", "0"],
        ["train", "--rounds", "0"],
        ["train", "--images", "nowhere"],
        ["roi", "--json", "nowhere/roi.json"],
        ["scaling", "--plot", "nowhere/plot.png"],
        pytest.param(
            ["roi", "--device", "cuda"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_are_a_line(
    script: ModuleType,
    words: list[str],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(train, "write_weights", lambda file: None)
    status, line = told(script, capsys, *words)
    assert status == 2
    assert words[-1] in line


def test_a_side_is_a_process() -> None:
    with sides.started(
        [Setup("one", partial(roi.ours, 4, 64, 96, "cpu"), keeps_memory=False)], threads=1
    ) as (side,):
        assert side.run() > 0
        assert 0 < side.memory().before <= side.memory().peak
        side.process.kill()
        with pytest.raises(BenchmarkError, match="'one' ended with status -9"):
            side.run()


@pytest.mark.usefixtures("in_process")
def test_operations_are_counted() -> None:
    a, b = torch.ones(10, 20), torch.ones(20, 30)
    with sides.started([Setup("product", lambda: Work(lambda: a @ b, lambda: None), False)]) as (side,):
        assert side.flops() == 2 * 10 * 20 * 30


@pytest.mark.usefixtures("in_process")
def test_what_a_side_cannot_do_is_told() -> None:
    def refuses() -> Work:
        raise InputError("file x: not there")

    def breaks() -> Work:
        return Work(lambda: 1 // 0, lambda: None)

    with pytest.raises(InputError, match="file x"), sides.started([Setup("a", refuses, False)]):
        pass
    broken = sides.started([Setup("b", breaks, False)])
    with broken as (side,), pytest.raises(BenchmarkError, match="b: ZeroDivisionError: integer"):
        side.run()


class Recorded(Side):
    """Notes in `calls` when it is asked; its repetitions take 0, 1, 2, … seconds."""

    def __init__(self, name: str, calls: list[tuple[Any, ...]]) -> None:
        super().__init__(name, False, None, None)
        self.calls, self.seconds = calls, itertools.count()

    def run(self, *point: Any) -> float:
        self.calls.append((self.name, *point))
        return next(self.seconds)


def test_sides_take_turns() -> None:
    calls: list[tuple[Any, ...]] = []
    pair = [Recorded(name, calls) for name in "ab"]
    assert sides.take_turns(pair, 3) == {("a",): [0, 1, 2], ("b",): [0, 1, 2]}
    assert "".join(name for (name,) in calls) == "abbaab"
    calls.clear()
    found = sides.take_turns(pair, 2, [10, 20])
    assert calls == [(name, p) for names in ("ab", "ba") for p in (10, 20) for name in names]
    assert found["a", 20] == [4, 6]


def test_numbers_by_hand() -> None:
    theirs = Measured("torchvision", [1.0, 9.0, 3.0], Memory(100.0, 300.0))
    same = Measured("torchvision, same allocator", [2.0, 2.0, 2.5], Memory(100.0, float("nan")))
    ours = Measured("ours", [1.0, 1.5, 4.0], Memory(100.0, 200.0))
    case = Case("work", "image", [theirs, same, ours], gflop=6.0, peak_gflops=10.0)
    report = Report("By hand", {"CPU": "one"}, {"rounds": 3}, ["wholly"], cases=[case])
    shown = case.as_dict()["sides"]
    assert [side["ratio"] for side in shown] == [2.0, pytest.approx(4 / 3), 1.0]
    assert [side["share_of_peak"] for side in shown] == [pytest.approx(x) for x in (0.2, 0.3, 0.4)]
    text = markdown(report.as_dict() | {"command": "benchmark"})
    assert "| torchvision | 3.00 | 1.00 – 9.00 | 0.333 | 2.00 | 20 % | 100 | 300 | 2.00 |" in text
    assert (
        "| torchvision, same allocator | 2.00 | 2.00 – 2.50 | 0.500 | 3.00 | 30 % | 100 |  | 1.33 |" in text
    )
    assert "| ours | 1.50 | 1.00 – 4.00 | 0.667 | 4.00 | 40 % | 100 | 200 | 1.00 |" in text
    assert json.loads(json.dumps(report.as_dict(), allow_nan=False))["agreement"] == ["wholly"]


def test_a_panel_is_a_table() -> None:
    lines = [Line("a", [1, 10], [[1.0, 3.0, 2.0], [5.0]]), Line("b", [10], [[7.0]])]
    table = Panel("cost", "boxes", "s", lines).table()
    assert table.columns == ["boxes", "a, s", "a, min", "a, max", "b, s", "b, min", "b, max"]
    assert table.rows == [[1, 2.0, 1.0, 3.0, None, None, None], [10, 5.0, 5.0, 5.0, 7.0, 7.0, 7.0]]


def detections(number: int) -> list[Tensor]:
    corner = 10.0 * torch.arange(number)[:, None].expand(-1, 2)
    boxes = torch.cat((corner, corner + 5), dim=1)
    return [boxes, torch.linspace(1, 0.5, number), torch.arange(number) % 3 + 1]


def test_detections_match_pairwise() -> None:
    boxes, scores, labels = detections(100)
    order = torch.randperm(100)
    assert "100 of 100" in infer.same_detections(
        [[boxes, scores, labels]], [[boxes[order], scores[order], labels[order]]]
    )
    near = infer.same_detections([[boxes, scores, labels]], [[boxes + 0.01, scores - 5e-4, labels]])
    assert "boxes differ by 1.0e-02 px at most, scores by 5.0e-04" in near
    for part, by in ((0, 0.1), (1, 2e-3), (2, 1)):
        for far, agrees in ((1, True), (2, False)):
            other = [boxes.clone(), scores.clone(), labels.clone()]
            other[part][:far] += by
            if agrees:
                assert "99 of 100" in infer.same_detections([[boxes, scores, labels]], [other])
            else:
                with pytest.raises(DisagreementError, match="98 of 100"):
                    infer.same_detections([[boxes, scores, labels]], [other])
    with pytest.raises(DisagreementError, match="50 of 100"):  # no box of ours is the same as two of theirs
        infer.same_detections(
            [[t[:50].repeat(2, *[1] * (t.ndim - 1)) for t in (boxes, scores, labels)]],
            [[boxes[:50], scores[:50], labels[:50]]],
        )
    with pytest.raises(DisagreementError, match="0 of 0"):
        infer.same_detections([detections(0)], [detections(0)])
    with pytest.raises(DisagreementError, match="0 of 9"):
        infer.same_detections([detections(9)], [detections(0)])
