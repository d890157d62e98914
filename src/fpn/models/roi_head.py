"""The Fast R-CNN detector on a pyramid: RoI pooling over levels, a head, a predictor (Sec. 4.2).

Symbols: R RoIs of the whole batch, K object classes, d channels of the pyramid.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import roi_pool

from fpn.errors import InputError
from fpn.models.bottom_up import Stages
from fpn.models.necks import Neck
from fpn.ops.levels import assign_levels
from fpn.ops.roi_align import roi_align
from fpn.settings import BoxWeights, NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from fpn.types import Features, RoIs

_OUTSIDE = -1e6
"""Pixels: where a map has nothing to pool."""


class HeadInput(NamedTuple):
    """What a head is built for."""

    channels: int
    """d."""
    resolution: int
    """Side of the pooled RoIs, in cells."""
    classes: int
    """K; a head gives K + 1 scores, the background's first."""
    above: Stages
    """The bottom-up's stages above those that the neck reads, with its weights: this head's own to use."""


class TwoFCHead(nn.Module):
    """Two fully connected layers with ReLU, class scores and class-specific deltas.

    Args:
        input: what it is built for.
        hidden: width of the two layers.
    """

    def __init__(self, input: HeadInput, hidden: PositiveInt = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(input.channels * input.resolution**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.scores, self.deltas = _predictor(hidden, input.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, d, resolution, resolution) to logits (R, K + 1) and deltas (R, K + 1, 4)."""
        x = torch.relu(self.fc6(x.flatten(1)))
        x = torch.relu(self.fc7(x))
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))


class Conv5Head(nn.Module):
    """The conv5 stage on each pooled RoI, averaged, class scores and class-specific deltas.

    The head of the baselines on C4, whose RoIs are pooled to 14×14 cells: Table 2 (a), Table 3 (*) and (a);
    He et al., 2016. The stage is the bottom-up's own, with its weights.

    Args:
        input: what it is built for.

    Raises:
        InputError: the bottom-up has no stage above C4 to spare, or the neck reads it.
    """

    def __init__(self, input: HeadInput) -> None:
        super().__init__()
        if len(input.above) != 1:
            raise InputError(
                "Conv5Head takes the place of conv5 alone: the neck must end at C4 "
                "(as SingleLevel with level 4) and bottom_up.stages be 4"
            )
        self.conv5 = input.above
        self.scores, self.deltas = _predictor(input.above.channels, input.classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, d, resolution, resolution) to logits (R, K + 1) and deltas (R, K + 1, 4)."""
        if len(x):
            x = self.conv5(x).mean(dim=(2, 3))
        else:  # which BatchNorm could not average
            nothing = x.sum() + 0 * sum(p.sum() for p in self.conv5.parameters())
            x = nothing.expand(0, self.conv5.channels)
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))


def _predictor(channels: int, classes: int) -> tuple[nn.Linear, nn.Linear]:
    scores, deltas = nn.Linear(channels, classes + 1), nn.Linear(channels, 4 * (classes + 1))
    # The FPN paper is silent; these are Fast R-CNN's (its Sec. 2.3).
    nn.init.normal_(scores.weight, std=0.01)
    nn.init.normal_(deltas.weight, std=0.001)
    nn.init.zeros_(scores.bias)
    nn.init.zeros_(deltas.bias)
    return scores, deltas


class RoIHead(nn.Module):
    """Each RoI, pooled from the level that Eq. 1 gives it, to class scores and deltas.

    Args:
        neck: the neck whose maps it reads.
        classes: K.
        above: the bottom-up's stages above those that the neck reads, for a head that has use for them.
        head: what turns pooled RoIs into scores and deltas.
        levels: the P levels it reads; null for all the neck gives.
        shared: one head for all levels; false builds one for each.
        resolution: side of the pooled RoIs, in cells.
        pooling: align (RoIAlign) or pool (Fast R-CNN's RoI max pooling).
        sampling_ratio: samples along a side of a cell of RoIAlign; 0 takes as many as the cell has pixels.
        aligned: shift RoIAlign by half a pixel, as Detectron2 does.
        canonical_size: pixels; an RoI of this size is read from the canonical level (Eq. 1).
        canonical_level: k0 of Eq. 1.
        epsilon: added to Eq. 1 before it is rounded down, as torchvision does; 0 as in Detectron2.
        box_weights: factors of the deltas dx, dy, dw, dh.

    Raises:
        InputError: levels the neck does not give, or with a gap.
    """

    def __init__(
        self,
        neck: Neck,
        classes: int,
        above: Stages | None = None,
        head: Callable[[HeadInput], nn.Module] = TwoFCHead,
        levels: Sequence[int] | None = None,
        shared: bool = True,
        resolution: PositiveInt = 7,
        pooling: Literal["align", "pool"] = "align",
        sampling_ratio: NonNegativeInt = 2,
        aligned: bool = False,
        canonical_size: PositiveFloat = 224.0,
        canonical_level: int = 4,
        epsilon: NonNegativeFloat = 1e-6,
        box_weights: BoxWeights = (
            10.0,
            10.0,
            5.0,
            5.0,
        ),
    ) -> None:
        super().__init__()
        self.levels = tuple(sorted(levels or neck.levels))
        if not set(self.levels) <= set(neck.levels):
            raise InputError(
                f"roi_head.levels {list(self.levels)} are not all among the neck's {list(neck.levels)}"
            )
        if list(self.levels) != list(range(self.levels[0], self.levels[-1] + 1)):
            raise InputError(
                f"roi_head.levels {list(self.levels)} leave out a level between the first and the last"
            )
        self.box_weights = tuple(box_weights)
        self.shared, self.resolution, self.pooling = shared, resolution, pooling
        self.sampling_ratio, self.aligned = sampling_ratio, aligned
        self.canonical_size, self.canonical_level, self.epsilon = canonical_size, canonical_level, epsilon
        self.toggles = {"shared": shared}
        # `head` holds one module under the key "shared", or one for each level under its number.
        keys = ["shared"] if shared else [str(k) for k in self.levels]
        above = Stages(channels=0) if above is None else above
        # Heads that are not shared have stages of their own.
        stages = [above, *(copy.deepcopy(above) for _ in keys[1:])]
        inputs = [HeadInput(neck.channels, resolution, classes, own) for own in stages]
        self.head = nn.ModuleDict({key: head(input) for key, input in zip(keys, inputs, strict=True)})

    def forward(self, p: Features, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K + 1, 4), float32, in the order of the RoIs.

        A level without RoIs still runs its part, on none, so that its parameters have gradients (of zero).
        An RoI of negative area, inverted in one direction, is pooled as zeros (torchvision, Detectron2).
        """
        x1, y1, x2, y2 = rois.boxes.unbind(1)
        boxes = torch.where(((x2 - x1) * (y2 - y1) >= 0)[:, None], rois.boxes, _OUTSIDE)
        level = assign_levels(
            boxes,
            self.levels[0],
            self.levels[-1],
            self.canonical_size,
            self.canonical_level,
            self.epsilon,
        )
        order = level.argsort(stable=True)
        counts = (level - self.levels[0]).bincount(minlength=len(self.levels)).tolist()
        indices = dict(zip(self.levels, order.split(counts), strict=True))
        pooled = {k: self._pool(p[k], k, boxes[i], rois.image[i]) for k, i in indices.items()}
        back = order.argsort()
        if self.shared:
            scores, deltas = self.head["shared"](torch.cat(list(pooled.values()))[back])
            return scores.float(), deltas.float()
        parts = [self.head[str(k)](x) for k, x in pooled.items()]
        scores, deltas = (torch.cat(part)[back].float() for part in zip(*parts, strict=True))
        return scores, deltas

    def _pool(self, p: Tensor, level: int, boxes: Tensor, image: Tensor) -> Tensor:
        # In float32 whatever the network's precision: coordinates of large images do not fit in 16 bits.
        rois = torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
        scale = 2.0**-level
        if self.pooling == "pool":
            return roi_pool(p.float(), rois, self.resolution, scale)
        return roi_align(p.float(), rois, self.resolution, scale, self.sampling_ratio, self.aligned)
