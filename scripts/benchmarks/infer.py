"""Inference: from decoded images to boxes in their pixels."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from benchmarks.comparison import Run, Work
from benchmarks.inputs import NetworkRun, load_ours, load_theirs, weights_and_files
from benchmarks.stages import Seen, same_stages, watching_ours, watching_theirs
from fpn import Predictor
from fpn.data.decoding import read_image
from fpn.data.transforms import ImageSettings

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
        run.compare(title, sides, same_stages, number=number)
    return run


def theirs(run: NetworkRun, weights: Path, files: Sequence[Path]) -> Work:
    """torchvision's: its transform, network and post-processing."""
    model = load_theirs(weights).to(run.device).eval()

    def detect(images: list[Tensor], short_side: int, max_side: int) -> Found:
        model.transform.min_size, model.transform.max_size = (short_side,), max_side
        found = model([image.to(run.device).float() / 255 for image in images])
        return [[one[key].cpu() for key in ("boxes", "scores", "labels")] for one in found]

    return over_batches(detect, partial(watching_theirs, model), run, files)


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

    return over_batches(detect, partial(watching_ours, predictor.detector), run, files)


def over_batches(
    detect: Callable[[list[Tensor], int, int], Found],
    watching: Callable[[Seen], AbstractContextManager[None]],
    run: NetworkRun,
    files: Sequence[Path],
) -> Work:
    """A repetition: all images, a batch after the other; the point may be other sides of them."""
    images = [read_image(file) for file in files]

    @torch.inference_mode()
    def work(compared: bool, short_side: int = run.short_side, max_side: int = run.max_side) -> list[Seen]:
        all_seen = []
        with run.autocast(compared):
            for i in range(0, len(images), run.batch):
                seen = Seen()
                with watching(seen) if compared else nullcontext():
                    seen.found = detect(images[i : i + run.batch], short_side, max_side)
                all_seen.append(seen)
        return all_seen

    return work
