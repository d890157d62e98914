"""torchvision's detector as the independent truth: the same weights, random but made to find much."""

from torch import Tensor
from torchvision.models.detection import FasterRCNN

from benchmarks.inputs import peer
from fpn.types import Batch, Targets

__all__ = ["as_batch", "peer", "peer_targets"]


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
