"""Cost as work grows: pixels, proposals, true boxes, processes."""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fpn.benchmark import infer, train
from fpn.benchmark.comparison import Precision, Run
from fpn.benchmark.images import ASPECT, jpeg_files, random_targets
from fpn.benchmark.peer import load_ours, load_theirs, write_weights
from fpn.benchmark.plots import Line, Panel, draw
from fpn.benchmark.report import Report
from fpn.benchmark.sides import Side, started, take_turns
from fpn.benchmark.together import over_processes
from fpn.benchmark.work import Setup, Work
from fpn.data.transforms import ImageSettings
from fpn.errors import InputError, positive
from fpn.models.necks import FeaturePyramid
from fpn.models.postprocess import ProposalSelection
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, sample_anchors
from fpn.predictor import Predictor

CROWDED_SIZE = (800, 1088)
"""Of the image whose anchors are matched, 217,413 of them."""


def scaling(
    short_sides: Sequence[int] = (400, 800, 1200, 1600),
    proposals: Sequence[int] = (10, 100, 1000, 2000),
    boxes: Sequence[int] = (1, 10, 100),
    crowds: Sequence[int] = (1, 10, 100, 500),
    processes: Sequence[int] = (1, 2),
    small_side: int = 320,
    images: str | None = None,
    plot: str | None = None,
    rounds: int = 2,
    **options: Any,
) -> Report:
    """Cost as work grows: pixels, proposals, true boxes and processes.

    Args:
        short_sides: of images, ascending, for inference with 1000 proposals.
        proposals: ascending, for inference at the first of the short sides.
        boxes: of an image, ascending, for training steps of 2 images at the small side.
        crowds: boxes of an image, ascending, for matching 217,413 anchors, by us alone.
        processes: that train together, with one image and one thread each, at the small side.
        small_side: pixels of the short side in training.
        images: folder with JPEG files; null draws some.
        plot: PNG file to draw all of it to.
        rounds: repetitions that count.
        **options: of `Run`.
    """
    run = Run(device="cpu", rounds=rounds, **options)
    points = {"short_sides": short_sides, "proposals": proposals, "boxes": boxes}
    for name, values in (points | {"crowds": crowds, "processes": processes}).items():
        if not values or list(values) != sorted(set(values)) or values[0] < 1:
            raise InputError(f"{name} is {list(values)}: give ascending numbers above 0")
    positive(small_side=small_side)
    if plot is not None and not Path(plot).absolute().parent.is_dir():
        raise InputError(f"plot {plot}: there is no such folder to write to")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pth")
        write_weights(weights)
        files = jpeg_files(images, 2, Path(folder))
        panels = [
            *over_pixels_and_proposals(run, weights, files[:1], short_sides, proposals),
            over_boxes(run, weights, files, boxes, crowds, small_side),
            over_processes(run, weights, files[:1], processes, small_side, Path(folder)),
        ]
    if plot is not None:
        draw(panels, Path(plot))
    settings = {"training's short side": small_side, "of": "files given" if images else "drawn scenes"}
    return run.report("Scaling", settings, tables=[panel.table() for panel in panels])


def over_pixels_and_proposals(
    run: Run, weights: Path, files: list[Path], short_sides: Sequence[int], proposals: Sequence[int]
) -> list[Panel]:
    """Seconds of inference, by both."""
    points = [(side, 1000) for side in short_sides]
    more = [(short_sides[0], number) for number in proposals]
    sides = partial(their_inference, weights, files), partial(our_inference, weights, files)
    steps = 2 * (1 + run.rounds * (len(points) + len(more)))
    with run.sides("inference", *sides, allocators=False, steps=steps) as (running, told):
        run.check("inference", running, infer.same_detections, points[0])
        take_turns(running, 1, points[-1:], told)
        seconds = take_turns(running, run.rounds, points, told) | take_turns(running, run.rounds, more, told)
    by_side, by_number = (
        [
            Line(side.name, [p[axis] for p in some], [seconds[(side.name, p)] for p in some])
            for side in running
        ]
        for axis, some in enumerate((points, more))
    )
    return [
        Panel("Inference, 1000 proposals", "short side of the image (pixels)", "s / image", by_side),
        Panel(f"Inference, short side {short_sides[0]}", "proposals", "s / image", by_number),
    ]


def over_boxes(
    run: Run, weights: Path, files: list[Path], boxes: Sequence[int], crowds: Sequence[int], small_side: int
) -> Panel:
    """Seconds of a training step by both, and of matching anchors by us alone, with its memory."""
    fp32: Precision = "fp32"
    given = weights, files, small_side, round(ASPECT * small_side), fp32, "cpu"
    sides = partial(train.theirs, *given), partial(train.ours, *given)
    steps = 2 * (1 + run.rounds * len(boxes))
    with run.sides("training", *sides, allocators=False, steps=steps) as (running, told):
        run.check("training step", running, train.same_losses, boxes[0])
        take_turns(running, 1, boxes[-1:], told)
        seconds = take_turns(running, run.rounds, boxes, told)
    lines = [Line(s.name, list(boxes), [seconds[(s.name, n)] for n in boxes]) for s in running]
    with started([Setup("matching", matching, keeps_memory=True)], threads=run.threads) as (side,):
        times, memory = zip(*(_matched(side, run.rounds, number) for number in crowds), strict=True)
    lines.append(Line("matching alone (ours)", list(crowds), list(times)))
    shown = ", ".join(f"{m:,.0f} MB with {n}" for n, m in zip(crowds, memory, strict=True))
    run.notes.append(f"Matching 217,413 anchors took, beyond what the process had before: {shown} boxes")
    return Panel(f"Training step, 2 images, short side {small_side}", "true boxes an image", "s", lines)


def _matched(side: Side, rounds: int, number: int) -> tuple[list[float], float]:
    """Seconds of some repetitions, and the peak of memory so far beyond what there was before."""
    side.run(number)
    times = [side.run(number) for _ in range(rounds)]
    memory = side.memory()
    return times, memory.peak - memory.before


def their_inference(weights: Path, files: list[Path]) -> Work:
    """torchvision's, set to a short side and a number of proposals."""
    model = load_theirs(weights).eval()

    def set_to(point: tuple[int, int]) -> None:
        model.transform.min_size, model.transform.max_size = (point[0],), round(ASPECT * point[0])
        model.rpn._pre_nms_top_n["testing"] = max(1000, point[1])
        model.rpn._post_nms_top_n["testing"] = point[1]

    return infer.over_batches(partial(infer.detect_theirs, model, "cpu"), files, 1, "fp32", "cpu", set_to)


def our_inference(weights: Path, files: list[Path]) -> Work:
    """Ours, set to the same."""
    predictor = Predictor(load_ours(weights))
    detector: Any = predictor.detector

    def set_to(point: tuple[int, int]) -> None:
        predictor.scales = [ImageSettings(point[0], round(ASPECT * point[0]))]
        detector.testing_proposals = ProposalSelection(max(1000, point[1]), point[1])

    return infer.over_batches(partial(infer.detect_ours, predictor), files, 1, "fp32", "cpu", set_to)


def matching() -> Work:
    """`sample_anchors` on the anchors of an image with some true boxes."""
    rpn = RegionProposalNetwork(FeaturePyramid(dict.fromkeys((2, 3, 4, 5), 1)))
    maps = {k: [-(-side // 2**k) for side in CROWDED_SIZE] for k in rpn.levels}
    anchors = torch.cat([rpn.anchors(k, size, CROWDED_SIZE) for k, size in maps.items()])

    def run(boxes: int) -> None:
        target = random_targets(CROWDED_SIZE, boxes, 1, seed=0)
        sample_anchors(anchors, target, CROWDED_SIZE, AnchorSampling(), rpn.box_weights)

    return Work(run, lambda: len(anchors))
