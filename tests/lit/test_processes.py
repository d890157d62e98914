"""What two processes learn together, and what one seed fixes."""

import csv
import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
import yaml
from processes import together
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import fpn.models.detectors
from fpn.lit.cli import main
from fpn.lit.module import DetectionModule
from fpn.lit.optimizer import PaperSGD
from fpn.models.detectors import Detector, FasterRCNN, FastRCNN, ProposalNetwork
from fpn.models.necks import FeaturePyramid, SingleLevel
from fpn.models.postprocess import ProposalSelection
from fpn.models.resnet import ResNet
from fpn.models.roi_head import Conv5Head, RoIHead, TwoFCHead
from fpn.models.rpn import RegionProposalNetwork
from fpn.models.targets import AnchorSampling, RoISampling
from fpn.types import Batch, Targets

HEIGHT, WIDTH = 64, 96
SIZES = {2: [8.0], 3: [16.0], 4: [32.0], 5: [64.0], 6: [128.0]}
EVERYTHING = 10**6
SMALL: dict[str, Any] = {
    "bottom_up": partial(ResNet, "resnet18", norm="group", width=8),
    "neck": partial(FeaturePyramid, channels=8),
}
RPN = {"rpn": partial(RegionProposalNetwork, sizes=SIZES)}
HEAD = {"roi_head": partial(RoIHead, canonical_size=56, head=partial(TwoFCHead, hidden=16))}


def batch(objects: list[int], crowds: int = 0, proposals: int | None = None) -> Batch:
    """An image for each number of objects, each with a crowd where wanted that covers all of it."""
    number = len(objects)

    def boxes(n: int) -> Tensor:
        corner = torch.rand(n, 2) * torch.tensor([WIDTH - 30, HEIGHT - 30])
        return torch.cat((corner, corner + 6 + torch.rand(n, 2) * 24), dim=1)

    everywhere = torch.tensor([[-1e3, -1e3, 1e3, 1e3]] * crowds).reshape(-1, 4)
    return Batch(
        torch.randn(number, 3, HEIGHT, WIDTH),
        [(HEIGHT, WIDTH)] * number,
        [(HEIGHT, WIDTH)] * number,
        list(range(number)),
        [Targets(boxes(n), torch.randint(1, 4, (n,)), everywhere) for n in objects],
        None if proposals is None else [boxes(proposals) for _ in objects],
    )


def joined(batches: list[Batch]) -> Batch:
    images = torch.cat([one.images for one in batches])
    rest = [[item for one in batches for item in one[field]] for field in range(1, 5)]  # type: ignore[union-attr]
    return Batch(images, *rest)  # type: ignore[arg-type]


class Case(NamedTuple):
    """A detector, and the batches of both processes in the first step; in the second they change places."""

    detector: Callable[[], Detector]
    batches: Callable[[], list[Batch]]
    doubled: bool = False
    """Whether one process with both batches in one has the same gradients."""


def detector(
    kind: Callable[..., Detector], *parts: dict[str, Any], **arguments: Any
) -> Callable[[], Detector]:
    given = dict(SMALL)
    for part in parts:
        given |= part
    return partial(kind, 3, **(given | arguments))


CASES = {
    # As many anchors and RoIs in both, all of which count: no anchor lies between the thresholds, and no
    # proposal is suppressed.
    "all sampled": Case(
        detector(
            FasterRCNN,
            RPN,
            HEAD,
            bottom_up=partial(ResNet, "resnet18", norm="frozen", width=8),
            anchor_sampling=AnchorSampling(0.5, 0.5, per_image=EVERYTHING, fg_fraction=1.0),
            training_proposals=ProposalSelection(5, 25, nms_iou=1.0, min_size=0.0),
            roi_sampling=RoISampling(per_image=EVERYTHING),
        ),
        lambda: [batch([1, 3]), batch([2, 2])],
        doubled=True,
    ),
    # Other numbers of anchors, divided by a nominal one.
    "nominal": Case(
        detector(
            ProposalNetwork,
            RPN,
            anchor_sampling=AnchorSampling(per_image=EVERYTHING, fg_fraction=1.0),
            rpn_loss_per_image=256,
        ),
        lambda: [batch([0, 1]), batch([5, 6])],
        doubled=True,
    ),
    "sampled": Case(detector(FasterRCNN, RPN, HEAD), lambda: [batch([1, 4]), batch([2, 3])]),
    "no objects": Case(detector(FasterRCNN, RPN, HEAD), lambda: [batch([0, 0]), batch([2, 3])]),
    "nothing but crowd": Case(detector(FasterRCNN, RPN, HEAD), lambda: [batch([0], 1), batch([2])]),
    "no objects for an RPN": Case(detector(ProposalNetwork, RPN), lambda: [batch([0]), batch([3])]),
    "no proposals": Case(
        detector(FasterRCNN, RPN, HEAD, training_proposals=ProposalSelection(50, 50, min_size=1e4)),
        lambda: [batch([0]), batch([2])],
    ),
    "no proposals anywhere": Case(
        detector(FasterRCNN, RPN, HEAD, training_proposals=ProposalSelection(50, 50, min_size=1e4)),
        lambda: [batch([0]), batch([0])],
    ),
    "heads of their own": Case(
        detector(
            FasterRCNN,
            rpn=partial(RegionProposalNetwork, sizes=SIZES, shared=False),
            roi_head=partial(RoIHead, canonical_size=56, shared=False, head=partial(TwoFCHead, hidden=16)),
            training_proposals=ProposalSelection(50, 50, min_size=1e4),
        ),
        lambda: [batch([0]), batch([1])],
    ),
    "empty proposal files": Case(
        detector(FastRCNN, HEAD), lambda: [batch([0, 0], proposals=0), batch([2, 0], proposals=9)]
    ),
    "empty proposal files and conv5": Case(
        detector(
            FastRCNN,
            bottom_up=partial(ResNet, "resnet18", norm="batch", width=8),
            neck=partial(SingleLevel, level=4),
            roi_head=partial(RoIHead, resolution=14, canonical_size=56, head=Conv5Head),
        ),
        lambda: [batch([0], proposals=0), batch([1], proposals=9)],
    ),
}


class Losses(nn.Module):
    """The sum of a detector's losses, as the forward pass that DistributedDataParallel wraps."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def forward(self, batch: Batch, generator: torch.Generator) -> Tensor:
        return torch.stack(list(self.detector.losses(batch, generator).values())).sum()


def begin(case: Case) -> tuple[Losses, torch.optim.Optimizer, list[list[Batch]]]:
    torch.manual_seed(0)
    losses = Losses(case.detector()).train()
    batches = case.batches()
    return losses, PaperSGD([p for p in losses.parameters() if p.requires_grad]), [batches, batches[::-1]]


def chance(rank: int, step: int) -> torch.Generator:
    return torch.Generator().manual_seed(10 * step + rank)


def gradients(losses: nn.Module) -> dict[str, Tensor | None]:
    return {
        name.removeprefix("module."): None if p.grad is None else p.grad.clone()
        for name, p in losses.named_parameters()
        if p.requires_grad
    }


def learn(rank: int, config: str) -> None:
    """One of two processes: learns all cases, then runs `fpn fit`, and writes down what came of it."""
    meeting = f"file://{Path('meeting').absolute()}"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=2)
    said: dict[str, Any] = {}
    for name, case in CASES.items():
        losses, optimizer, steps = begin(case)
        wrapped = DistributedDataParallel(losses)
        said[name] = {"losses": [], "gradients": []}
        for step, batches in enumerate(steps):
            optimizer.zero_grad()
            loss = wrapped(batches[rank], chance(rank, step))
            loss.backward()
            said[name]["losses"].append(loss.item())
            said[name]["gradients"].append(gradients(wrapped))
            optimizer.step()
        said[name]["weights"] = dict(losses.named_parameters())

    seen: list[int] = []
    training_step = DetectionModule.training_step

    def counting(self: DetectionModule, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.targets is not None
        seen.append(sum(len(target.boxes) for target in batch.targets))
        return training_step(self, batch, batch_idx)

    def at_the_end(self: DetectionModule) -> None:
        torch.save(said | {"objects": seen, "state": self.state_dict()}, f"{rank}.pt")

    DetectionModule.training_step = counting  # type: ignore[method-assign]
    DetectionModule.on_fit_end = at_the_end  # type: ignore[method-assign]
    given = ["fit", "--config", config, "--trainer.devices", "2", "--trainer.strategy", "ddp"]
    main(given)
    try:
        main([*given, "--data.root", "torn"])
    except SystemExit as ended:
        Path(f"{rank}.txt").write_text(str(ended.code))


def test_two_processes_learn_as_one(config: str, shapes: Path) -> None:
    """Also where one of them has no objects, no RoIs, or fewer images to validate on than the other.

    What one of them cannot read, and not do without, both end at, before the step.
    """
    content = yaml.safe_load(Path(config).read_text())
    train = json.loads((shapes / "annotations" / "instances_train2017.json").read_text())
    empty = {image["id"] for image in train["images"][::2]}
    train["annotations"] = [one for one in train["annotations"] if one["image_id"] not in empty]
    Path("half_empty.json").write_text(json.dumps(train))
    content["data"] |= {
        "train": {"annotations": "half_empty.json"},
        "keep_empty_images": True,
        "batch_size": 1,
    }
    content["data"]["seed"] = 4  # deals images with and without objects in all combinations
    content["model"]["schedule"]["steps"] = 5
    content["model"]["val_losses"] = False  # what each process samples is its own
    content["model"]["detector"]["testing_proposals"] = {"pre_nms_top_n": 500, "post_nms_top_n": 1000}
    Path(config).write_text(yaml.safe_dump(content))
    shutil.copytree(shapes, "torn")
    victim = min(Path("torn/train2017").iterdir())
    victim.write_bytes(victim.read_bytes()[:500])
    printed = "".join(together([config], script=__file__))
    said = [torch.load(f"{rank}.pt", weights_only=True) for rank in (0, 1)]

    for name, case in CASES.items():
        losses, optimizer, steps = begin(case)
        both = [one[name] for one in said]
        for step, batches in enumerate(steps):
            if case.doubled:
                optimizer.zero_grad()
                losses(joined(batches), chance(0, step)).backward()
                check(both, step, gradients(losses), f"{name}, doubled")
            optimizer.zero_grad()
            torch.stack([losses(one, chance(r, step)) for r, one in enumerate(batches)]).mean().backward()
            check(both, step, gradients(losses), name)
            optimizer.step()
        assert both[0]["weights"].keys() == both[1]["weights"].keys(), name
        assert all(math.isfinite(loss) for one in both for loss in one["losses"]), name
        for key, weight in both[0]["weights"].items():
            assert torch.equal(weight, both[1]["weights"][key]), f"{name}: {key}"

    met = {(bool(one), bool(other)) for one, other in zip(*(one["objects"] for one in said), strict=True)}
    assert met == {(True, True), (True, False), (False, True), (False, False)}
    first, second = (one["state"] for one in said)
    # Running statistics too: otherwise each would have validated a network of its own.
    assert all(torch.equal(value, second[key]) for key, value in first.items())
    assert all(torch.isfinite(value).all() for value in first.values())
    # Three and two of the five validation images, and the very numbers of one process.
    main(["validate", "--ckpt_path", "runs/tiny/version_0/checkpoints/last.ckpt"])
    assert scores("runs/tiny/version_0") == scores("runs/tiny/version_0/validate")

    assert [Path(f"{rank}.txt").read_text() for rank in (0, 1)] == ["2", "2"]
    (line,) = (line for line in printed.splitlines() if line.startswith("fpn: "))
    last = "runs/tiny/version_1/checkpoints/last.ckpt"
    assert line.startswith(f"fpn: {victim}: cannot be decoded")
    assert f"; {last} is from before this step" in line
    assert torch.load(last, weights_only=True)["global_step"] < 5


def scores(folder: str) -> dict[str, str]:
    """What a run's only validation logged."""
    rows = csv.DictReader(Path(folder, "metrics.csv").read_text().splitlines())
    (row,) = (row for row in rows if row["val/AP"])
    assert float(row["val/proposal_AR@1000"]) > 0
    return {key: value for key, value in row.items() if key.startswith("val/")}


def check(said: list[dict[str, Any]], step: int, expected: dict[str, Tensor | None], case: str) -> None:
    for rank, one in enumerate(said):
        found = one["gradients"][step]
        assert found.keys() == expected.keys()
        for name, gradient in found.items():
            where = f"{case}: step {step}, process {rank}, {name}"
            assert gradient is not None, where
            torch.testing.assert_close(
                gradient,
                expected[name],
                rtol=1e-4,
                atol=1e-6,
                msg=lambda text, where=where: f"{where}: {text}",
            )


class Run(NamedTuple):
    """All that a run drew."""

    weights: list[Tensor]
    """Before the first step."""
    order: list[int]
    """Images."""
    pixels: dict[int, Tensor]
    """Of each image, resized, flipped and padded."""
    boxes: dict[int, Tensor]
    """Of each image, resized and flipped."""
    anchors: list[Tensor]
    """Indices of those sampled, of each image."""
    rois: list[Tensor]
    """Those sampled, of each batch."""
    learned: list[Tensor]
    """Weights after the last step."""


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Run:
    found = Run([], [], {}, {}, [], [], [])
    step = DetectionModule.training_step
    anchors, rois = fpn.models.detectors.sample_anchors, fpn.models.detectors.sample_rois

    def watched_step(self: DetectionModule, batch: Batch, batch_idx: int) -> Tensor:
        if not found.weights:
            found.weights.extend(value.clone() for value in self.state_dict().values())
        found.order.extend(batch.image_ids)
        found.pixels.update(zip(batch.image_ids, batch.images.clone(), strict=True))
        found.boxes.update(zip(batch.image_ids, (t.boxes for t in batch.targets or ()), strict=True))
        return step(self, batch, batch_idx)

    def watched_anchors(*given: Any) -> Any:
        sampled = anchors(*given)
        found.anchors.extend((sampled.chosen, sampled.match))
        return sampled

    def watched_rois(*given: Any) -> Any:
        sampled = rois(*given)
        found.rois.extend(sampled[0])
        return sampled

    with monkeypatch.context() as patch:
        patch.setattr(DetectionModule, "training_step", watched_step)
        patch.setattr(
            DetectionModule,
            "on_fit_end",
            lambda self: found.learned.extend(value.clone() for value in self.state_dict().values()),
        )
        patch.setattr(fpn.models.detectors, "sample_anchors", watched_anchors)
        patch.setattr(fpn.models.detectors, "sample_rois", watched_rois)
        main(["fit", *arguments])
    return found


def equal(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(map(torch.equal, one, other))


def test_a_seed_fixes_everything_and_another_changes_everything(
    config: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--config", config, "--data.images.train_scales", "[0.67, 0.83, 1]"]
    given += ["--trainer.limit_val_batches", "0", "--trainer.enable_checkpointing", "false"]
    first = run(monkeypatch, *given)
    assert len(first.order) == 8
    assert len(first.anchors) == len(first.rois) == 4 * 2
    # Whoever loads the images, and whether or not PyTorch is told to.
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which Lightning would leave behind
    try:
        again = run(monkeypatch, *given, "--data.num_workers", "2", "--trainer.deterministic", "true")
    finally:
        torch.use_deterministic_algorithms(False)
    for part in ("weights", "anchors", "rois", "learned"):
        assert equal(getattr(first, part), getattr(again, part)), part
    assert again.order == first.order
    assert equal(list(again.pixels.values()), list(first.pixels.values()))

    other = run(monkeypatch, *given, "--seed_everything", "1")
    assert not equal(first.weights, other.weights)
    assert not equal(first.anchors, other.anchors)  # which the weights have no part in
    assert other.order == first.order
    assert equal(list(other.pixels.values()), list(first.pixels.values()))

    other = run(monkeypatch, *given, "--data.seed", "1")
    assert equal(first.weights, other.weights)
    assert other.order != first.order
    shared = first.boxes.keys() & other.boxes.keys()
    assert not all(torch.equal(first.boxes[image], other.boxes[image]) for image in shared)


if __name__ == "__main__":
    learn(int(os.environ["LOCAL_RANK"]), sys.argv[1])
