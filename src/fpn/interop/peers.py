"""A file of weights, whoever of the peers wrote it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from fpn.interop import detectron2, torchvision
from fpn.interop.settings import settings_in
from fpn.weights import as_tensors


class TrainedWeights(NamedTuple):
    """A trained detector, as far as it can be ours."""

    weights: dict[str, Tensor]
    """Under our names."""
    settings: dict[str, Any]
    """What is done with them, as `detector_settings` has it."""
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
    content = content.get("model", content)
    if not isinstance(content, Mapping):
        return None
    names = [name for name in content if isinstance(name, str)]
    if any(name.startswith("backbone.body.") for name in names):
        state = as_tensors(content, source)
        weights, config = (
            torchvision.from_torchvision(state, source),
            torchvision.configs_of(source, state)[-1],
        )
        return TrainedWeights(weights, torchvision.settings_of(source, state), f"configs/{config}.yaml")
    if any(name.startswith("backbone.bottom_up.") for name in names):
        weights = detectron2.from_detectron2(as_tensors(content, source), source)
        return TrainedWeights(
            weights, settings_in(detectron2.CONVENTION), f"configs/{detectron2.CONVENTION}.yaml"
        )
    return None
