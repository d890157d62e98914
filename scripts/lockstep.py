"""Training in lockstep: `fpn fit` and a plain loop around torchvision's Faster R-CNN, from the same weights.

    python scripts/lockstep.py                                            # 200 steps on drawn pictures
    python scripts/lockstep.py --root /data/coco --images 40 --steps 200  # on a folder in COCO's layout

Ours is the real command: its data, transforms, detector, optimiser, schedule and checkpoint. Theirs shares
only the beginning and the order of the images: pycocotools reads the annotations, Pillow the files,
torchvision resizes, and the learning rate is written out by hand. Nothing is left to chance on either side:
no image is mirrored, and every anchor and every RoI is learned from.

In float32, as training is, rounding can turn a ReLU, or decide which of two proposals is kept, and the two
sides come apart a little from there on. In float64 (--double true) that is far less likely: pixels are
float32 on both sides, and what follows is not. Prints Markdown. Exit status 2: bad arguments.
"""

import copy
import csv
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import numpy as np
import torch
import yaml
from jsonargparse import ArgumentParser
from jsonargparse.typing import PositiveInt
from PIL import Image
from pycocotools.coco import COCO
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import pil_to_tensor

from benchmarks.inputs import TRAINED
from benchmarks.stages import pairs
from benchmarks.train import EVERYTHING, LOSSES
from fpn import CocoDataModule, InputError, Predictor, load
from fpn.checkpoints import Trained
from fpn.console import mistakes
from fpn.data.shapes import generate_shapes
from fpn.interop.torchvision import from_torchvision
from fpn.lit.cli import main as fpn_command

NETWORKS: dict[str, tuple[Any, list[int]]] = {
    "resnet10": (BasicBlock, [1, 1, 1, 1]),
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
PIXELS, SCORE = 0.5, 1e-3
"""By which a detection of one may differ from the other's."""


@dataclass(frozen=True)
class Plan:
    """What both sides do.

    Args:
        steps: of SGD; the first quarter warms up, at three quarters the learning rate falls to a tenth.
        root: folder in COCO's layout; null draws pictures of shapes.
        images: training images of it that are used, and at most that many are validated on.
        network: the bottom-up; its conv1 and conv2 and all its norms are frozen.
        short_side: pixels that images are resized to.
        batch: images a step.
        lr: learning rate of a step of that many images.
        proposals: of an image in training.
        channels: of the pyramid.
        hidden: width of the RoI head.
        momentum: of SGD.
        weight_decay: on every parameter that is trained.
        double: the networks reckon in float64, from pixels in float32.
    """

    steps: PositiveInt = 200
    root: str | None = None
    images: PositiveInt = 40
    network: Literal["resnet10", "resnet18", "resnet50"] = "resnet50"
    short_side: PositiveInt = 160
    batch: PositiveInt = 2
    lr: float = 0.01
    proposals: PositiveInt = 128
    channels: PositiveInt = 256
    hidden: PositiveInt = 1024
    momentum: float = 0.9
    weight_decay: float = 1e-4
    double: bool = False

    def __post_init__(self) -> None:
        if self.steps < 8 or self.steps % 2:
            raise InputError(f"steps {self.steps}: give an even number, 8 at least")

    @property
    def max_side(self) -> int:
        """Most pixels of a long side."""
        return round(self.short_side * 5 / 3)

    def rate(self, step: int) -> float:
        """The learning rate of a step counted from 0, by hand."""
        if step < self.warmup:
            return self.lr * (0.001 + 0.999 * step / self.warmup)
        return self.lr if step < self.milestone else self.lr / 10

    @property
    def warmup(self) -> int:
        """An even number of steps, the first quarter."""
        return self.steps // 8 * 2

    @property
    def milestone(self) -> int:
        """An even number of steps, three quarters."""
        return 3 * self.steps // 8 * 2


Losses = list[dict[str, float]]
"""Of each step, by our names."""


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
    """Detections of torchvision's that ours has too …"""
    detections: int
    """… of so many."""
    fell: tuple[float, float]
    """The sum of torchvision's losses, in the mean over the first and the last tenth of the steps."""

    def first(self, steps: int) -> dict[str, float]:
        """Each loss's greatest difference in the first steps."""
        return {name: max(step[name] for step in self.losses[:steps]) for name in self.losses[0]}


def lockstep(plan: Plan, folder: Path) -> Compared:
    """Train both, and compare.

    Args:
        plan: of the training.
        folder: an empty one, for what they read and write.
    """
    root = selected(plan, folder / "data")
    train, val = (COCO(root / "annotations" / f"instances_{split}2017.json") for split in ("train", "val"))
    beginning = folder / "torchvision.pth"
    with in_double() if plan.double else nullcontext():
        model = network(plan, len(train.cats))
        torch.save(model.state_dict(), beginning)
        our_losses, trained = ours(plan, root, folder, beginning)
        begun = from_torchvision(copy.deepcopy(model.state_dict()))
        losses = theirs(plan, model, root, train, order_of_images(plan, root))
        weights, worst = apart(begun, from_torchvision(model.state_dict()), trained.detector.state_dict())
    relative = [
        {name: abs(other[name] - loss) / abs(loss) for name, loss in one.items()}
        for one, other in zip(losses, our_losses, strict=True)
    ]
    files = [root / "val2017" / image["file_name"] for image in val.loadImgs(sorted(val.imgs))]
    matched, detections = same_detections(model.float().eval(), trained, files)
    sums, tenth = [sum(step.values()) for step in losses], max(plan.steps // 10, 1)
    fell = float(np.mean(sums[:tenth])), float(np.mean(sums[-tenth:]))
    return Compared(relative, weights, worst, matched, detections, fell)


@contextmanager
def in_double() -> Iterator[None]:
    """Have both reckon in float64, ours also where it asks for float32."""
    usual, to_device = torch.get_default_dtype(), CocoDataModule.on_after_batch_transfer

    def at_least(self: Tensor) -> Tensor:
        return self if self.dtype == torch.float64 else self.to(torch.float32)

    def transferred(self: CocoDataModule, batch: Any, dataloader_idx: int) -> Any:
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


def selected(plan: Plan, data: Path) -> Path:
    """A folder in COCO's layout: drawn, or with the first images of `root` that have objects."""
    if plan.root is None:
        generate_shapes(data, train=plan.images, val=8, long_side=256)
        return data
    (data / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        name = f"annotations/instances_{split}2017.json"
        content = json.loads((Path(plan.root) / name).read_text())
        # Crowds are conventions' own matter, and taken out of the files of both.
        content["annotations"] = [one for one in content["annotations"] if not one["iscrowd"]]
        with_objects = {one["image_id"] for one in content["annotations"]}
        content["images"] = [i for i in content["images"] if i["id"] in with_objects][: plan.images]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
        (data / name).write_text(json.dumps(content))
        (data / f"{split}2017").symlink_to((Path(plan.root) / f"{split}2017").resolve())
    return data


def network(plan: Plan, classes: int) -> FasterRCNN:
    """torchvision's, as its constructor begins, but for frozen norms that are not all alike."""
    torch.manual_seed(0)
    block, depths = NETWORKS[plan.network]
    body = ResNet(block, depths, norm_layer=FrozenBatchNorm2d)
    trained = tuple(f"layer{i}" for i in range(5 - TRAINED, 5))
    for name, parameter in body.named_parameters():
        parameter.requires_grad_(name.startswith(trained))
    for module in body.modules():
        if isinstance(module, FrozenBatchNorm2d):
            module.get_buffer("running_var").uniform_(0.5, 2.0)
            module.get_buffer("running_mean").normal_(0, 0.1)
            module.get_buffer("weight").uniform_(0.3, 0.6)
            module.get_buffer("bias").normal_(0, 0.1)
    channels = [body.inplanes // 2**i for i in (3, 2, 1, 0)]
    layers = {f"layer{i}": str(i - 1) for i in (1, 2, 3, 4)}
    return FasterRCNN(
        BackboneWithFPN(body, layers, channels, plan.channels),
        min_size=plan.short_side,
        max_size=plan.max_side,
        rpn_post_nms_top_n_train=plan.proposals,
        rpn_batch_size_per_image=EVERYTHING,
        box_batch_size_per_image=EVERYTHING,
        box_score_thresh=0.0,
        box_head=TwoMLPHead(plan.channels * 7**2, plan.hidden),
        box_predictor=FastRCNNPredictor(plan.hidden, classes + 1),
    )


def order_of_images(plan: Plan, root: Path) -> list[list[int]]:
    """The ids of each step's images."""
    data = CocoDataModule(str(root), batch_size=plan.batch, num_workers=0)
    data.setup("fit")
    loader: Any = data.train_dataloader()

    def steps() -> Iterator[list[int]]:
        epoch = 0
        while True:
            loader.batch_sampler.set_epoch(epoch)
            for picks in loader.batch_sampler:
                yield [int(loader.dataset.annotations.image_ids[pick.image]) for pick in picks]
            epoch += 1

    return list(islice(steps(), plan.steps))


def ours(plan: Plan, root: Path, folder: Path, beginning: Path) -> tuple[Losses, Trained]:
    """The command, its log and its checkpoint."""
    # The rule for other batches is part of what is compared: rate and steps are told for twice the images.
    schedule = {
        "steps": plan.steps // 2,
        "milestones": [plan.milestone // 2],
        "warmup_steps": plan.warmup // 2,
        "reference_images": 2 * plan.batch,
    }
    everything = {"per_image": EVERYTHING}
    content = {
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "log_every_n_steps": 1,
            "limit_val_batches": 0,
            "enable_model_summary": False,
            "enable_progress_bar": False,
            "logger": {
                "class_path": "fpn.lit.metrics_file.MetricsFile",
                "init_args": {"save_dir": str(folder), "name": "ours"},
            },
        },
        "model": {
            "detector": {
                "bottom_up": {"name": plan.network, "norm": "frozen", "frozen_stages": 5 - TRAINED},
                "neck": {"channels": plan.channels},
                "training_proposals": {"pre_nms_top_n": 2000, "post_nms_top_n": plan.proposals},
                "anchor_sampling": everything,
                "roi_sampling": everything,
                "roi_head": {"head": {"hidden": plan.hidden}},
                "detections": {"score_threshold": 0.0},
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
            },
            "batch_size": plan.batch,
            "num_workers": 0,
        },
    }
    file = folder / "ours.yaml"
    file.write_text(yaml.safe_dump(content))
    fpn_command(["fit", "--config", str(file)])
    run = folder / "ours" / "version_0"
    with (run / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row["train/rpn_box"]]
    losses = [{name: float(row[f"train/{name}"]) for name in LOSSES.values()} for row in rows]
    return losses, load(run / "checkpoints" / "last.ckpt")


def theirs(plan: Plan, model: FasterRCNN, root: Path, truth: COCO, order: list[list[int]]) -> Losses:
    """A loop as in PyTorch's tutorials."""
    model.train()
    model.transform.register_forward_hook(as_network)
    optimiser = torch.optim.SGD(
        [p for p in model.parameters() if p.requires_grad],
        lr=plan.lr,
        momentum=plan.momentum,
        weight_decay=plan.weight_decay,
    )
    losses = []
    for step, ids in enumerate(order):
        images = [read(root / "train2017" / image["file_name"]) for image in truth.loadImgs(ids)]
        found = model(images, [objects(truth, image) for image in ids])
        losses.append({LOSSES[name]: float(loss.detach()) for name, loss in found.items()})
        for group in optimiser.param_groups:
            group["lr"] = plan.rate(step)
        optimiser.zero_grad()
        torch.stack(list(found.values())).sum().backward()
        optimiser.step()
    return losses


def as_network(module: nn.Module, given: Any, made: tuple[Any, Any]) -> tuple[Any, Any]:
    """What torchvision's transform has made, in the default precision."""
    (images, targets), dtype = made, torch.get_default_dtype()
    images.tensors = images.tensors.to(dtype)
    if targets is not None:
        targets = [one | {"boxes": one["boxes"].to(dtype)} for one in targets]
    return images, targets


def read(file: Path) -> Tensor:
    """An image in [0, 1], by Pillow, in float32."""
    return pil_to_tensor(Image.open(file).convert("RGB")).to(torch.float32) / 255


def objects(truth: COCO, image: int) -> dict[str, Tensor]:
    """Boxes and labels 1…K of an image, as torchvision wants them."""
    labels = {category: 1 + i for i, category in enumerate(sorted(truth.cats))}
    listed = truth.loadAnns(truth.getAnnIds(image))
    boxes = torch.tensor([one["bbox"] for one in listed], dtype=torch.float32)
    boxes[:, 2:] += boxes[:, :2]
    return {"boxes": boxes, "labels": torch.tensor([labels[one["category_id"]] for one in listed])}


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
                raise InputError(f"{name} is trained by ours alone")
        else:
            change.append(float((theirs[name] - start).double().norm()))
            difference.append(float((theirs[name] - ours[name]).double().norm()))
    return float(np.linalg.norm(difference) / np.linalg.norm(change)), float(
        np.divide(difference, change).max()
    )


def same_detections(model: FasterRCNN, trained: Trained, files: Sequence[Path]) -> tuple[int, int]:
    """How many of torchvision's detections ours has too, and how many these are."""
    predictor = Predictor.of(Trained(trained.detector.float(), *trained[1:]))
    matched = detections = 0
    for file in files:
        with torch.inference_mode():
            (expected,) = model([read(file)])
        found = predictor(file)
        them = [expected[name] for name in ("boxes", "scores", "labels")]
        matched += len(pairs(them, [found.boxes, found.scores, found.labels], PIXELS, SCORE))
        detections += len(them[0])
    return matched, detections


def report(found: Compared, command: str) -> str:
    """Markdown."""
    steps = len(found.losses)
    columns = [n for n in (20, 100, 200) if n < steps] + [steps]
    lines = [
        f"`{command}`",
        "",
        "| greatest relative difference in the first | " + " | ".join(f"{n} steps" for n in columns) + " |",
        "|---|" + "--:|" * len(columns),
    ]
    for name in found.losses[0]:
        lines.append(f"| {name} | " + " | ".join(f"{found.first(n)[name]:.1e}" for n in columns) + " |")
    lines += [
        "",
        f"- weights after {steps} steps, difference over change: {found.weights:.1e} of all together, "
        f"{found.worst:.1e} of the tensor where it is greatest",
        f"- {found.matched} of {found.detections} detections matched, to {PIXELS} pixels and {SCORE:g} of "
        "score",
        f"- the losses' sum went from {found.fell[0]:.3g} to {found.fell[1]:.3g}",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train as the arguments say, and print what was found."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    with mistakes("lockstep.py"), tempfile.TemporaryDirectory() as folder:
        parser = ArgumentParser(prog="lockstep.py", description=__doc__)
        parser.add_class_arguments(Plan)
        plan = Plan(**vars(parser.parse_args(given)))
        found = lockstep(plan, Path(folder))
        print(report(found, shlex.join(["python", "scripts/lockstep.py", *given])))


if __name__ == "__main__":
    main()
