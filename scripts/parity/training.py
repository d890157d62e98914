"""`fpn fit` and a peer's own loop, from the same weights over the same images: how far they come apart."""

import copy
import csv
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import yaml
from torch import Tensor

from benchmarks.comparison import DisagreementError
from benchmarks.inputs import TRAINED
from benchmarks.stages import pairs
from benchmarks.train import EVERYTHING
from fpn import CocoDataModule, FasterRCNN, InputError, Predictor, load
from fpn.checkpoints import Trained
from fpn.lit.cli import main as fpn_command
from parity.peer import Losses, Peer
from parity.plan import Plan, order_of_images, selected, trainer, val_files

PIXELS, SCORE = 0.5, 1e-3
"""By which a detection of one may differ from the other's."""
LOSS, WEIGHTS, FOUND = 1e-3, 1e-3, 0.99
"""What is allowed: relative differences, and the share of detections that both find."""


@dataclass
class Compared:
    """How far the two sides are apart."""

    losses: Losses
    """Their relative differences."""
    weights: float
    """Norm of the difference of all trained weights over the norm of their change …"""
    worst: float
    """… and the greatest such quotient of a single tensor."""
    matched: int
    """Detections of the peer's that ours has too …"""
    detections: int
    """… of so many."""
    fell: tuple[float, float]
    """The sum of the peer's losses, in the mean over the first and the last tenth of the steps."""

    @property
    def agree(self) -> bool:
        """Whether the differences, none of them NaN, are within what is allowed."""
        losses = self.first(len(self.losses)).values()
        near = all(one <= LOSS for one in losses) and self.weights <= WEIGHTS
        return near and self.matched >= FOUND * self.detections > 0

    def first(self, steps: int) -> dict[str, float]:
        """Each loss's greatest difference in the first steps."""
        return {name: float(np.max([step[name] for step in self.losses[:steps]])) for name in self.losses[0]}


def lockstep(plan: Plan, folder: Path) -> Compared:
    """Train both, and compare.

    Args:
        plan: of the training.
        folder: an empty one, for what they read and write.
    """
    root = selected(plan, folder / "data")
    beginning = folder / f"{plan.peer}.pth"
    with in_double() if plan.double else nullcontext():
        peer = peer_of(plan, root)
        torch.save(peer.model.state_dict(), beginning)
        our_losses, trained = ours(plan, peer, root, folder, beginning)
        begun = peer.as_ours(copy.deepcopy(peer.model.state_dict()))
        losses = peer.train(order_of_images(plan, root))
        weights, worst = apart(begun, peer.as_ours(peer.model.state_dict()), trained.detector.state_dict())
    relative = [
        {name: abs(other[name] - loss) / abs(loss) for name, loss in one.items()}
        for one, other in zip(losses, our_losses, strict=True)
    ]
    peer.model.float().eval()
    predictor = Predictor.of(Trained(trained.detector.float(), *trained[1:]))
    matched, detections = same_detections(peer, predictor, val_files(root))
    sums, tenth = [sum(step.values()) for step in losses], max(plan.steps // 10, 1)
    fell = float(np.mean(sums[:tenth])), float(np.mean(sums[-tenth:]))
    return Compared(relative, weights, worst, matched, detections, fell)


def peer_of(plan: Plan, root: Path, **options: Any) -> Peer:
    """The one that a plan names.

    Args:
        plan: of the training.
        root: folder with its data.
        **options: of that peer's class.

    Raises:
        InputError: it cannot be imported.
    """
    if plan.peer == "torchvision":
        from parity.torchvision import Torchvision

        return Torchvision(plan, root, **options)
    try:
        from parity.detectron2 import Detectron2
    except ImportError as error:
        raise InputError(
            f"Detectron2 cannot be imported ({error}): install it, or have a checkout of it in PYTHONPATH "
            "and install what it needs (fvcore, iopath, omegaconf, hydra-core, …); it need not be compiled"
        ) from None
    return Detectron2(plan, root, **options)


@contextmanager
def in_double() -> Iterator[None]:
    """Have both reckon in float64, ours also where it asks for float32."""
    usual, to_device = torch.get_default_dtype(), CocoDataModule.on_after_batch_transfer

    def at_least(self: Tensor) -> Tensor:
        return self if self.dtype == torch.float64 else self.to(torch.float32)

    def transferred(self: CocoDataModule, batch: Any, dataloader_idx: int) -> Any:
        with patch.object(Tensor, "float", Tensor.double):  # of bytes
            batch = to_device(self, batch, dataloader_idx)
        targets = [one._replace(boxes=one.boxes.double()) for one in batch.targets]
        return batch._replace(images=batch.images.double(), targets=targets)

    torch.set_default_dtype(torch.float64)
    try:
        with (
            patch.object(Tensor, "float", at_least),
            patch.object(CocoDataModule, "on_after_batch_transfer", transferred),
        ):
            yield
    finally:
        torch.set_default_dtype(usual)


def ours(plan: Plan, peer: Peer, root: Path, folder: Path, beginning: Path) -> tuple[Losses, Trained]:
    """The command, its log and its checkpoint."""
    # The rule for other batches is part of what is compared: rate and steps are told for twice the images.
    schedule = {
        "steps": plan.steps // 2,
        "milestones": [plan.milestone // 2],
        "warmup_steps": plan.warmup // 2,
        "reference_images": 2 * plan.batch,
    }
    content = {
        "trainer": trainer(folder, "ours"),
        "model": {
            "detector": {
                "bottom_up": {"name": plan.network, "norm": "frozen", "frozen_stages": 5 - TRAINED},
                "neck": {"channels": plan.channels},
                "training_proposals": {"pre_nms_top_n": 2000, "post_nms_top_n": plan.proposals},
                "roi_sampling": {"per_image": EVERYTHING},
                "roi_head": {"head": {"hidden": plan.hidden}},
                "detections": {"score_threshold": 0.0},
                **peer.detector,
            },
            "optimizer": {
                "class_path": "fpn.lit.module.PaperSGD",
                "init_args": {
                    "lr": 2 * plan.lr,
                    "momentum": plan.momentum,
                    "weight_decay": plan.weight_decay,
                },
            },
            "schedule": schedule,
            "start_from": str(beginning),
        },
        "data": {
            "root": str(root),
            "images": {
                "short_side": plan.short_side,
                "max_side": plan.max_side,
                "flip_probability": 0.0,
                "train_scales": [],
            },
            "batch_size": plan.batch,
            "num_workers": 0,
        },
    }
    file = folder / "ours.yaml"
    file.write_text(yaml.safe_dump(content))
    configs = [option for name in (*peer.configs, file) for option in ("--config", str(name))]
    fpn_command(["fit", *configs])
    run = folder / "ours" / "version_0"
    with (run / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/rpn_box"]]
    losses = [{name: float(row[f"train/{name}"]) for name in FasterRCNN.loss_names} for row in rows]
    return losses, load(run / "checkpoints" / "last.ckpt")


def apart(
    begun: dict[str, Tensor], theirs: dict[str, Tensor], ours: dict[str, Tensor]
) -> tuple[float, float]:
    """How far two trainings of the same weights have come apart, over how far theirs has come.

    Returns:
        Of all trained tensors together, and of the one where it is most.
    """
    change, difference = [], []
    for name, start in begun.items():
        if torch.equal(theirs[name], start):
            if not torch.equal(ours[name], start):
                raise DisagreementError(f"{name} is trained by ours alone")
        else:
            change.append(float((theirs[name] - start).double().norm()))
            difference.append(float((theirs[name] - ours[name]).double().norm()))
    return float(np.linalg.norm(difference) / np.linalg.norm(change)), float(
        np.divide(difference, change).max()
    )


def same_detections(peer: Peer, predictor: Predictor, files: Sequence[Path]) -> tuple[int, int]:
    """How many of the peer's detections ours has too, and how many these are."""
    matched = detections = 0
    for file in files:
        with torch.inference_mode():
            expected = peer.detect(file)
        found = predictor(file)
        matched += len(pairs(expected, [found.boxes, found.scores, found.labels], PIXELS, SCORE))
        detections += len(expected[0])
    return matched, detections
