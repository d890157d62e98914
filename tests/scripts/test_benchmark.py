"""The benchmark at thumbnail size: what it compares, how it takes turns, and what it tells."""

import copy
import itertools
import json
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import benchmark
from benchmarks import comparison, infer, inputs, parts, scaling, stages, train
from benchmarks.comparison import DisagreementError, Run, Work
from fpn.evaluation import score_boxes

Given = tuple[Path, list[Path]]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Given]:
    """Weights, and an image."""
    with inputs.weights_and_files(None, 1) as found:
        yield found


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch, given: Given) -> None:
    """Threads in place of processes: starting Python takes seconds."""

    @contextmanager
    def made(images: str | None, number: int) -> Iterator[Given]:
        yield given[0], given[1] * number

    monkeypatch.setattr(comparison, "ProcessPoolExecutor", lambda number, context: ThreadPoolExecutor(number))
    monkeypatch.setattr(comparison, "keep_freed_memory", lambda: False)
    for name in ("load_theirs", "load_ours"):
        monkeypatch.setattr(infer, name, cache(getattr(inputs, name)))
    for module in (infer, train, scaling):
        monkeypatch.setattr(module, "weights_and_files", made)


def told(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    """Exit status and what a command says in place of a table."""
    with pytest.raises(SystemExit) as ended:
        benchmark.main(list(words))
    out, err = capsys.readouterr()
    assert out == ""
    code = ended.value.code
    return (code, err) if isinstance(code, int) else (1, str(code))


@pytest.mark.usefixtures("in_process")
def test_inference(
    given: Given, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["infer", "--short_side", "64", "--max_side", "96", "--number", "1"]
    benchmark.main([*small, "--rounds", "2", "--json", str(tmp_path / "infer.json")])
    content = json.loads((tmp_path / "infer.json").read_text())
    assert capsys.readouterr().out == comparison.markdown(content) + "\n"
    sides = [row["side"] for row in content["rows"]]
    assert sides == ["torchvision", "torchvision, same allocator", "ours"]
    assert "100 of 100 detections matched" in content["agreement"][0]
    assert {len(row["seconds"]) for row in content["rows"]} == {2}
    assert all(0 < row["mb_before"] <= row["mb_peak"] for row in content["rows"])

    perturbed = inputs.load_ours(given[0])
    with torch.no_grad():
        perturbed.neck.get_parameter("smooths.3.0.weight").mul_(1.5)
    monkeypatch.setattr(infer, "load_ours", lambda _: perturbed)
    monkeypatch.setattr(comparison, "take_turns", lambda *_: pytest.fail("timed all the same"))
    status, line = told(capsys, *small)
    assert status == 1
    assert line.startswith("benchmark.py: the outputs disagree, so no times are given: ")


def test_losses_are_compared_without_chance(given: Given) -> None:
    run = inputs.NetworkRun(short_side=64, max_side=96)
    first, second = (make(run, *given)(True) for make in (train.theirs, train.ours))
    assert train.same_losses(first, second)
    assert len(first) == 4
    with pytest.raises(DisagreementError, match="rpn_box"):
        train.same_losses(first, second | {"rpn_box": 1.01 * second["rpn_box"]})
    with pytest.raises(DisagreementError, match="nan"):
        train.same_losses(first, second | {"roi_box": float("nan")})


@pytest.mark.usefixtures("in_process")
def test_training_and_scaling_to_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With networks that do nothing."""

    def learns(*_: object) -> Work:
        return lambda compared: {"rpn_box": 1.0}

    def finds(*_: object) -> Work:
        return lambda compared, short, long: []

    monkeypatch.setattr(scaling, "same_stages", lambda *_: "nothing was compared")
    for name in ("theirs", "ours"):
        monkeypatch.setattr(train, name, learns)
        monkeypatch.setattr(scaling, name, finds)
    benchmark.main(["train", "--rounds", "1"])
    assert "| training step, 2 images, fp32 | ours |" in capsys.readouterr().out
    file = tmp_path / "scaling.json"
    benchmark.main(["scaling", "--short_sides", "[8, 16]", "--boxes", "[1, 2]", "--json", str(file)])
    rows = [(row["work"], row["side"]) for row in json.loads(file.read_text())["rows"]]
    assert rows == [
        *itertools.product(("inference, short side 8", "inference, short side 16"), ("torchvision", "ours")),
        ("matching 217,413 anchors, 1 boxes", "ours"),
        ("matching 217,413 anchors, 2 boxes", "ours"),
    ]


@pytest.mark.usefixtures("in_process")
def test_roi_pooling(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["roi", "--rois", "16", "--short_side", "128", "--rounds", "1"]
    benchmark.main(words)
    assert "Outputs agree: RoI pooling" in capsys.readouterr().out
    usual = parts.Pooled.forward
    monkeypatch.setattr(parts.Pooled, "forward", lambda self, x: usual(self, x * 1.001))
    assert told(capsys, *words)[0] == 1


def test_rois_are_of_all_levels() -> None:
    boxes = parts.of_all_levels(512, (800, 1088), 0)
    sides = (boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sqrt()
    levels = (4 + (sides / 224).log2()).floor().clamp(2, 5)
    assert levels.unique(return_counts=True)[1].tolist() == pytest.approx([128] * 4, abs=110)
    assert (boxes[:, 2] <= 1088).all()
    assert (boxes[:, 3] <= 800).all()


@pytest.mark.usefixtures("in_process")
def test_the_input_pipeline(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "--number", "3", "--short_side", "700", "--rounds", "1"]
    benchmark.main(words)
    out = capsys.readouterr().out
    assert "100.00 % of them" in out
    assert out.count("data.images.antialias true | ours") == 1
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    status, line = told(capsys, *words, "--images", str(tmp_path))
    assert status == 2
    assert "broken.jpg: cannot be decoded" in line


@pytest.mark.usefixtures("in_process")
def test_scoring(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["score", "--images", "20", "--detections", "12", "--proposal_images", "10", "--proposals", "9"]
    benchmark.main(words)
    out = capsys.readouterr().out
    assert out.count("| pycocotools |") == out.count("Outputs agree") == 2
    parts.write_files(tmp_path / "made", 20, 12)
    scores = score_boxes(tmp_path / "made" / parts.TRUTH, tmp_path / "made" / parts.RESULTS).overall
    assert 0.1 < scores["AP"] < 0.9
    usual = parts.evaluate_proposals

    def wrong(*files: Path, engine: str) -> dict[str, float]:
        scores = usual(*files, engine=engine)  # type: ignore[arg-type]
        return scores if engine == "pycocotools" else {name: s + 1e-6 for name, s in scores.items()}

    monkeypatch.setattr(parts, "evaluate_proposals", wrong)
    status, line = told(capsys, *words)
    assert status == 1
    assert "scores differ by 1.0e-06" in line


@pytest.mark.parametrize(
    "words",
    [
        ["infer", "--device", "gpu"],
        ["infer", "--batch", "0"],
        ["train", "--rounds", "0"],
        ["data", "--images", "nowhere"],
        ["roi", "--json", "nowhere/roi.json"],
        pytest.param(
            ["roi", "--device", "cuda"],
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_are_told(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    status, line = told(capsys, *words)
    assert status == 2
    assert words[-1] in line


def test_a_side_is_a_process() -> None:
    run = Run(rounds=1, threads=1)
    alone = {"ours": partial(parts.pooling, 4, (64, 96), "cpu", parts.our_pool)}
    run.compare("pooling", alone, parts.same_pooling, allocators=False)
    (row,) = run.rows
    assert row["median"] > 0
    assert 0 < row["mb_before"] <= row["mb_peak"]


class Recorded:
    """Notes in `calls` when it is asked; its repetitions take 0, 1, 2, … seconds."""

    def __init__(self, calls: list[tuple[Any, ...]]) -> None:
        self.calls, self.seconds = calls, itertools.count()

    def submit(self, function: object, side: str, *point: int) -> "Future[float]":
        self.calls.append((side, *point))
        done: Future[float] = Future()
        done.set_result(float(next(self.seconds)))
        return done


def test_sides_take_turns() -> None:
    calls: list[tuple[Any, ...]] = []
    pair: dict[str, Any] = {name: Recorded(calls) for name in "ab"}
    assert comparison.take_turns(pair, 3, {"": ()}) == {("a", ""): [0, 1, 2], ("b", ""): [0, 1, 2]}
    assert "".join(name for (name,) in calls) == "abbaab"
    calls.clear()
    found = comparison.take_turns(pair, 2, {"ten": (10,), "twenty": (20,)})
    assert calls == [(name, p) for names in ("ab", "ba") for p in (10, 20) for name in names]
    assert found["a", "twenty"] == [4, 6]


def test_numbers_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two repetitions of two images each; the first of each side warms up."""
    clock = iter([0.0, 9.0, 0.0, 9.0, 0.0, 2.0, 0.0, 1.0, 0.0, 3.0, 0.0, 4.0])
    monkeypatch.setattr(comparison.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(comparison, "ProcessPoolExecutor", lambda number, context: Immediate())
    run = Run(rounds=2)
    sides: dict[str, Any] = {"peer": lambda: lambda compared: 1, "ours": lambda: lambda compared: 1}
    run.compare("work", sides, lambda one, other: f"{one} is {other}", number=2, allocators=False)
    peer, ours = run.rows
    assert (peer["seconds"], ours["seconds"]) == ([1.0, 2.0], [0.5, 1.5])
    assert (peer["median"], peer["ratio"], ours["ratio"]) == (1.5, 1.5, 1.0)
    text = run.report("benchmark.py x")
    assert "| work | peer | 1.50 / image | 1.00 – 2.00 |" in text
    assert "- Outputs agree: work: 1 is 1" in text
    assert [comparison.shown(x) for x in (0.001234, 12.345, 1234.5)] == ["0.00123", "12.3", "1,234"]


class Immediate:
    """An executor that does at once what it is asked."""

    def submit(self, function: Any, *arguments: Any) -> "Future[Any]":
        done: Future[Any] = Future()
        done.set_result(function(*arguments))
        return done

    def __enter__(self) -> "Immediate":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to end."""


def detections(number: int) -> list[Tensor]:
    corner = 10.0 * torch.arange(number)[:, None].expand(-1, 2)
    boxes = torch.cat((corner, corner + 5), dim=1)
    return [boxes, torch.linspace(1, 0.5, number), torch.arange(number) % 3 + 1]


def test_boxes_match_pairwise() -> None:
    given = boxes, scores, labels = detections(100)
    order = torch.randperm(100)
    shuffled = [part[order] for part in given]
    assert {(i, int(order[j])) for i, j in stages.pairs(given, shuffled, 0.05, 1e-3)} == {
        (i, i) for i in range(100)
    }
    assert len(stages.pairs(given, [boxes + 0.01, scores - 5e-4, labels], 0.05, 1e-3)) == 100
    for part, by in ((0, 0.1), (1, 2e-3), (2, 1)):
        other = [boxes.clone(), scores.clone(), labels.clone()]
        other[part][:3] += by
        assert len(stages.pairs(given, other, 0.05, 1e-3)) == 97
    # No box of ours is the same as two of theirs.
    twice = [torch.cat((part[:50], part[:50])) for part in given]
    assert len(stages.pairs(twice, [part[:50] for part in given], 0.05, 1e-3)) == 50
    assert stages.pairs(detections(9), detections(0), 1, 1) == []


def seen_of_both(given: Given) -> tuple[list[stages.Seen], list[stages.Seen]]:
    run = inputs.NetworkRun(short_side=96, max_side=128)
    return tuple(make(run, *given)(True) for make in (infer.theirs, infer.ours))  # type: ignore[return-value]


def test_every_stage_is_compared(given: Given) -> None:
    """Changed by more than noise, each is told by its name; a turned comparison alone is none of them."""
    theirs, ours = seen_of_both(given)
    assert "detections matched" in stages.same_stages(theirs, ours)
    for change, told_of in (
        (lambda seen: seen.maps[4].add_(0.01), "P4"),
        (lambda seen: seen.objectness[3].mul_(1.1), "the RPN's logits on P3"),
        (lambda seen: seen.deltas[6].add_(0.1), "the RPN's deltas on P6"),
        (lambda seen: seen.scores.mul_(1.1), "the head's logits"),
        (lambda seen: seen.box_deltas.add_(0.1), "the head's deltas"),
        (lambda seen: seen.proposals[0].add_(3), "proposals only"),
    ):
        changed = copy.deepcopy(ours)
        change(changed[0])
        with pytest.raises(DisagreementError, match=told_of):
            stages.same_stages(theirs, changed)
    lacking = copy.deepcopy(ours)
    lacking[0].found = [[part[5:] for part in lacking[0].found[0]]]
    assert "95 of 100 detections matched; by the peer's own logits" in stages.same_stages(theirs, lacking)


def test_the_selection_is_compared_on_the_peers_own_numbers(
    given: Given, monkeypatch: pytest.MonkeyPatch
) -> None:
    theirs, ours = seen_of_both(given)
    for name, what in (("ProposalSelection", "proposals"), ("DetectionSelection", "detections")):
        with monkeypatch.context() as patch:
            patch.setattr(stages, name, partial(getattr(stages, name), nms_iou=0.6))
            with pytest.raises(DisagreementError, match=f"{what} are the same"):
                stages.same_stages(theirs, ours)
