"""Inference: from decoded images to boxes in their pixels."""

import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from fpn.benchmark.comparison import DisagreementError, Precision, Run
from fpn.benchmark.images import jpeg_files
from fpn.benchmark.peer import load_ours, load_theirs, write_weights
from fpn.benchmark.report import Report
from fpn.benchmark.work import Work
from fpn.data.coco import read_image
from fpn.errors import positive
from fpn.predictor import Predictor

BOXES, SCORES = 0.05, 1e-3
"""Pixels, and difference of scores, within which two detections are the same."""
MATCHED = 0.99
"""The least share of detections that the other side has too; some stand at the threshold."""

Form = Literal["optimized", "trained", "compiled"]
Found = list[list[Tensor]]
"""Boxes, scores and labels of each image, on the CPU."""


def infer(
    batch: int = 1,
    number: int = 4,
    images: str | None = None,
    short_side: int = 800,
    max_side: int = 1333,
    precision: Precision = "fp32",
    form: Form = "optimized",
    **options: Any,
) -> Report:
    """Inference, from decoded images to boxes in their pixels, resizing and normalising included.

    Args:
        batch: images at a time.
        number: images in a repetition, rounded up to whole batches.
        images: folder with JPEG files; null draws some.
        short_side: pixels that images are resized to …
        max_side: … unless the long side would exceed this.
        precision: of the network: fp32, or bf16 by autocast.
        form: of our detector: optimized, as it is shipped; trained, as it comes out of training; or
            compiled, optimized with its bottom-up and neck through torch.compile.
        **options: of `Run`.
    """
    run = Run(**options)
    positive(batch=batch, number=number, short_side=short_side, max_side=max_side)
    number = -(-number // batch) * batch
    if precision == "bf16":
        run.notes.append("The outputs were compared in fp32: with random weights few boxes survive rounding")
    title = f"inference, batch {batch}, {precision}"
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pth")
        write_weights(weights)
        files = jpeg_files(images, number, Path(folder))
        given = (weights, files, batch, short_side, max_side, precision, run.device)
        case = run.compare(
            title,
            partial(theirs, *given),
            partial(ours, *given, form),
            same_detections,
            number,
            "image",
            precision,
        )
    settings = {
        "batch": batch,
        "short side": short_side,
        "max side": max_side,
        "precision": precision,
        "form": form,
        "images": number,
        "of": "files given" if images else "drawn scenes",
    }
    return run.report("Inference", settings, cases=[case])


def theirs(
    weights: Path,
    files: Sequence[Path],
    batch: int,
    short_side: int,
    max_side: int,
    precision: Precision,
    device: str,
) -> Work:
    """torchvision's: its transform, network and post-processing."""
    model = load_theirs(weights, min_size=short_side, max_size=max_side).to(device).eval()
    return over_batches(partial(detect_theirs, model, device), files, batch, precision, device)


def ours(
    weights: Path,
    files: Sequence[Path],
    batch: int,
    short_side: int,
    max_side: int,
    precision: Precision,
    device: str,
    form: Form,
) -> Work:
    """`Predictor`, as `fpn predict` uses it, with this form of the detector."""
    detector = load_ours(weights)
    predictor = Predictor(detector, short_side, max_side, device)
    if form == "trained":
        predictor.detector = detector.eval()
    elif form == "compiled":
        for part in ("bottom_up", "neck"):
            predictor.detector.get_submodule(part).compile()
    return over_batches(partial(detect_ours, predictor), files, batch, precision, device)


def detect_theirs(model: Any, device: str, images: list[Tensor]) -> Found:
    """Of uint8 images, which torchvision's models take as floating-point ones."""
    found = model([image.to(device).float() / 255 for image in images])
    return [[one[key].cpu() for key in ("boxes", "scores", "labels")] for one in found]


def detect_ours(predictor: Predictor, images: list[Tensor]) -> Found:
    """Of uint8 images."""
    return [list(found) for found in predictor(images)]


def over_batches(
    detect: Callable[[list[Tensor]], Found],
    files: Sequence[Path],
    batch: int,
    precision: Precision,
    device: str,
    set_to: Callable[..., None] = lambda: None,
) -> Work:
    """A repetition: all images, a batch after the other.

    Args:
        detect: what is found in a batch.
        files: of the images.
        batch: images at a time.
        precision: of the network.
        device: the network's.
        set_to: takes the point that a repetition is asked for, where there are several.
    """
    images = [read_image(file) for file in files]
    kind = torch.device(device).type

    @torch.inference_mode()
    def found(bfloat16: bool, *point: Any) -> Found:
        set_to(*point)
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            batches = [detect(images[i : i + batch]) for i in range(0, len(images), batch)]
        return [one for of_batch in batches for one in of_batch]

    return Work(partial(found, precision == "bf16"), partial(found, False))


def same_detections(theirs: Found, ours: Found) -> str:
    """See that detections match pairwise.

    Raises:
        DisagreementError: too few do.
    """
    matched, box, score = 0, 0.0, 0.0
    for one, other in zip(theirs, ours, strict=True):
        pairs, box_difference, score_difference = _matched(one, other)
        matched += pairs
        box, score = max(box, box_difference), max(score, score_difference)
    most = sum(max(len(one[0]), len(other[0])) for one, other in zip(theirs, ours, strict=True))
    line = f"{matched} of {most} detections matched (boxes within {BOXES:g} px, scores within {SCORES:g})"
    if not most or matched < MATCHED * most:
        raise DisagreementError(line)
    return f"{line}, of these boxes differ by {box:.1e} px at most, scores by {score:.1e}"


def _matched(one: list[Tensor], other: list[Tensor]) -> tuple[int, float, float]:
    """Pairs of detections of an image, each in one of them; the largest differences."""
    boxes = (one[0][:, None] - other[0]).abs().amax(dim=-1)
    scores = (one[1][:, None] - other[1]).abs()
    same = (one[2][:, None] == other[2]) & (boxes <= BOXES) & (scores <= SCORES)
    distance = torch.where(same, boxes, torch.inf)
    pairs, box, score = 0, 0.0, 0.0
    for i in range(len(distance)):
        least, j = distance[i].min(dim=0) if distance.shape[1] else (torch.tensor(torch.inf), torch.tensor(0))
        if least < torch.inf:
            pairs, box, score = pairs + 1, max(box, float(least)), max(score, float(scores[i, j]))
            distance[:, j] = torch.inf
    return pairs, box, score
