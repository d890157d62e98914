"""What both sides are given: image files, boxes to learn from, and the same random weights."""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor, nn
from torchvision.io import write_jpeg
from torchvision.models import resnet50
from torchvision.models.detection import FasterRCNN as TorchvisionFasterRCNN
from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.comparison import Run
from fpn import FasterRCNN, InputError, Targets, load_torchvision
from fpn.data.decoding import read_image
from fpn.data.scene import draw_scene
from fpn.models.resnet import ResNet
from fpn.types import Size

LONG_SIDE = 640
"""Pixels of drawn images, as of COCO's."""
CLASSES = 91
"""torchvision's for COCO, the background among them."""
OBJECTS = 7
"""Of an image, as COCO's have."""
TRAINED = 3
"""Stages of the bottom-up that are trained, torchvision's default: conv1 and conv2 are frozen."""


@dataclass(kw_only=True)
class NetworkRun(Run):
    """A run of whole networks.

    Args:
        batch: images at a time.
        images: folder with JPEG files; null draws some.
        short_side: pixels that images are resized to …
        max_side: … unless the long side would exceed this.
        precision: of the network: fp32, or bf16 by autocast; outputs are compared in fp32.
    """

    batch: PositiveInt = 1
    images: str | None = None
    short_side: PositiveInt = 800
    max_side: PositiveInt = 1333
    precision: Literal["fp32", "bf16"] = "fp32"

    def autocast(self, compared: bool) -> torch.autocast:
        """Under which the network runs. With random weights few boxes would survive bfloat16's rounding."""
        half = self.precision == "bf16" and not compared
        return torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=half)


@contextmanager
def weights_and_files(images: str | None, number: int) -> Iterator[tuple[Path, list[Path]]]:
    """A file of the peer's weights, the same at every call, and image files."""
    with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = Path(folder, "weights.pth")
        torch.save(peer().state_dict(), weights)
        yield weights, jpeg_files(images, number, Path(folder))


def jpeg_files(images: str | None, number: int, folder: Path) -> list[Path]:
    """Image files: the first of `images` by name, over again where it has fewer, or drawn to a folder.

    Raises:
        InputError: there is no such folder, no JPEG file in it, or one that cannot be read.
    """
    if images is not None:
        found = sorted(p for p in Path(images).glob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:number]
        if not found:
            raise InputError(f"images {images}: no folder with JPEG files")
        for file in found:
            read_image(file)
        return [found[i % len(found)] for i in range(number)]
    files = [folder / f"{i:03}.jpg" for i in range(number)]
    for seed, file in enumerate(files):
        picture, _ = draw_scene(np.random.default_rng(seed), seed, LONG_SIDE)
        write_jpeg(torch.from_numpy(picture).permute(2, 0, 1).contiguous(), str(file), quality=90)
    return files


def random_targets(size: Size, number: int, classes: int, seed: int) -> Targets:
    """Boxes of an eighth to a half of an image's sides, with labels in 1…K."""
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]])
    sides = limits * (0.125 + 0.375 * torch.rand(number, 2, generator=generator))
    corner = (limits - sides) * torch.rand(number, 2, generator=generator)
    labels = torch.randint(1, classes + 1, (number,), generator=generator)
    return Targets(torch.cat((corner, corner + sides), dim=1), labels, torch.zeros(0, 4))


def peer(classes: int = CLASSES, trained: int = 5, **arguments: Any) -> TorchvisionFasterRCNN:
    """fasterrcnn_resnet50_fpn with a frozen BatchNorm (eps 0) and weights that yield many detections.

    In evaluation mode. Classes count the background; `trained` stages are the last of the bottom-up's 5.
    """
    body = resnet50(weights=None, norm_layer=lambda channels: FrozenBatchNorm2d(channels, eps=0.0))
    model = TorchvisionFasterRCNN(_resnet_fpn_extractor(body, trained), classes, **arguments)
    generator = torch.Generator().manual_seed(7)
    stir(FrozenBatchNorm2d, model, generator)
    for part in (model.rpn, model.roi_heads):
        enliven(part, {"cls_logits": 30.0, "bbox_pred": 3.0, "cls_score": 60.0}, generator)
    return model.eval()


def stir(norms: type[nn.Module], model: nn.Module, generator: torch.Generator | None = None) -> None:
    """Give frozen norms statistics that are not all alike."""
    for module in model.modules():
        if isinstance(module, norms):
            module.get_buffer("running_var").uniform_(0.5, 2.0, generator=generator)
            module.get_buffer("running_mean").normal_(0, 0.1, generator=generator)
            module.get_buffer("weight").uniform_(0.3, 0.6, generator=generator)
            module.get_buffer("bias").normal_(0, 0.1, generator=generator)


@torch.no_grad()
def enliven(model: nn.Module, gains: Mapping[str, float], generator: torch.Generator | None = None) -> None:
    """Have random weights find much: those of layers with a bias grow by gains, named by their last word."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d | nn.Linear) and module.bias is not None:
            module.weight.mul_(gains.get(name.rpartition(".")[2], 1.0))
            module.bias.uniform_(-0.1, 0.1, generator=generator)


def load_theirs(weights: Path, **arguments: Any) -> TorchvisionFasterRCNN:
    """torchvision's model with weights of a file."""
    model = peer(trained=TRAINED, **arguments)
    model.load_state_dict(torch.load(weights, weights_only=True))
    return model


def load_ours(weights: Path | dict[str, Tensor]) -> FasterRCNN:
    """Our detector with the same, of a file or as a state dict."""
    bottom_up = partial(ResNet, "resnet50", norm="frozen", norm_eps=0.0, frozen_stages=5 - TRAINED)
    return load_torchvision(weights, bottom_up=bottom_up)
