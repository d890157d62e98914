"""A whole training with all its chance, by `fpn fit` and by a plain loop around torchvision's model."""

import csv
import json
import time
from collections.abc import Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from io import StringIO
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Literal, NamedTuple

import torch
import yaml
from jsonargparse.typing import PositiveFloat, PositiveInt
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.resnet import ResNet
from torchvision.ops import MultiScaleRoIAlign, box_convert
from torchvision.transforms.functional import hflip

from fpn.data.scene import CATEGORIES
from fpn.data.shapes import generate_shapes
from fpn.lit.cli import main as fpn_command
from parity.plan import trainer
from parity.torchvision import NETWORKS, objects, rate, read, with_pyramid


@dataclass(frozen=True)
class Budget:
    """What both sides have.

    Args:
        steps: of SGD; the first tenth warms up, at three quarters the learning rate falls to a tenth.
        batch: images a step.
        lr: learning rate of a step of that many images.
        momentum: of SGD.
        weight_decay: on every parameter.
        network: the bottom-up, from scratch and with BatchNorm.
        channels: of the pyramid.
        hidden: width of the RoI head.
        rois: sampled in an image, a quarter of them foreground.
        proposals: of an image in training.
        train: images that are drawn to train on.
        val: images that are drawn to test on.
        long_side: of an image in pixels; anchors and canonical size are the paper's for 1024. Of 64 pixels,
            padded by more than half, torchvision takes the maps' strides for smaller ones.
    """

    steps: PositiveInt = 1000
    batch: PositiveInt = 4
    lr: PositiveFloat = 0.02
    momentum: float = 0.9
    weight_decay: float = 1e-4
    network: Literal["resnet10", "resnet18", "resnet50"] = "resnet10"
    channels: PositiveInt = 32
    hidden: PositiveInt = 256
    rois: PositiveInt = 128
    proposals: PositiveInt = 300
    train: PositiveInt = 4000
    val: PositiveInt = 300
    long_side: PositiveInt = 256

    @property
    def warmup(self) -> int:
        """Steps in which the learning rate grows from a thousandth."""
        return self.steps // 10

    @property
    def milestone(self) -> int:
        """The step at which it falls."""
        return self.steps * 3 // 4

    @property
    def factor(self) -> float:
        """Of objects' sizes to those of the paper's images."""
        return self.long_side / 1024


class Outcome(NamedTuple):
    """Of one training."""

    ap: float
    """COCO's, in percent."""
    seconds: float
    """Of a step with its loading: the median over stretches of a twentieth of the training."""


def drawn(budget: Budget, folder: Path) -> Path:
    """A folder of plain shapes in COCO's layout, drawn where it is missing."""
    generate_shapes(folder, train=budget.train, val=budget.val, long_side=budget.long_side)
    return folder


def ours(budget: Budget, root: Path, seed: int, folder: Path) -> Outcome:
    """`fpn fit` and `fpn test`, with torchvision's conventions and first weights."""
    folder.mkdir(parents=True)
    weights = folder / "first.pth"
    torch.save(network(budget, seed).state_dict(), weights)
    content = {
        "seed_everything": seed,
        "trainer": trainer(folder, "", stretch(budget)),
        "model": {
            "detector": {
                "bottom_up": {"name": budget.network, "weights": None, "norm": "batch", "frozen_stages": 0},
                "neck": {"channels": budget.channels},
                "rpn": {"size_factor": budget.factor},
                "roi_head": {
                    "canonical_size": 224 * budget.factor,
                    "head": {"hidden": budget.hidden},
                },
                "roi_sampling": {"per_image": budget.rois, "fg_fraction": 0.25},
                "training_proposals": {"post_nms_top_n": budget.proposals},
            },
            "start_from": str(weights),
            "optimizer": {
                "class_path": "torch.optim.SGD",
                "init_args": {
                    "lr": budget.lr,
                    "momentum": budget.momentum,
                    "weight_decay": budget.weight_decay,
                },
            },
            "schedule": {
                "steps": budget.steps,
                "milestones": [budget.milestone],
                "warmup_steps": budget.warmup,
                "reference_images": budget.batch,
            },
        },
        "data": {
            "root": str(root),
            "seed": seed,
            "images": {"short_side": budget.long_side, "max_side": budget.long_side},
            "label_gaps": False,  # 1 to K for both, whatever ids the file has
            "batch_size": budget.batch,
            "eval_batch_size": 1,
            "num_workers": 0,
        },
    }
    file = folder / "ours.yaml"
    file.write_text(yaml.safe_dump(content))
    chain = [word for name in ("base", "conventions/torchvision", file) for word in ("--config", str(name))]
    fpn_command(["fit", *chain])
    with (folder / "version_0" / "metrics.csv").open() as lines:
        speeds = [row["train/images_per_second"] for row in csv.DictReader(lines)]
    checkpoint = folder / "version_0" / "checkpoints" / "last.ckpt"
    fpn_command(["test", *chain, "--ckpt_path", str(checkpoint)])
    scores = json.loads((folder / "version_0" / "test" / "scores.json").read_text())
    return Outcome(100 * scores["AP"], median(budget.batch / float(speed) for speed in speeds if speed))


def theirs(budget: Budget, root: Path, seed: int) -> Outcome:
    """torchvision's model in a plain loop, tested by pycocotools."""
    model = network(budget, seed)
    optimiser = torch.optim.SGD(
        model.parameters(), lr=budget.lr, momentum=budget.momentum, weight_decay=budget.weight_decay
    )
    images = Images(root)
    loader = DataLoader(images, batch_sampler=Alike(images, budget), collate_fn=list)
    times = [time.perf_counter()]
    for step, batch in enumerate(loader):
        pixels, targets = zip(*batch, strict=True)
        losses = model(list(pixels), list(targets))
        for group in optimiser.param_groups:
            group["lr"] = rate(budget.lr, budget.warmup, budget.milestone, step)
        optimiser.zero_grad()
        torch.stack(list(losses.values())).sum().backward()
        optimiser.step()
        if (step + 1) % stretch(budget) == 0:
            times.append(time.perf_counter())
    seconds = [(end - start) / stretch(budget) for start, end in pairwise(times)]
    return Outcome(100 * tested(model.eval(), root), median(seconds))


def stretch(budget: Budget) -> int:
    """Steps that are timed as one."""
    return max(budget.steps // 20, 1)


def annotations(root: Path, split: str) -> COCO:
    """As pycocotools reads them, without its prints."""
    with redirect_stdout(StringIO()):
        return COCO(root / "annotations" / f"instances_{split}2017.json")


class Images(Dataset[tuple[Tensor, dict[str, Tensor]]]):
    """Training images that have objects, half of them mirrored."""

    def __init__(self, root: Path) -> None:
        self.truth, self.folder = annotations(root, "train"), root / "train2017"
        for one in self.truth.dataset["annotations"]:
            if one["iscrowd"]:
                self.truth.imgToAnns[one["image_id"]].remove(one)
        self.ids = sorted(image for image, found in self.truth.imgToAnns.items() if found)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> tuple[Tensor, dict[str, Tensor]]:
        identity = self.ids[index]
        image = read(self.folder / self.truth.loadImgs(identity)[0]["file_name"])
        target = objects(self.truth, identity)
        if torch.rand(()) < 0.5:
            image = hflip(image)
            target["boxes"][:, [0, 2]] = image.shape[2] - target["boxes"][:, [2, 0]]
        return image, target


class Alike(Sampler[list[int]]):
    """Batches in another order every epoch, of upright images alone or of others, as in its references."""

    def __init__(self, images: Images, budget: Budget) -> None:
        self.budget = budget
        self.upright = [one["height"] > one["width"] for one in images.truth.loadImgs(images.ids)]

    def __iter__(self) -> Iterator[list[int]]:
        waiting: dict[bool, list[int]] = {False: [], True: []}
        given = 0
        while True:
            for index in torch.randperm(len(self.upright)).tolist():
                group = waiting[self.upright[index]]
                group.append(index)
                if len(group) == self.budget.batch:
                    yield list(group)
                    group.clear()
                    given += 1
                    if given == self.budget.steps:
                        return


def network(budget: Budget, seed: int) -> FasterRCNN:
    """torchvision's from scratch, as its own functions make it of a ResNet-50."""
    torch.manual_seed(seed)
    block, depths = NETWORKS[budget.network]
    body = ResNet(block, depths, norm_layer=nn.BatchNorm2d)
    sizes = tuple((budget.factor * side,) for side in (32, 64, 128, 256, 512))
    model = FasterRCNN(
        with_pyramid(body, budget.channels),
        min_size=budget.long_side,
        max_size=budget.long_side,
        rpn_anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * len(sizes)),
        rpn_post_nms_top_n_train=budget.proposals,
        box_batch_size_per_image=budget.rois,
        box_roi_pool=MultiScaleRoIAlign(list("0123"), 7, 2, canonical_scale=224 * budget.factor),
        box_head=TwoMLPHead(budget.channels * 7**2, budget.hidden),
        box_predictor=FastRCNNPredictor(budget.hidden, len(CATEGORIES.ids) + 1),
    )
    return model.train()


def tested(model: nn.Module, root: Path) -> float:
    """COCO's AP of a detector, from 0 to 1, by pycocotools."""
    truth, found = annotations(root, "val"), []
    categories = sorted(truth.cats)
    for image in truth.dataset["images"]:
        with torch.inference_mode():
            (boxes,) = model([read(root / "val2017" / image["file_name"])])
        sides = box_convert(boxes["boxes"], "xyxy", "xywh").tolist()
        for box, score, label in zip(sides, boxes["scores"].tolist(), boxes["labels"].tolist(), strict=True):
            place = {"image_id": image["id"], "category_id": categories[label - 1]}
            found.append({**place, "bbox": box, "score": score})
    if not found:
        return 0.0
    with redirect_stdout(StringIO()):
        evaluation = COCOeval(truth, truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])
