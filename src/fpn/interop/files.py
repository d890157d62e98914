"""Files of weights under other names, put into detectors of ours."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor
from torchvision.models import WeightsEnum
from torchvision.models.detection import (
    FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    FasterRCNN_MobileNet_V3_Large_FPN_Weights,
    FasterRCNN_ResNet50_FPN_V2_Weights,
    FasterRCNN_ResNet50_FPN_Weights,
)

from fpn.models.detectors import Detector
from fpn.models.postprocess import DetectionSelection
from fpn.weights import check_weights, download, read_any, state_dict

SCORES = "roi_head.head.shared.scores.bias"
"""Of a detector of ours: one for each class, the background's first."""
_PUBLISHED: dict[str, type[WeightsEnum]] = {
    kind.__name__: kind
    for kind in (
        FasterRCNN_ResNet50_FPN_Weights,
        FasterRCNN_ResNet50_FPN_V2_Weights,
        FasterRCNN_MobileNet_V3_Large_FPN_Weights,
        FasterRCNN_MobileNet_V3_Large_320_FPN_Weights,
    )
}
"""torchvision's names of its detectors' weights, before the dot."""
_D = TypeVar("_D", bound=Detector)


def named(weights: str | Path) -> WeightsEnum | None:
    """What torchvision publishes under a name, as FasterRCNN_ResNet50_FPN_V2_Weights.COCO_V1, or None.

    A name alone, as COCO_V1, is of `fasterrcnn_resnet50_fpn`.
    """
    kind, _, name = str(weights).rpartition(".")
    known = _PUBLISHED.get(kind or FasterRCNN_ResNet50_FPN_Weights.__name__)
    return None if known is None else known.__members__.get(name)


def published(source: str) -> WeightsEnum | None:
    """What torchvision publishes under a name or in a file of its own name, or None."""
    files = {Path(one.url).name: one for kind in _PUBLISHED.values() for one in kind}
    return named(source) or files.get(Path(source).resolve().name)  # a link has another


def read_weights(weights: str | Path) -> dict[str, Any]:
    """What lies in a file of weights, or what torchvision publishes under a name.

    Raises:
        InputError: no such file, one that is damaged or wants to run code, or weights that cannot be had.
    """
    weights = str(weights)  # torchvision's own enumeration too, whose members are named so
    known = named(weights)
    if known is not None and not Path(weights).exists():
        return dict(download(known, instead="download that elsewhere and give the file"))
    return read_any(weights)


def content_of(weights: str | Path | Mapping[str, Any]) -> tuple[str, dict[str, Tensor]]:
    """Where weights come from, for messages, and the weights under their own names."""
    if isinstance(weights, Mapping):
        source, content = "the state dict", weights
    else:
        source, content = str(weights), read_weights(weights)
    return source, state_dict(content, source)


def filled(detector: _D, state: dict[str, Tensor], source: str) -> _D:
    """The detector with these weights, in evaluation mode.

    Raises:
        InputError: they do not fit it.
    """
    check_weights(detector.state_dict(), state, source)
    detector.load_state_dict(state)
    detector.eval()
    return detector


def with_threshold(arguments: dict[str, Any], score_threshold: float | None) -> dict[str, Any]:
    """A detector's arguments, their `detections` with another threshold where one is given."""
    if score_threshold is None:
        return arguments
    detections = arguments.get("detections", DetectionSelection())
    return arguments | {"detections": replace(detections, score_threshold=score_threshold)}


def renamed(name: str, table: Mapping[str, str]) -> str:
    """A name whose beginning is replaced; the longest that fits is taken."""
    for theirs, ours in sorted(table.items(), key=lambda pair: -len(pair[0])):
        if name.startswith(theirs):
            return ours + name.removeprefix(theirs)
    return name
