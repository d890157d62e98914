"""A step of training: from decoded images and their boxes to changed weights."""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fpn.benchmark.comparison import Precision, Run, equally_far
from fpn.benchmark.images import jpeg_files, random_targets, size_of
from fpn.benchmark.peer import CLASSES, load_ours, load_theirs, write_weights
from fpn.benchmark.report import Report
from fpn.benchmark.work import Work
from fpn.data.coco import read_image
from fpn.data.transforms import EvalTransform, ImageSettings, Sample, collate
from fpn.errors import positive
from fpn.models.postprocess import ProposalSelection

LOSSES = {
    "loss_objectness": "rpn_objectness",
    "loss_rpn_box_reg": "rpn_box",
    "loss_classifier": "roi_class",
    "loss_box_reg": "roi_box",
}
"""Names of the losses, torchvision's and ours."""
LIMIT = 1e-3
"""Largest relative difference of a loss."""
EVERYTHING = 10**6
"""More samples than there are candidates: the sampling has no chance in it."""
COMPARED = 500
"""Proposals of an image while losses are compared, all sampled: about as many as in a step."""
BOXES = 7
"""Of an image, as COCO's have."""

Losses = Callable[[Sequence[Sample]], dict[str, Tensor]]
"""Of images as they lie on disk, by our names."""
Learner = tuple[nn.Module, Losses, Callable[[], Callable[[], None]]]
"""A model in training, its losses, what takes the chance out of sampling and returns the undoing."""


def train(
    batch: int = 2,
    images: str | None = None,
    short_side: int = 800,
    max_side: int = 1333,
    precision: Precision = "fp32",
    **options: Any,
) -> Report:
    """A step of training, from decoded images and boxes; BatchNorm, conv1 and conv2 are frozen.

    Args:
        batch: images a step.
        images: folder with JPEG files; null draws some. The boxes are random, 7 an image.
        short_side: pixels that images are resized to …
        max_side: … unless the long side would exceed this.
        precision: of the network: fp32, or bf16 by autocast.
        **options: of `Run`.
    """
    run = Run(**options)
    positive(batch=batch, short_side=short_side, max_side=max_side)
    run.notes.append("Every anchor and every one of 500 proposals was sampled while the losses were compared")
    if precision == "bf16":
        run.notes.append("The losses were compared in fp32")
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder, "weights.pth")
        write_weights(weights)
        given = (
            weights,
            jpeg_files(images, batch, Path(folder)),
            short_side,
            max_side,
            precision,
            run.device,
        )
        case = run.compare(
            f"training step, {batch} images, {precision}",
            partial(theirs, *given),
            partial(ours, *given),
            same_losses,
            number=1,
            unit="step",
            precision=precision,
        )
    settings = {
        "images a step": batch,
        "short side": short_side,
        "max side": max_side,
        "precision": precision,
        "of": "files given" if images else "drawn scenes",
    }
    return run.report("Training", settings, cases=[case])


def theirs(
    weights: Path, files: Sequence[Path], short_side: int, max_side: int, precision: Precision, device: str
) -> Work:
    """torchvision's model in training, its transform included."""
    return steps(*their_losses(weights, short_side, max_side, device), files, precision, device)


def ours(
    weights: Path, files: Sequence[Path], short_side: int, max_side: int, precision: Precision, device: str
) -> Work:
    """Our detector's losses of a batch that our transforms make."""
    return steps(*our_losses(weights, short_side, max_side, device), files, precision, device)


def their_losses(weights: Path, short_side: int, max_side: int, device: str) -> Learner:
    """torchvision's."""
    model = load_theirs(weights, min_size=short_side, max_size=max_side).to(device).train()

    def losses(samples: Sequence[Sample]) -> dict[str, Tensor]:
        images = [sample.image.to(device).float() / 255 for sample in samples]
        targets = [
            {"boxes": s.target.boxes.to(device), "labels": s.target.labels.to(device)} for s in samples
        ]
        return {LOSSES[name]: loss for name, loss in model(images, targets).items()}

    def sample_all() -> Callable[[], None]:
        proposals, rpn, head = (
            model.rpn._post_nms_top_n,
            model.rpn.fg_bg_sampler,
            model.roi_heads.fg_bg_sampler,
        )
        usual = dict(proposals), rpn.batch_size_per_image, head.batch_size_per_image
        proposals["training"] = COMPARED
        rpn.batch_size_per_image = head.batch_size_per_image = EVERYTHING

        def restore() -> None:
            proposals.update(usual[0])
            rpn.batch_size_per_image, head.batch_size_per_image = usual[1:]

        return restore

    return model, losses, sample_all


def our_losses(weights: Path, short_side: int, max_side: int, device: str) -> Learner:
    """Ours."""
    detector = load_ours(weights).to(device).train()
    settings = ImageSettings(short_side, max_side)
    transform, unused = EvalTransform(settings), torch.Generator()

    def losses(samples: Sequence[Sample]) -> dict[str, Tensor]:
        moved = [
            s._replace(
                image=s.image.to(device), target=type(s.target)(*(part.to(device) for part in s.target))
            )
            for s in samples
        ]
        return detector.losses(collate([transform(sample, unused) for sample in moved], settings))

    def sample_all() -> Callable[[], None]:
        usual = detector.training_proposals, detector.anchor_sampling, detector.roi_sampling
        detector.training_proposals = ProposalSelection(usual[0].pre_nms_top_n, COMPARED)
        detector.anchor_sampling = replace(usual[1], per_image=EVERYTHING)
        detector.roi_sampling = replace(usual[2], per_image=EVERYTHING)

        def restore() -> None:
            detector.training_proposals, detector.anchor_sampling, detector.roi_sampling = usual

        return restore

    return detector, losses, sample_all


def steps(
    model: nn.Module,
    losses: Losses,
    sample_all: Callable[[], Callable[[], None]],
    files: Sequence[Path],
    precision: Precision,
    device: str,
) -> Work:
    """A repetition: forward, backward and SGD on the images, with as many boxes as it is asked for.

    Args:
        model: what is trained.
        losses: of images and boxes.
        sample_all: takes the chance out of sampling, and returns what brings it back.
        files: of the images.
        precision: of the network.
        device: the model's.
    """
    images = [read_image(file) for file in files]
    # So small that weights stay what they are, and every step costs the same.
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-9, momentum=0.9, weight_decay=1e-4
    )
    kind = torch.device(device).type

    def step(boxes: int, bfloat16: bool) -> dict[str, Tensor]:
        samples = []
        for seed, image in enumerate(images):
            size = size_of(image)
            target = random_targets(size, boxes, CLASSES - 1, seed)
            samples.append(Sample(image, size, size, seed, target))
        with torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            found = losses(samples)
        optimiser.zero_grad()
        sum(found.values(), torch.zeros((), device=device)).backward()
        return found

    def run(boxes: int = BOXES) -> None:
        step(boxes, precision == "bf16")
        optimiser.step()

    def outputs(boxes: int = BOXES) -> dict[str, float]:
        restore = sample_all()
        found = {name: float(loss.detach()) for name, loss in step(boxes, False).items()}
        restore()
        return found

    return Work(run, outputs)


def same_losses(theirs: dict[str, float], ours: dict[str, float]) -> str:
    """See that the losses are the same.

    Raises:
        DisagreementError: one differs too much.
    """
    relative = {name: abs(ours[name] - loss) / abs(loss) for name, loss in theirs.items()}
    return equally_far("losses (relatively)", relative, LIMIT)
