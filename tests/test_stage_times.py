"""Stages of a detector whose parts take known times on a clock that only they move."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lit.conftest import written
from rich.console import Console
from torch import Tensor

from fpn.data.shapes import generate_shapes
from fpn.errors import InputError
from fpn.lit.callbacks import PrintStageTimes
from fpn.lit.cli import main
from fpn.lit.module import DetectionModule
from fpn.models import cascade, detectors
from fpn.models.cascade import CascadeRCNN
from fpn.models.detectors import Detector, FasterRCNN, FastRCNN, ProposalNetwork
from fpn.models.necks import FeaturePyramid
from fpn.models.resnet import ResNet
from fpn.models.roi_head import RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.stage_times import StageTimes
from fpn.types import Batch, Inference

# A digit for each kind of work, which counts how often it was done.
BOTTOM_UP, NECK, RPN, PROPOSALS, HEAD, DETECTIONS, MERGE, LOAD, RESULTS = (10**k for k in range(9))


class Clock:
    """A clock that stands still but while the given functions run."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def taking(self, seconds: float, function: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any, **named: Any) -> Any:
            self.now += seconds
            return function(*arguments, **named)

        return slow


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of all that detectors do between their parts."""
    clock = Clock()
    work = {
        "select_proposals": PROPOSALS,
        "select_detections": DETECTIONS,
        "merge_detections": MERGE,
    }
    for name, seconds in work.items():
        monkeypatch.setattr(detectors, name, clock.taking(seconds, getattr(detectors, name)))
    taken = clock.taking(DETECTIONS, cascade.select_detections)
    monkeypatch.setattr(cascade, "select_detections", taken)
    return clock


def small(kind: type[Detector]) -> Detector:
    parts: dict[str, Any] = {
        "bottom_up": partial(ResNet, "resnet18", norm="group", width=8),
        "neck": partial(FeaturePyramid, channels=8),
    }
    if kind is not FastRCNN:
        parts["rpn"] = partial(RegionProposalNetwork, sizes={k: [2.0 * 2**k] for k in range(2, 7)})
    if kind is not ProposalNetwork:
        parts["roi_head"] = partial(RoIHead, canonical_size=56, head=partial(TwoFCHead, hidden=16))
    return kind(3, **parts).eval()


def slow(kind: type[Detector], clock: Clock) -> Detector:
    """A detector whose parts take time."""
    detector = small(kind)
    for name, seconds in {"bottom_up": BOTTOM_UP, "neck": NECK, "rpn": RPN, "roi_head": HEAD}.items():
        if hasattr(detector, name):
            part: Any = detector.get_submodule(name)
            part.forward = clock.taking(seconds, part.forward)
    for later in getattr(detector, "later_heads", ()):
        later.forward = clock.taking(HEAD, later.forward)
    return detector


def batch(images: int = 2, side: int = 64) -> Batch:
    size = (side, side)
    proposals = [torch.tensor([[2.0, 3, 40, 50], [10, 10, 30, 20]])] * images
    pixels = torch.randn(images, 3, *size)
    return Batch(pixels, [size] * images, [(50, 50)] * images, list(range(images)), None, proposals)


FASTER = {
    "load": LOAD,
    "bottom-up": BOTTOM_UP,
    "neck": NECK,
    "RPN": RPN,
    "proposals": PROPOSALS,
    "RoI head": HEAD,
    "post-processing": DETECTIONS,
    "results": RESULTS,
}
STAGES: dict[type[Detector], dict[str, int]] = {
    FasterRCNN: FASTER,
    CascadeRCNN: FASTER | {"RoI head": 3 * HEAD},
    FastRCNN: {name: seconds for name, seconds in FASTER.items() if name not in ("RPN", "proposals")},
    ProposalNetwork: {
        name: seconds for name, seconds in FASTER.items() if name not in ("RoI head", "post-processing")
    },
}


@pytest.mark.parametrize("kind", STAGES)
@torch.no_grad()
def test_each_stage_has_its_own_time(kind: type[Detector], clock: Clock) -> None:
    detector = slow(kind, clock)
    clock.now = 17.0
    with StageTimes(detector, clock) as times:
        for images in (2, 1):
            clock.now += LOAD
            detector(batch(images))
            clock.now += RESULTS
            times.begin("load")
    assert (times.batches, times.images) == (2, 3)
    assert times.seconds == {name: 2 * seconds for name, seconds in STAGES[kind].items()}
    assert list(times.seconds) == list(STAGES[kind])
    assert sum(times.seconds.values()) == clock.now - 17


@pytest.mark.parametrize("kind", STAGES)
@torch.no_grad()
def test_an_image_pyramid_is_one_batch(kind: type[Detector], clock: Clock) -> None:
    detector = slow(kind, clock)
    with StageTimes(detector, clock) as times:
        clock.now += LOAD
        detector.over_scales([batch(side=64), batch(side=96), batch(side=32)])
        clock.now += RESULTS
    expected = {name: 3 * seconds for name, seconds in STAGES[kind].items()}
    expected |= {"load": LOAD, "results": RESULTS}
    # Of two images, proposals and detections are merged; those of a file need not be.
    merges = 4 if issubclass(kind, FasterRCNN) else 2
    expected["proposals" if kind is ProposalNetwork else "post-processing"] += merges * MERGE
    assert (times.batches, times.images) == (1, 2)
    assert times.seconds == expected
    assert sum(times.seconds.values()) == clock.now


def flat(found: Inference) -> list[Tensor]:
    return [part for of_image in (*found.proposals, *(found.detections or ())) for part in of_image]


def traces(detector: Detector) -> list[str]:
    """What a context has left on a detector."""
    hooked = [name for name, m in detector.named_modules() if m._forward_hooks or m._forward_pre_hooks]
    return hooked + (["over_scales"] if "over_scales" in vars(detector) else [])


@torch.no_grad()
def test_a_detector_finds_the_same_and_is_left_as_it_was() -> None:
    detector, pictures, larger = small(FasterRCNN), batch(), batch(side=96)
    truth = flat(detector(pictures)), flat(detector.over_scales([pictures, larger]))
    with StageTimes(detector) as times:
        assert set(traces(detector)) == {"", "bottom_up", "neck", "rpn", "roi_head", "over_scales"}
        timed = flat(detector(pictures)), flat(detector.over_scales([pictures, larger]))
    assert not traces(detector)
    for mine, theirs in zip(timed, truth, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))
    seconds = dict(times.seconds)
    assert min(seconds.values()) >= 0
    detector(pictures)
    assert times.seconds == seconds


def test_an_error_leaves_no_hooks() -> None:
    detector = small(FasterRCNN)
    broken = batch()._replace(images=torch.zeros(2, 1, 64, 64))
    for run in (detector, lambda images: detector.over_scales([images])):
        with pytest.raises(RuntimeError, match="channels"), StageTimes(detector):
            run(broken)
        assert not traces(detector)


def printed(times: StageTimes, of: str = "") -> tuple[str, dict[str, list[str]]]:
    console = Console(width=100)
    with console.capture() as page:
        console.print(times.table(of))
    return page.get(), rows(page.get())


def rows(page: str) -> dict[str, list[str]]:
    """The table's cells, by stage."""
    cells = [
        [cell.strip() for cell in line.strip("│").split("│")] for line in page.splitlines() if "│" in line
    ]
    return {stage: values for stage, *values in cells}


@torch.no_grad()
def test_the_first_batch_is_told_apart(clock: Clock) -> None:
    """Of two images, loading takes 9 s, later 4 s; drawing 90 s, later 20 s; choosing proposals 1000 s."""
    detector = small(ProposalNetwork)
    for number, left_out in ((1, False), (2, False), (3, True)):
        with StageTimes(detector, clock) as times:
            for index in range(number):
                clock.now += 4.0 if index else 9.0
                detector(batch(2))
                clock.now += 20.0 if index else 90.0
                times.begin("load")
        page, cells = printed(times)
        assert f"(images: {2 * number}, batches: {number})" in page
        assert ("without the first batch" in page) == left_out
        load, results = 9 + 4 * (number - 1), 90 + 20 * (number - 1)
        whole = load + results + PROPOSALS * number
        expected = (2, 10, 500) if left_out else (load / 2 / number, results / 2 / number, 500)
        for stage, seconds, each in zip(
            ("load", "results", "proposals", "all"),
            (load, results, PROPOSALS * number, whole),
            (*expected, sum(expected)),
            strict=True,
        ):
            assert cells[stage] == [f"{seconds:,.2f}", f"{100 * seconds / whole:.1f}", f"{1000 * each:,.1f}"]
        assert cells["RPN"] == ["0.00", "0.0", "0.0"]


def test_no_images_take_no_time_each(clock: Clock) -> None:
    with StageTimes(small(FasterRCNN), clock) as times:
        clock.now += 3
    page, cells = printed(times, of=" of nothing")
    assert "Time by stage of nothing (images: 0, batches: 0)" in page
    assert cells["load"] == cells["all"] == ["3.00", "100.0", "–"]
    assert cells["neck"] == ["0.00", "0.0", "–"]


@torch.no_grad()
def test_only_the_first_process_prints(capsys: pytest.CaptureFixture[str]) -> None:
    module = DetectionModule(3, lambda classes: small(FasterRCNN))
    module.__dict__["finder"] = module.detector
    callback: Any = PrintStageTimes()
    for first, processes in ((True, 1), (True, 2), (False, 2)):
        trainer = SimpleNamespace(world_size=processes, is_global_zero=first)
        callback.on_test_start(trainer, module)
        module.finder(batch())
        callback.on_test_batch_end(trainer, module, None, batch(), 0)
        callback.on_test_epoch_end(trainer, module)
        callback.on_test_end(trainer, module)
        assert not traces(module.finder)
        page = capsys.readouterr().out
        assert ("Time by stage" in page) == first
        assert ("the first of 2 processes" in " ".join(page.split())) == (first and processes == 2)
    callback.on_validation_start(trainer, module)
    assert traces(module.finder)
    callback.on_exception(trainer, module, RuntimeError())
    assert not traces(module.finder)
    with pytest.raises(InputError, match="leave it out of a training"):
        callback.setup(trainer, module, "fit")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A data set of five validation images, and the checkpoint of a run of four steps."""
    folder = tmp_path_factory.mktemp("stages")
    generate_shapes(folder / "shapes", train=8, val=5, long_side=96)
    save = ["--trainer.logger.init_args.save_dir", str(folder)]
    main(["fit", "--config", written(folder, folder / "shapes"), *save])
    return folder / "shapes", str(folder / "tiny" / "version_0" / "checkpoints" / "last.ckpt")


@pytest.fixture
def shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., str]:
    """Runs a command in an empty folder; gives what it prints."""
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()

    def run(*words: str) -> str:
        main(words)
        return capsys.readouterr().out

    return run


def check(page: str, batches: int = 5, more: tuple[str, ...] = ()) -> None:
    assert page.count("Time by stage") == 1
    assert f"(images: 5, batches: {batches})" in page
    found = rows(page.partition("Time by stage")[2])
    assert list(found) == [*FASTER, *more, "all"]
    seconds, shares, each = zip(
        *([float(cell.replace(",", "")) for cell in cells] for cells in found.values()), strict=True
    )
    for column, rounding in ((seconds, 0.005), (shares, 0.05), (each, 0.05)):
        assert sum(column[:-1]) == pytest.approx(column[-1], abs=len(column) * rounding)
    assert each[-1] > 0


def test_validate_and_test(checkpoint: tuple[Path, str], shown: Callable[..., str]) -> None:
    given = ["--ckpt_path", checkpoint[1]]
    check(shown("validate", "--stage_times", *given), more=("losses",))
    check(shown("validate", "--stage_times", *given, "--model.val_losses", "false"))
    Path("timed.yaml").write_text("stage_times: true\n")
    page = shown("test", *given, "--config", "timed.yaml", "--data.images.test_scales", "[0.5, 1]")
    check(page)
    assert page.index("scores.json") < page.index("Time by stage")
    assert "Time by stage" not in shown(
        "validate", "--config", "timed.yaml", *given, "--stage_times", "false"
    )


def test_predict(checkpoint: tuple[Path, str], shown: Callable[..., str]) -> None:
    shapes, path = checkpoint
    given = ["predict", "--ckpt_path", path, "--device", "cpu"]
    page = shown(*given, "--images", str(shapes / "val2017"), "--stage_times", "--batch_size", "2")
    check(page, batches=3)
    assert page.index("boxes in 5 of 5 images") < page.index("Time by stage")
    check(shown(*given, "--split", "val", "--stage_times", "true", "--scales", "[0.67, 1]"))
    assert "Time by stage" not in shown(*given, "--split", "val", "--stage_times", "false")


def test_it_is_no_option_of_training(
    checkpoint: tuple[Path, str], shown: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    pages = {}
    for command in ("fit", "test"):
        with pytest.raises(SystemExit) as caught:
            shown(command, "--ckpt_path", checkpoint[1], "--stage_times", "--print_config")
        pages[command] = caught.value.code, capsys.readouterr()
    assert pages["test"][0] == 0
    assert "\nstage_times: true\n" in pages["test"][1].out
    assert pages["fit"][0] == 2
    assert "there is no option --stage_times" in pages["fit"][1].err
