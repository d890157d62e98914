"""Cost as work grows: pixels, and true boxes."""

from functools import partial
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from benchmarks.comparison import Run, Work
from benchmarks.infer import ours, theirs
from benchmarks.inputs import NetworkRun, random_targets, weights_and_files
from benchmarks.stages import same_stages
from fpn.models.necks import FeaturePyramid
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, GroundTruth, sample_anchors

ASPECT = 5 / 3
"""Limit of the long side over the short side, that of 800 and 1333."""
CROWDED_SIZE = (800, 1088)
"""Of the image whose anchors are matched, 217,413 of them."""


def scaling(
    short_sides: tuple[PositiveInt, ...] = (400, 800, 1200, 1600),
    boxes: tuple[PositiveInt, ...] = (1, 10, 100, 500),
    rounds: PositiveInt = 2,
    **options: Any,
) -> Run:
    """Cost as work grows: pixels, and true boxes.

    Args:
        short_sides: of images, for inference; the outputs are compared at the first.
        boxes: of an image, for matching 217,413 anchors, by us alone.
        rounds: repetitions that count.
        **options: of `NetworkRun`.
    """
    run = NetworkRun(device="cpu", rounds=rounds, **options)
    with weights_and_files(run.images, run.batch) as given:
        points = {f", short side {n}": (n, round(ASPECT * n)) for n in short_sides}
        sides = {"torchvision": partial(theirs, run, *given), "ours": partial(ours, run, *given)}
        run.compare("inference", sides, same_stages, number=run.batch, points=points, allocators=False)
    crowds = {f", {number} boxes": (number,) for number in boxes}
    alone = {"ours": matching}
    run.compare("matching 217,413 anchors", alone, same_stages, points=crowds, allocators=False)
    return run


def matching() -> Work:
    """`sample_anchors` on the anchors of an image with some true boxes."""
    rpn = RegionProposalNetwork(FeaturePyramid(dict.fromkeys((2, 3, 4, 5), 1)))
    maps = {k: [-(-side // 2**k) for side in CROWDED_SIZE] for k in rpn.levels}
    anchors = torch.cat([rpn.anchors(k, size, CROWDED_SIZE) for k, size in maps.items()])

    def work(compared: bool, boxes: int) -> None:
        target = random_targets(CROWDED_SIZE, boxes, 1, seed=0)
        sample_anchors(anchors, GroundTruth.of([target]), torch.tensor([CROWDED_SIZE]), AnchorSampling())

    return work
