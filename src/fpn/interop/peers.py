"""A file of weights, whoever of the peers wrote it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights

from fpn.data.transforms import ImageSettings
from fpn.interop import detectron2, torchvision
from fpn.interop.files import published
from fpn.interop.settings import image_settings, images_in, settings_in
from fpn.models.detectors import FasterRCNN, ProposalNetwork
from fpn.types import NO_CATEGORY, Categories
from fpn.weights import as_tensors


class TrainedWeights(NamedTuple):
    """A trained detector, as far as it can be ours."""

    weights: dict[str, Tensor]
    """Under our names."""
    settings: dict[str, Any]
    """What is done with them, as `detector_settings` and `image_settings` have it."""
    remedy: str
    """Configuration files that have these settings."""


def from_peer(content: Mapping[str, Any], source: str) -> TrainedWeights | None:
    """A detector's weights, whoever of the peers wrote them.

    Args:
        content: of the file.
        source: where that comes from, for messages and for settings that hold for one published file.

    Returns:
        None where they are neither torchvision's nor Detectron2's.

    Raises:
        InputError: they are of a detector that ours cannot be.
    """
    peer, content = _peer(content), content.get("model", content)
    if peer == "torchvision":
        state = as_tensors(content, source)
        weights, configs = torchvision.from_torchvision(state, source), torchvision.configs_of(source, state)
        settings = torchvision.settings_of(source, state) | image_settings(images_in(*configs))
        return TrainedWeights(weights, settings, f"configs/{configs[-1]}.yaml")
    if peer == "detectron2":
        weights = detectron2.from_detectron2(as_tensors(content, source), source)
        settings = settings_in(detectron2.CONVENTION) | image_settings(detectron2.DETECTRON2_IMAGES)
        return TrainedWeights(weights, settings, f"configs/{detectron2.CONVENTION}.yaml")
    return None


def detector_of(
    content: Mapping[str, Any], path: str | Path
) -> tuple[FasterRCNN | ProposalNetwork, Categories, ImageSettings] | None:
    """A peer's whole detector: in evaluation mode, what its labels mean, and how it has images prepared.

    Classes are named where the weights are published ones, and numbered otherwise.

    Args:
        content: of the file.
        path: the file, or a name of what torchvision publishes.

    Returns:
        None where it is neither torchvision's nor Detectron2's.

    Raises:
        InputError: it is a detector that ours cannot be.
    """
    peer = _peer(content)
    if peer is None:
        return None
    if peer == "torchvision":
        detector: FasterRCNN | ProposalNetwork = torchvision.load_torchvision(path)
        images = images_in(*torchvision.configs_of(str(path), content.get("model", content)))
        categories = _published() if published(str(path)) is not None else None
    else:
        detector = detectron2.load_detectron2(path)
        images = detectron2.DETECTRON2_IMAGES
        zoo = content.get("__author__") == "Detectron2 Model Zoo"
        categories = _published().listed() if zoo else None
    numbers = range(1, detector.classes + 1)
    if categories is None or len(categories.ids) != detector.classes:
        categories = Categories((*numbers,), (*map(str, numbers),))
    return detector, categories, images


def _peer(content: Mapping[str, Any]) -> Literal["torchvision", "detectron2"] | None:
    content = content.get("model", content)
    names = [name for name in content if isinstance(name, str)] if isinstance(content, Mapping) else []
    if any(name.startswith("backbone.body.") for name in names):
        return "torchvision"
    return "detectron2" if any(name.startswith("backbone.bottom_up.") for name in names) else None


def _published() -> Categories:
    """COCO's, as labels of torchvision's published detectors: with gaps."""
    names = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"][1:]  # the background is not one
    named = (NO_CATEGORY if name == "N/A" else name for name in names)
    return Categories((*range(1, len(names) + 1),), (*named,))
