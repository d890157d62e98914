"""What both sides of a training in lockstep do, and the images they do it with."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from fpn import CocoDataModule, InputError
from fpn.data.shapes import generate_shapes


@dataclass(frozen=True)
class Plan:
    """What both sides do.

    Args:
        peer: whose code ours is beside: torchvision's, or Detectron2's where it can be imported.
        steps: of SGD; the first quarter warms up, at three quarters the learning rate falls to a tenth.
        root: folder in COCO's layout; null draws pictures of shapes.
        images: training images of it that are used, and at most that many are validated on.
        network: the bottom-up; its conv1 and conv2 and all its norms are frozen. Detectron2 has no resnet10.
        short_side: pixels that images are resized to.
        batch: images a step.
        lr: learning rate of a step of that many images.
        proposals: of an image in training.
        channels: of the pyramid.
        hidden: width of the RoI head.
        momentum: of SGD.
        weight_decay: on every parameter that is trained.
        double: the networks reckon in float64, from pixels in bytes or float32.
    """

    peer: Literal["torchvision", "detectron2"] = "torchvision"
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

    @property
    def warmup(self) -> int:
        """An even number of steps, the first quarter."""
        return self.steps // 8 * 2

    @property
    def milestone(self) -> int:
        """An even number of steps, three quarters."""
        return 3 * self.steps // 8 * 2


def trainer(folder: Path, name: str, log_every: int = 1) -> dict[str, Any]:
    """The trainer's settings of our side: on the CPU, a metrics.csv below FOLDER/NAME and no validation."""
    return {
        "accelerator": "cpu",
        "devices": 1,
        "log_every_n_steps": log_every,
        "limit_val_batches": 0,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "logger": {
            "class_path": "fpn.lit.metrics_file.MetricsFile",
            "init_args": {"save_dir": str(folder), "name": name},
        },
    }


def selected(plan: Plan, data: Path) -> Path:
    """A folder in COCO's layout, with the first images of `root`, or drawn ones, that have objects."""
    root = Path(plan.root or data / "drawn")
    if plan.root is None:
        generate_shapes(root, train=plan.images, val=8, long_side=256)
    (data / "annotations").mkdir(parents=True)
    for split in ("train", "val"):
        name = f"annotations/instances_{split}2017.json"
        content = json.loads((root / name).read_text())
        # Crowds are conventions' own matter, and taken out of the files of both.
        content["annotations"] = [one for one in content["annotations"] if not one["iscrowd"]]
        with_objects = {one["image_id"] for one in content["annotations"]}
        content["images"] = [i for i in content["images"] if i["id"] in with_objects][: plan.images]
        kept = {image["id"] for image in content["images"]}
        content["annotations"] = [one for one in content["annotations"] if one["image_id"] in kept]
        (data / name).write_text(json.dumps(content))
        (data / f"{split}2017").symlink_to((root / f"{split}2017").resolve())
    return data


def val_files(root: Path) -> list[Path]:
    """The images that what was trained is tried on, by their ids."""
    images = json.loads((root / "annotations" / "instances_val2017.json").read_text())["images"]
    return [root / "val2017" / image["file_name"] for image in sorted(images, key=itemgetter("id"))]


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
