"""Parts of the work: RoI pooling, the input pipeline, and COCO's scores."""

import json
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign
from torchvision.transforms.v2 import functional as image_ops

from benchmarks.comparison import DisagreementError, Run, Work, equally_far
from benchmarks.inputs import OBJECTS, jpeg_files, random_targets
from fpn.data.decoding import read_image
from fpn.data.transforms import ImageSettings, Sample, TrainTransform, collate, normalise
from fpn.evaluation import Engine, evaluate_proposals, score_boxes
from fpn.models.necks import FeaturePyramid
from fpn.models.roi_head import HeadInput, RoIHead
from fpn.types import RoIs, Size

LEVELS = (2, 3, 4, 5)
POOLING_LIMIT = 1e-4
"""Largest difference of pooled values and gradients, in parts of the largest value."""
MEAN_LIMITS = {False: 1e-3, True: 0.3 / 255 / 0.225}
"""Largest mean difference of normalised pixels, by antialias: decoders differ in a grey level here and
there; whole grey levels differ from what they are rounded from by a quarter of one. (Of images
that are enlarged, as COCO's are: of one made smaller, torchvision's reference leaves out pixels.)"""
BOX_LIMIT = 1e-2
"""Pixels by which boxes may differ."""
SCORE_LIMIT = 1e-9
TRUTH, RESULTS = "annotations.json", "results.json"


def roi(rois: PositiveInt = 512, short_side: PositiveInt = 800, **options: Any) -> Run:
    """RoI pooling, forward and backward, of 2 images' RoIs over 4 levels of 256 channels.

    Args:
        rois: of both images together.
        short_side: pixels of the images; the long side has 1.36 times as many.
        **options: of `Run`.
    """
    run = Run(**options)
    height, width = (32 * max(1, round(side / 32)) for side in (short_side, 1.36 * short_side))
    work = partial(pooling, rois, (height, width), run.device)
    sides = {"torchvision": partial(work, torchvision_pool), "ours": partial(work, our_pool)}
    title = f"RoI pooling, forward and backward, {rois} RoIs, {height} × {width} pixels"
    run.compare(title, sides, same_pooling, unit="repetition")
    return run


def torchvision_pool(p: dict[int, Tensor], boxes: list[Tensor], size: Size) -> Tensor:
    """By MultiScaleRoIAlign: (R, d, 7, 7)."""
    pool = MultiScaleRoIAlign([str(k) for k in LEVELS], output_size=7, sampling_ratio=2)
    found: Tensor = pool({str(k): x for k, x in p.items()}, boxes, [size] * len(boxes))
    return found


class Pooled(nn.Module):
    """A head that only keeps what it is given: `RoIHead` is then RoI pooling alone."""

    def __init__(self, input: HeadInput) -> None:
        super().__init__()
        self.input = input

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Zeros."""
        self.pooled = x
        return x.new_zeros(len(x), self.input.classes + 1), x.new_zeros(len(x), self.input.boxes, 4)


def our_pool(p: dict[int, Tensor], boxes: list[Tensor], size: Size) -> Tensor:
    """The way of our RoIHead from the pyramid to its head: (R, d, 7, 7)."""
    head = RoIHead(FeaturePyramid(dict.fromkeys(LEVELS, 1)), classes=1, head=Pooled)
    image = torch.cat([torch.full((len(b),), i, device=b.device) for i, b in enumerate(boxes)])
    head(p, RoIs(torch.cat(boxes), image))
    return cast(Pooled, head.head["shared"]).pooled


def pooling(rois: int, size: Size, device: str, pool: Callable[..., Tensor]) -> Work:
    """A repetition: pool and go back, with a random gradient."""
    generator = torch.Generator().manual_seed(0)

    def random(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(device)

    p = {k: random(2, 256, *(side >> k for side in size)).requires_grad_() for k in LEVELS}
    boxes = [of_all_levels(n, size, seed).to(device) for seed, n in enumerate((rois - rois // 2, rois // 2))]
    gradient = random(rois, 256, 7, 7)

    def work(compared: bool) -> dict[str, Tensor]:
        for x in p.values():
            x.grad = None
        found = pool(p, boxes, size)
        found.backward(gradient)
        gradients = {f"gradient of P{k}": x.grad for k, x in p.items() if x.grad is not None}
        outputs = {"pooled": found.detach(), **gradients}
        return {name: x.cpu() for name, x in outputs.items()} if compared else {}

    return work


def of_all_levels(number: int, size: Size, seed: int) -> Tensor:
    """RoIs whose sides halve from one quarter of them to the next."""
    whole = random_targets(size, number, 1, seed).boxes
    corner, sides = whole[:, :2], whole[:, 2:] - whole[:, :2]
    shrunk = sides * 2.0 ** -(torch.arange(number) % 4)[:, None] * 2
    return torch.cat((corner, torch.min(corner + shrunk, torch.tensor(size[::-1]).float())), dim=1)


def same_pooling(theirs: dict[str, Tensor], ours: dict[str, Tensor]) -> str:
    """See that pooled values and gradients are the same."""
    # A level that no RoI is read from has gradients of 0.
    scales = {name: float(x.abs().max()) or 1.0 for name, x in theirs.items()}
    far = {name: float((ours[name] - x).abs().max()) / scales[name] for name, x in theirs.items()}
    return equally_far("pooled values and gradients (in parts of the largest)", far, POOLING_LIMIT)


def data(
    number: PositiveInt = 16,
    images: str | None = None,
    short_side: PositiveInt = 800,
    max_side: PositiveInt = 1333,
    **options: Any,
) -> Run:
    """The input pipeline on one core: JPEG files to batches of 2, resized, every other one flipped.

    Args:
        number: images in a repetition, rounded up to whole batches.
        images: folder with JPEG files; null draws some. Their boxes are random, 7 an image.
        short_side: pixels that images are resized to …
        max_side: … unless the long side would exceed this.
        **options: of `Run`.
    """
    run = Run(device="cpu", threads=1, **options)
    run.notes.append("torchvision's is its detection reference's: PIL, random flip, GeneralizedRCNNTransform")
    number += number % 2
    with tempfile.TemporaryDirectory() as folder:
        files = jpeg_files(images, number, Path(folder))
        for antialias, limit in MEAN_LIMITS.items():
            given = files, ImageSettings(short_side, max_side, antialias)
            sides = {"torchvision": partial(torchvision_loading, *given), "ours": partial(loading, *given)}
            title = f"input pipeline, batches of 2, one core, data.images.antialias {str(antialias).lower()}"
            run.compare(title, sides, partial(same_batches, limit=limit), number=number)
    return run


def torchvision_loading(files: Sequence[Path], settings: ImageSettings) -> Work:
    """PIL, a float tensor, flipping, then the transform that torchvision's models begin with."""
    mean, std = list(settings.mean), list(settings.std)
    transform = GeneralizedRCNNTransform(settings.short_side, settings.max_side, mean, std)

    def load(index: int) -> tuple[Tensor, dict[str, Tensor]]:
        with Image.open(files[index]) as picture:
            image = image_ops.pil_to_tensor(picture.convert("RGB")).float() / 255
        height, width = image.shape[-2:]
        boxes = random_targets((height, width), OBJECTS, 1, index).boxes
        if index % 2:
            image = image.flip(-1)
            boxes = boxes[:, [2, 1, 0, 3]] * torch.tensor([-1, 1, -1, 1]) + torch.tensor([width, 0, width, 0])
        return image, {"boxes": boxes}

    def batch(first: int) -> list[Tensor]:
        images, targets = zip(load(first), load(first + 1), strict=True)
        padded, targets = transform(list(images), list(targets))
        return [padded.tensors, *(target["boxes"] for target in targets)]

    return over_batches(batch, len(files))


def loading(files: Sequence[Path], settings: ImageSettings) -> Work:
    """What our data sets do for training; with antialias, bytes are resized as such."""
    transforms = [TrainTransform([settings], flip_probability=float(flips)) for flips in (False, True)]
    generator = torch.Generator()

    def load(index: int) -> Sample:
        image = read_image(files[index])
        size = (image.shape[1], image.shape[2])
        sample = Sample(image, size, size, index, random_targets(size, OBJECTS, 1, index))
        return transforms[index % 2](sample, generator)

    def batch(first: int) -> list[Tensor]:
        collated = normalise(collate([load(first), load(first + 1)], settings), settings)
        return [collated.images, *(target.boxes for target in collated.targets or [])]

    return over_batches(batch, len(files))


def over_batches(batch: Callable[[int], list[Tensor]], number: int) -> Work:
    """A repetition: all files, a batch of two after the other, told by its first; 4 batches are compared."""

    def work(compared: bool) -> list[list[Tensor]]:
        if compared:
            return [batch(first) for first in range(0, min(number, 8), 2)]
        for first in range(0, number, 2):
            batch(first)
        return []

    return work


def same_batches(theirs: list[list[Tensor]], ours: list[list[Tensor]], limit: float) -> str:
    """See that images and boxes are the same, but for what `limit` allows pixels in the mean."""
    pixels: list[Tensor] = []
    far: dict[str, float] = {}
    for number, (one, other) in enumerate(zip(theirs, ours, strict=True)):
        if one[0].shape != other[0].shape:
            raise DisagreementError(f"batches of shapes {tuple(one[0].shape)} and {tuple(other[0].shape)}")
        pixels.append((one[0] - other[0]).abs().flatten())
        boxes = zip(one[1:], other[1:], strict=True)
        far |= {f"image {2 * number + i}": float((a - b).abs().max()) for i, (a, b) in enumerate(boxes)}
    difference = torch.cat(pixels)
    mean = equally_far("normalised pixels", {"in the mean": float(difference.mean())}, limit)
    equal = float((difference <= 1e-4).double().mean())
    return f"{mean}, {100 * equal:.2f} % of them by less than 1e-4; {equally_far('boxes', far, BOX_LIMIT)}"


def score(
    images: PositiveInt = 5000,
    detections: PositiveInt = 100,
    proposal_images: PositiveInt = 1000,
    proposals: PositiveInt = 1000,
    rounds: PositiveInt = 1,
    **options: Any,
) -> Run:
    """COCO scoring of files, against pycocotools, which takes minutes: one round by default.

    Args:
        images: whose detections are scored.
        detections: of an image.
        proposal_images: whose proposals are scored.
        proposals: of an image.
        rounds: repetitions of each side.
        **options: of `Run`.
    """
    run = Run(device="cpu", rounds=rounds, **options)
    run.notes.append("Both sides read and check the files alike; there was no warm-up")
    for what, number, each in (("detections", images, detections), ("proposals", proposal_images, proposals)):
        with tempfile.TemporaryDirectory() as folder:
            write_files(Path(folder, "tenth"), -(-number // 10), each)
            write_files(Path(folder, "whole"), number, each)
            work = partial(scoring, Path(folder), what == "proposals")
            sides = {"pycocotools": partial(work, "pycocotools"), "ours": partial(work, "faster")}
            title = f"scoring {each:,} {what} of each of {number:,} images"
            run.compare(title, sides, same_scores, unit="run", allocators=False, warm_up=False)
    return run


def scoring(folder: Path, proposals: bool, engine: Engine) -> Work:
    """A repetition: read both files and score them all. What is compared are the scores of a tenth."""

    def work(compared: bool) -> dict[str, float]:
        files = [folder / ("tenth" if compared else "whole") / name for name in (TRUTH, RESULTS)]
        if proposals:
            return evaluate_proposals(*files, engine=engine)
        scores = score_boxes(*files, engine=engine)
        return scores.overall | {f"AP of {name}": row["AP"] for name, row in scores.categories.items()}

    return work


def same_scores(theirs: dict[str, float], ours: dict[str, float]) -> str:
    """See that all scores are the same; those that do not exist, in both."""
    known = {name: value for name, value in theirs.items() if value == value or ours[name] == ours[name]}
    far = {name: abs(value - ours[name]) for name, value in known.items()}
    whole = next(iter(theirs))
    return f"{equally_far('scores', far, SCORE_LIMIT)}; {whole} is {100 * theirs[whole]:.2f} %"


def write_files(folder: Path, images: int, each: int) -> None:
    """Made-up ground truth, 7 objects an image, and results: every object once, displaced, and noise."""
    rng = np.random.default_rng(0)
    truth: list[dict[str, Any]] = []
    results: list[dict[str, Any]] = []
    for image in range(1, images + 1):
        sides = np.exp(rng.uniform(np.log(8), np.log(300), (OBJECTS, 2)))
        boxes = np.hstack((rng.uniform(0, 1, (OBJECTS, 2)) * np.maximum((640, 480) - sides, 1), sides))
        labels = rng.integers(1, 81, max(each, OBJECTS))
        noise = rng.uniform((0, 0, 5, 5), (440, 280, 200, 200), (max(0, each - OBJECTS), 4))
        moved = np.maximum(boxes + rng.normal(0, 0.1, boxes.shape) * np.tile(sides, 2), (-640, -480, 1, 1))
        scores = np.concatenate((rng.beta(4, 2, OBJECTS), rng.beta(1, 4, len(noise))))
        for k, box in zip(labels.tolist(), boxes.tolist(), strict=False):
            one = {"id": len(truth) + 1, "image_id": image, "category_id": k, "iscrowd": 0}
            truth.append(one | {"bbox": box, "area": box[2] * box[3]})
        found = np.vstack((moved, noise)).round(2)[:each].tolist()
        for k, box, likely in zip(labels.tolist(), found, scores.tolist(), strict=False):
            results.append({"image_id": image, "category_id": k, "bbox": box, "score": likely})
    listed = [{"id": i, "width": 640, "height": 480, "file_name": f"{i}.jpg"} for i in range(1, images + 1)]
    names = [{"id": k, "name": f"class {k}"} for k in range(1, 81)]
    content = {"images": listed, "annotations": truth, "categories": names}
    folder.mkdir(parents=True)
    (folder / TRUTH).write_text(json.dumps(content))
    (folder / RESULTS).write_text(json.dumps(results))
