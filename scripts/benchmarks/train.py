"""A step of training: from decoded images and their boxes to changed weights."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn

from benchmarks.comparison import Run, Work, equally_far
from benchmarks.inputs import (
    CLASSES,
    OBJECTS,
    NetworkRun,
    load_ours,
    load_theirs,
    random_targets,
    weights_and_files,
)
from fpn import Targets
from fpn.data.decoding import read_image
from fpn.data.transforms import EvalTransform, ImageSettings, Sample, collate
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

Losses = Callable[[Sequence[Tensor], Sequence[Targets], bool], dict[str, Tensor]]
"""Of uint8 images and their boxes, by our names; with or without the chance of sampling."""


def train(batch: PositiveInt = 2, **options: Any) -> Run:
    """A step of training, from decoded images and 7 random boxes each; BatchNorm, conv1 and conv2 are frozen.

    Args:
        batch: images a step.
        **options: of `NetworkRun`.
    """
    run = NetworkRun(batch=batch, **options)
    run.notes.append("Losses were compared with every anchor and every one of 500 proposals sampled")
    with weights_and_files(run.images, batch) as given:
        sides = {"torchvision": partial(theirs, run, *given), "ours": partial(ours, run, *given)}
        run.compare(f"training step, {batch} images, {run.precision}", sides, same_losses, unit="step")
    return run


def theirs(run: NetworkRun, weights: Path, files: Sequence[Path]) -> Work:
    """torchvision's model in training, its transform included."""
    model = load_theirs(weights, min_size=run.short_side, max_size=run.max_side)
    model.to(run.device).train()
    samplers, kept = (model.rpn.fg_bg_sampler, model.roi_heads.fg_bg_sampler), model.rpn._post_nms_top_n
    usual = kept["training"], [one.batch_size_per_image for one in samplers]

    def losses(images: Sequence[Tensor], targets: Sequence[Targets], all_sampled: bool) -> dict[str, Tensor]:
        kept["training"], sizes = (COMPARED, [EVERYTHING] * 2) if all_sampled else usual
        for sampler, size in zip(samplers, sizes, strict=True):
            sampler.batch_size_per_image = size
        floats = [image.to(run.device).float() / 255 for image in images]
        found = model(floats, [{"boxes": t.boxes, "labels": t.labels} for t in targets])
        return {LOSSES[name]: loss for name, loss in found.items()}

    return steps(model, losses, run, files)


def ours(run: NetworkRun, weights: Path, files: Sequence[Path]) -> Work:
    """Our detector's losses of a batch that our transforms make."""
    detector = load_ours(weights).to(run.device).train()
    settings = ImageSettings(run.short_side, run.max_side)
    transform, unused = EvalTransform(settings), torch.Generator()
    usual = detector.training_proposals, detector.anchor_sampling, detector.roi_sampling
    whole = (
        ProposalSelection(usual[0].pre_nms_top_n, COMPARED),
        replace(usual[1], per_image=EVERYTHING),
        replace(usual[2], per_image=EVERYTHING),
    )

    def losses(images: Sequence[Tensor], targets: Sequence[Targets], all_sampled: bool) -> dict[str, Tensor]:
        detector.training_proposals, detector.anchor_sampling, detector.roi_sampling = (
            whole if all_sampled else usual
        )
        samples = []
        for i, (image, target) in enumerate(zip(images, targets, strict=True)):
            size = (image.shape[1], image.shape[2])
            samples.append(transform(Sample(image.to(run.device), size, size, i, target), unused))
        return detector.losses(collate(samples, settings))

    return steps(detector, losses, run, files)


def steps(model: nn.Module, losses: Losses, run: NetworkRun, files: Sequence[Path]) -> Work:
    """A repetition: forward, backward and SGD on the images, 7 random boxes in each."""
    images = [read_image(file) for file in files]
    # So small that weights stay what they are, and every step costs the same.
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad], lr=1e-9, momentum=0.9, weight_decay=1e-4
    )

    sizes = [(image.shape[1], image.shape[2]) for image in images]
    drawn = [random_targets(size, OBJECTS, CLASSES - 1, seed) for seed, size in enumerate(sizes)]
    targets = [Targets(*(part.to(run.device) for part in target)) for target in drawn]

    def work(compared: bool) -> dict[str, float]:
        with run.autocast(compared):
            found = losses(images, targets, compared)
        optimiser.zero_grad()
        sum(found.values(), torch.zeros((), device=run.device)).backward()
        optimiser.step()
        return {name: float(loss.detach()) for name, loss in found.items()} if compared else {}

    return work


def same_losses(theirs: dict[str, float], ours: dict[str, float]) -> str:
    """See that the losses are the same."""
    relative = {name: abs(ours[name] - loss) / abs(loss) for name, loss in theirs.items()}
    return equally_far("losses (relatively)", relative, LIMIT)
