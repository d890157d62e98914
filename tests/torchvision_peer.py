"""torchvision's detector as the independent truth: the same weights, random but made to find much."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from benchmarks.inputs import peer
from benchmarks.train import LOSSES
from fpn.types import Batch, Detections, Targets

__all__ = ["LOSSES", "SIZES", "as_batch", "assert_same", "peer", "peer_targets", "smooth_image", "stirred"]

SIZES = [(150, 211), (301, 222), (97, 64), (33, 400)]


def smooth_image(size: tuple[int, int]) -> Tensor:
    """An image with structure at several scales, in [0, 1]."""
    layers = [torch.rand(1, 3, -(-size[0] // s) + 1, -(-size[1] // s) + 1) for s in (4, 16, 64)]
    return sum(F.interpolate(x, size=size, mode="bilinear") for x in layers)[0] / 3  # type: ignore[index]


def assert_same(found: Detections, expected: dict[str, Tensor]) -> None:
    """One for one; of two of nearly the same score, either may stand first."""
    torch.testing.assert_close(found.scores, expected["scores"], atol=1e-5, rtol=0)
    same = (
        ((found.boxes[:, None] - expected["boxes"]).abs().amax(dim=2) < 1e-3)
        & ((found.scores[:, None] - expected["scores"]).abs() < 1e-5)
        & (found.labels[:, None] == expected["labels"])
    )
    for side in (0, 1):
        assert torch.equal(same.sum(dim=side), torch.ones(len(same), dtype=torch.int64))


def peer_targets(targets: list[Targets]) -> list[dict[str, Tensor]]:
    return [{"boxes": t.boxes, "labels": t.labels} for t in targets]


def as_batch(model: FasterRCNN, images: list[Tensor], targets: list[Targets] | None = None) -> Batch:
    """The batch that torchvision's own transform makes of images, as ours."""
    padded, resized = model.transform(images, None if targets is None else peer_targets(targets))
    ours = None
    if targets is not None:
        ours = [t._replace(boxes=r["boxes"]) for t, r in zip(targets, resized, strict=True)]
    sizes = [tuple(size) for size in padded.image_sizes]
    originals = [tuple(image.shape[-2:]) for image in images]
    return Batch(padded.tensors, sizes, originals, list(range(len(images))), ours)


def stirred(model: FasterRCNN, frozen: bool, scales: tuple[float, float], objectness: float) -> FasterRCNN:
    """One of torchvision's other models with random weights that yield many detections, in evaluation mode.

    Args:
        model: changed in place.
        frozen: have a FrozenBatchNorm2d in the bottom-up, as torchvision's own constructors for weights.
        scales: of the norms, between these.
        objectness: the RPN's logits are that many times as far apart as torchvision begins with.
    """
    generator = torch.Generator().manual_seed(7)
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.BatchNorm2d):
            norm: nn.Module = module
            if frozen and name.startswith("backbone.body."):
                parent, _, own = name.rpartition(".")
                norm = FrozenBatchNorm2d(module.num_features)
                setattr(model.get_submodule(parent), own, norm)
            with torch.no_grad():
                norm.running_var.uniform_(0.5, 2.0, generator=generator)  # type: ignore[operator]
                norm.running_mean.normal_(0, 0.1, generator=generator)  # type: ignore[operator]
                norm.weight.uniform_(*scales, generator=generator)  # type: ignore[operator]
                norm.bias.normal_(0, 0.1, generator=generator)  # type: ignore[operator]
        elif isinstance(module, nn.Conv2d | nn.Linear) and ("rpn" in name or "roi_heads" in name):
            gain = {"cls_logits": objectness, "bbox_pred": 3.0, "cls_score": 60.0}.get(
                name.rsplit(".", 1)[-1], 1.0
            )
            with torch.no_grad():
                module.weight.mul_(gain)
                if module.bias is not None:
                    module.bias.uniform_(-0.1, 0.1, generator=generator)
    return model.eval()
