"""Inference: from decoded images to boxes in their pixels."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from benchmarks.comparison import DisagreementError, Run, Work
from benchmarks.inputs import NetworkRun, load_ours, load_theirs, weights_and_files
from fpn import Predictor
from fpn.data.decoding import read_image
from fpn.data.transforms import ImageSettings

BOXES, SCORES = 0.05, 1e-3
"""Pixels, and difference of scores, within which two detections are the same."""
MATCHED = 0.99
"""The least share of detections that the other side has too; some stand at the threshold."""

Form = Literal["optimized", "trained", "compiled"]
Found = list[list[Tensor]]
"""Boxes, scores and labels of each image, on the CPU."""


def infer(number: PositiveInt = 4, form: Form = "optimized", **options: Any) -> Run:
    """Inference, from decoded images to boxes in their pixels, resizing and normalising included.

    Args:
        number: images in a repetition, rounded up to whole batches.
        form: of our detector: optimized, as it is shipped; trained, as it comes out of training; or
            compiled, optimized with its bottom-up and neck through torch.compile.
        **options: of `NetworkRun`.
    """
    run = NetworkRun(**options)
    number = -(-number // run.batch) * run.batch
    with weights_and_files(run.images, number) as given:
        sides = {"torchvision": partial(theirs, run, *given), "ours": partial(ours, run, *given, form)}
        title = f"inference, batch {run.batch}, {run.precision}"
        run.compare(title, sides, same_detections, number=number)
    return run


def theirs(run: NetworkRun, weights: Path, files: Sequence[Path]) -> Work:
    """torchvision's: its transform, network and post-processing."""
    model = load_theirs(weights).to(run.device).eval()

    def detect(images: list[Tensor], short_side: int, max_side: int) -> Found:
        model.transform.min_size, model.transform.max_size = (short_side,), max_side
        found = model([image.to(run.device).float() / 255 for image in images])
        return [[one[key].cpu() for key in ("boxes", "scores", "labels")] for one in found]

    return over_batches(detect, run, files)


def ours(run: NetworkRun, weights: Path, files: Sequence[Path], form: Form = "optimized") -> Work:
    """`Predictor`, as `fpn predict` uses it, with this form of the detector."""
    detector = load_ours(weights)
    predictor = Predictor(detector, device=run.device)
    if form == "trained":
        predictor.detector = detector.eval()
    elif form == "compiled":
        for part in ("bottom_up", "neck"):
            predictor.detector.get_submodule(part).compile()

    def detect(images: list[Tensor], short_side: int, max_side: int) -> Found:
        predictor.scales = [ImageSettings(short_side, max_side)]
        return [list(found) for found in predictor(images)]

    return over_batches(detect, run, files)


def over_batches(
    detect: Callable[[list[Tensor], int, int], Found], run: NetworkRun, files: Sequence[Path]
) -> Work:
    """A repetition: all images, a batch after the other; the point may be other sides of them."""
    images = [read_image(file) for file in files]

    @torch.inference_mode()
    def work(compared: bool, short_side: int = run.short_side, max_side: int = run.max_side) -> Found:
        found: Found = []
        with run.autocast(compared):
            for i in range(0, len(images), run.batch):
                found += detect(images[i : i + run.batch], short_side, max_side)
        return found

    return work


def same_detections(theirs: Found, ours: Found) -> str:
    """See that detections match pairwise."""
    matched, box, score = 0, 0.0, 0.0
    for one, other in zip(theirs, ours, strict=True):
        boxes = (one[0][:, None] - other[0]).abs().amax(dim=-1)
        scores = (one[1][:, None] - other[1]).abs()
        same = (one[2][:, None] == other[2]) & (boxes <= BOXES) & (scores <= SCORES)
        distance = torch.where(same, boxes, torch.inf)
        for i in range(len(distance)):
            if distance[i].isfinite().any():  # of what has not been matched yet
                j = int(distance[i].argmin())
                matched += 1
                box, score = max(box, float(boxes[i, j])), max(score, float(scores[i, j]))
                distance[:, j] = torch.inf
    most = sum(max(len(one[0]), len(other[0])) for one, other in zip(theirs, ours, strict=True))
    line = f"{matched} of {most} detections matched (boxes within {BOXES:g} px, scores within {SCORES:g})"
    if not most or matched < MATCHED * most:
        raise DisagreementError(line)
    return f"{line}, of these boxes differ by {box:.1e} px at most, scores by {score:.1e}"
