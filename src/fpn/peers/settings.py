"""What detectors do with the same weights: settings that no file of weights tells."""

from collections.abc import Mapping
from typing import Any

from fpn.models.detectors import Detector

_KEYS = {
    "bottom_up": ("stride_in_1x1", "norm_eps"),
    "neck": ("top_down", "nonlinearity"),
    "rpn": ("levels", "sizes", "ratios", "rounded", "grid", "box_weights"),
    "roi_head": (
        "levels",
        "pooling",
        "resolution",
        "sampling_ratio",
        "aligned",
        "canonical_size",
        "canonical_level",
        "epsilon",
        "box_weights",
    ),
}


def settings_of(detector: Detector) -> dict[str, Any]:
    """Those of a detector, as `rpn.grid`; what its weights' names or shapes tell is left out."""
    parts = {part: getattr(detector, part, None) for part in _KEYS}
    return {
        f"{part}.{key}": getattr(module, key)
        for part, module in parts.items()
        for key in _KEYS[part]
        if hasattr(module, key)
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Settings that both have and that differ: ours and theirs, by name."""
    return {key: (ours[key], theirs[key]) for key in ours if key in theirs and ours[key] != theirs[key]}
