"""Whether two detectors do the same, stage by stage, on any machine.

Float noise of the network turns a comparison with a threshold here and there, and one that is turned changes
what is found after it. So what has no threshold, maps and logits, is compared to a tolerance. What has one,
the selection of proposals and of detections, is compared on the same numbers, the peer's: nothing may differ.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

import torch
import torchvision
from torch import Tensor, nn

from benchmarks.comparison import DisagreementError, equally_far
from fpn.models.postprocess import (
    DetectionSelection,
    ProposalSelection,
    ranked,
    select_detections,
    select_proposals,
)
from fpn.types import RPNOutput

NETWORK = 5e-4
"""Largest difference of maps, logits and deltas, in units of their spread."""
BOXES, SCORES = 0.05, 1e-3
"""Pixels, and difference of scores, within which two boxes are the same."""
EXACT = 1e-3, 1e-5
"""The same, of boxes that were made of the same numbers."""
EVERY = 7
"""One in so many channels of a map is compared."""


@dataclass
class Seen:
    """What a detector makes of a batch, on the CPU."""

    sizes: list[tuple[int, int]] = field(default_factory=list)
    maps: dict[int, Tensor] = field(default_factory=dict)
    anchors: dict[int, Tensor] = field(default_factory=dict)
    objectness: dict[int, Tensor] = field(default_factory=dict)
    deltas: dict[int, Tensor] = field(default_factory=dict)
    proposals: list[Tensor] = field(default_factory=list)
    """Of each image, in pixels of the network's input."""
    scores: Tensor = field(default_factory=lambda: torch.empty(0))
    """(R, K + 1) logits, the proposals of image after image."""
    box_deltas: Tensor = field(default_factory=lambda: torch.empty(0))
    """(R, K + 1, 4)."""
    selected: list[list[Tensor]] = field(default_factory=list)
    """Boxes, scores and labels of each image's detections, in pixels of the network's input …"""
    found: list[list[Tensor]] = field(default_factory=list)
    """… and of the original image."""


@contextmanager
def watching(hooks: dict[nn.Module, Callable[[Any, Any, Any], None]]) -> Iterator[None]:
    """A context in which modules show what they are given and what they make of it."""
    handles = [module.register_forward_hook(hook) for module, hook in hooks.items()]
    # Of few boxes, torchvision suppresses some by coordinates shifted by thousands of pixels: with rounding.
    exact = torchvision.ops.boxes._batched_nms_vanilla
    try:
        with patch.object(torchvision.ops.boxes, "_batched_nms_coordinate_trick", exact):
            yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def watching_theirs(model: Any, seen: Seen) -> Iterator[None]:
    """Note what torchvision's detector makes of the batch that it is given in this context."""

    def backbone(_: Any, __: Any, maps: dict[str, Tensor]) -> None:
        seen.maps.update(_some(dict(zip((2, 3, 4, 5), maps.values(), strict=False))))

    def rpn_head(_: Any, __: Any, outputs: tuple[list[Tensor], list[Tensor]]) -> None:
        for k, (logits, deltas) in enumerate(zip(*outputs, strict=True), start=2):
            n, each = logits.shape[:2]
            seen.objectness[k] = logits.permute(0, 2, 3, 1).reshape(n, -1).cpu()
            seen.deltas[k] = deltas.unflatten(1, (each, 4)).permute(0, 3, 4, 1, 2).reshape(n, -1, 4).cpu()

    def anchors(_: Any, __: Any, outputs: list[Tensor]) -> None:
        numbers = [logits.shape[1] for logits in seen.objectness.values()]
        seen.anchors = dict(zip(seen.objectness, outputs[0].cpu().split(numbers), strict=True))

    def predictor(_: Any, __: Any, outputs: tuple[Tensor, Tensor]) -> None:
        seen.scores, seen.box_deltas = outputs[0].cpu(), outputs[1].unflatten(1, (-1, 4)).cpu()

    def selected(_: Any, __: Any, outputs: tuple[list[dict[str, Tensor]], Any]) -> None:
        seen.selected = [[one[key].cpu() for key in ("boxes", "scores", "labels")] for one in outputs[0]]

    with watching(
        {
            model.transform: lambda _, __, out: seen.sizes.extend(out[0].image_sizes),
            model.backbone: backbone,
            model.rpn.head: rpn_head,
            model.rpn.anchor_generator: anchors,
            model.rpn: lambda _, __, out: seen.proposals.extend(boxes.cpu() for boxes in out[0]),
            model.roi_heads.box_predictor: predictor,
            model.roi_heads: selected,
        }
    ):
        yield


@contextmanager
def watching_ours(detector: nn.Module, seen: Seen) -> Iterator[None]:
    """Note what our detector makes of the batch that it is given in this context."""

    def rpn(_: Any, __: Any, output: RPNOutput) -> None:
        for noted, levels in zip((seen.anchors, seen.objectness, seen.deltas), output, strict=True):
            noted.update({k: values.cpu() for k, values in levels.items()})

    def head(_: Any, given: tuple[Any, Any], outputs: tuple[Tensor, Tensor]) -> None:
        rois = given[1]
        seen.proposals = [rois.boxes[rois.image == n].cpu() for n in range(int(rois.image.max()) + 1)]
        seen.scores, seen.box_deltas = (part.cpu() for part in outputs)

    with watching(
        {
            detector.get_submodule("neck"): lambda _, __, p: seen.maps.update(_some(p)),
            detector.get_submodule("rpn"): rpn,
            detector.get_submodule("roi_head"): head,
        }
    ):
        yield


def _some(maps: dict[int, Tensor]) -> dict[int, Tensor]:
    return {k: p[:, ::EVERY].cpu() for k, p in maps.items()}


def same_stages(theirs: list[Seen], ours: list[Seen]) -> str:
    """See that every stage does the same.

    Args:
        theirs: the peer's, batch after batch.
        ours: ours of the same batches.

    Raises:
        DisagreementError: a stage does not; the message names it.
    """
    matched = most = 0
    lines: list[str] = []
    for one, other in zip(theirs, ours, strict=True):
        lines.append(same_network(one, other))
        same_selection(one)
        for found, own in zip(one.found, other.found, strict=True):
            matched += len(pairs(found, own, BOXES, SCORES))
            most += max(len(found[0]), len(own[0]))
    if not most:
        raise DisagreementError("nothing was detected")
    rest = "" if matched == most else "; by the peer's own logits, ours selects the same boxes as the peer"
    return f"{matched} of {most} detections matched{rest}; {max(lines, key=len)}"


def same_network(theirs: Seen, ours: Seen) -> str:
    """See that maps, logits and deltas are the same, those of the head for proposals that both have."""
    parts: dict[str, tuple[Tensor, Tensor]] = {}
    for k in theirs.maps:
        parts[f"P{k}"] = (theirs.maps[k], ours.maps[k])
    for k in theirs.objectness:
        parts[f"the RPN's logits on P{k}"] = (theirs.objectness[k], ours.objectness[k])
        parts[f"the RPN's deltas on P{k}"] = (theirs.deltas[k], ours.deltas[k])
    rows = common_rows(theirs.proposals, ours.proposals)
    if 10 * len(rows[0]) < 9 * len(theirs.scores):
        raise DisagreementError(f"of {len(theirs.scores)} proposals only {len(rows[0])} are the same")
    parts["the head's logits"] = (theirs.scores[rows[0]], ours.scores[rows[1]])
    parts["the head's deltas"] = (theirs.box_deltas[rows[0]], ours.box_deltas[rows[1]])
    far = {name: float((a - b).abs().max() / a.std()) for name, (a, b) in parts.items()}
    return equally_far("maps, logits and deltas (in units of their spread)", far, NETWORK)


def common_rows(theirs: list[Tensor], ours: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Where the same proposals are among those of all images."""
    rows: tuple[list[int], list[int]] = ([], [])
    first = [0, 0]
    for sets in zip(theirs, ours, strict=True):
        one, other = ([boxes, boxes[:, 0] * 0, boxes[:, 0] * 0] for boxes in sets)
        found = pairs(one, other, BOXES, SCORES)
        for side, start in enumerate(first):
            rows[side].extend(start + pair[side] for pair in found)
        first = [start + len(boxes) for start, boxes in zip(first, sets, strict=True)]
    return torch.tensor(rows[0]), torch.tensor(rows[1])


def same_selection(theirs: Seen) -> None:
    """See that of the peer's logits and deltas our selection leaves the peer's proposals and detections."""
    sizes = torch.tensor(theirs.sizes)
    output = RPNOutput(theirs.anchors, theirs.objectness, theirs.deltas)
    proposals = select_proposals(output, sizes, (1.0,) * 4, ProposalSelection())
    for boxes, own in zip(theirs.proposals, proposals.split(), strict=True):
        one, other = ([part, part[:, 0] * 0, part[:, 0] * 0] for part in (boxes, own.boxes))
        same_boxes("proposals", one, other)
    places = ranked(theirs.proposals)
    scores, deltas = (
        part.new_zeros((*places.there.shape, *part.shape[1:])).index_put((places.there,), part)
        for part in (theirs.scores, theirs.box_deltas)
    )
    found = select_detections(scores, deltas, places, sizes, (10.0, 10.0, 5.0, 5.0), DetectionSelection())
    for given, detections in zip(theirs.selected, found.split(), strict=True):
        same_boxes("detections", given, list(detections))


def same_boxes(what: str, theirs: list[Tensor], ours: list[Tensor]) -> None:
    """See that boxes, scores and labels of the same numbers are the same."""
    matched, both = len(pairs(theirs, ours, *EXACT)), (len(theirs[0]), len(ours[0]))
    if {matched} != {*both}:
        raise DisagreementError(
            f"of the same logits and deltas {matched} of {both[0]} and {both[1]} {what} are the same"
        )


def pairs(theirs: list[Tensor], ours: list[Tensor], pixels: float, score: float) -> list[tuple[int, int]]:
    """Which of two sets of boxes, scores and labels are the same, each in one pair at most."""
    distance = (theirs[0][:, None] - ours[0]).abs().amax(dim=-1)
    same = (theirs[2][:, None] == ours[2]) & ((theirs[1][:, None] - ours[1]).abs() <= score)
    distance = torch.where(same & (distance <= pixels), distance, torch.inf)
    found = []
    for i in range(len(distance)):
        if distance.shape[1] and distance[i].isfinite().any():
            j = int(distance[i].argmin())
            found.append((i, j))
            distance[:, j] = torch.inf  # which is matched now
    return found
