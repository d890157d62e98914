"""The Fast R-CNN detector on a pyramid: RoI pooling over levels, a head, a predictor (Sec. 4.2).

Symbols: R RoIs of the whole batch, K object classes, B boxes of an RoI (K + 1, or 1 for all classes),
d channels of the pyramid.
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
from fpn.models.norms import Norm, absorb_norms, fold_norms, norm_layer
from fpn.ops.counting import counts, places
from fpn.ops.levels import assign_levels
from fpn.ops.roi_align import pool_levels
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
    class_agnostic: bool = False
    """Whether an RoI has one box, whatever its class, in place of one for each."""

    @property
    def boxes(self) -> int:
        """How many boxes a head gives of each RoI: 1, or K + 1, the background's first."""
        return 1 if self.class_agnostic else self.classes + 1


class TwoFCHead(nn.Module):
    """Two fully connected layers with ReLU, class scores and deltas.

    Args:
        input: what it is built for.
        hidden: width of the two layers.
    """

    def __init__(self, input: HeadInput, hidden: PositiveInt = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(input.channels * input.resolution**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.scores, self.deltas = _predictor(hidden, input)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, d, resolution, resolution) to logits (R, K + 1) and deltas (R, B, 4)."""
        x = torch.relu(self.fc6(x.flatten(1)))
        x = torch.relu(self.fc7(x))
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))


class Conv5Head(nn.Module):
    """The conv5 stage on each pooled RoI, averaged, class scores and deltas.

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
        self.scores, self.deltas = _predictor(input.above.channels, input)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, d, resolution, resolution) to logits (R, K + 1) and deltas (R, B, 4)."""
        some = len(x) or _waited_for(self.conv5)
        x = self.conv5(x).mean(dim=(2, 3)) if some else _of_none(x, self.conv5, self.conv5.channels)
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))


class FourConvOneFC(nn.Module):
    """Four 3×3 convolutions and a fully connected layer, with ReLU, class scores and deltas.

    The head "4conv1fc" of Wu and He, Group Normalization, 2018, Sec. 4.2. Where no norm is given, the
    convolutions have a bias.

    Args:
        input: what it is built for.
        norm: frozen (BatchNorm as a fixed scale and shift), batch or group, after each convolution.
        channels: of the convolutions; null for as many as the pyramid has.
        hidden: width of the fully connected layer.
    """

    def __init__(
        self,
        input: HeadInput,
        norm: Norm | None = None,
        channels: PositiveInt | None = None,
        hidden: PositiveInt = 1024,
    ) -> None:
        super().__init__()
        channels = channels or input.channels
        self.convs = nn.Sequential()
        for i in range(4):
            conv = nn.Conv2d(channels if i else input.channels, channels, 3, padding=1, bias=norm is None)
            nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
            if conv.bias is not None:
                nn.init.zeros_(conv.bias)
            normed = [] if norm is None else [norm_layer(norm)(channels)]
            self.convs.append(nn.Sequential(conv, *normed, nn.ReLU(inplace=True)))
        self.fc = nn.Linear(channels * input.resolution**2, hidden)
        self.scores, self.deltas = _predictor(hidden, input)
        absorb_norms(self)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, d, resolution, resolution) to logits (R, K + 1) and deltas (R, B, 4)."""
        some = len(x) or _waited_for(self.convs)
        x = self.convs(x).flatten(1) if some else _of_none(x, self.convs, self.fc.in_features)
        x = torch.relu(self.fc(x))
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))

    fold_norms = fold_norms


def _waited_for(layers: nn.Module) -> bool:
    """Whether other processes wait for these layers to run, also on nothing."""
    return layers.training and any(isinstance(layer, nn.SyncBatchNorm) for layer in layers.modules())


def _of_none(x: Tensor, layers: nn.Module, channels: int) -> Tensor:
    """What layers with a BatchNorm, which could not average, make of no RoIs; all have gradients of zero."""
    nothing: Tensor = x.sum() + 0 * sum(p.sum() for p in layers.parameters())
    return nothing.expand(0, channels)


def _predictor(channels: int, input: HeadInput) -> tuple[nn.Linear, nn.Linear]:
    scores, deltas = nn.Linear(channels, input.classes + 1), nn.Linear(channels, 4 * input.boxes)
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
        class_agnostic: an RoI has one box, whatever its class; false gives it one for each class.
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
        class_agnostic: bool = False,
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
        self.shared, self.class_agnostic = shared, class_agnostic
        self.resolution, self.pooling = resolution, pooling
        self.sampling_ratio, self.aligned = sampling_ratio, aligned
        self.canonical_size, self.canonical_level, self.epsilon = canonical_size, canonical_level, epsilon
        self.toggles = {"shared": shared}
        # `head` holds one module under the key "shared", or one for each level under its number.
        keys = ["shared"] if shared else [str(k) for k in self.levels]
        above = Stages(channels=0) if above is None else above
        # Heads that are not shared have stages of their own.
        stages = [above, *(copy.deepcopy(above) for _ in keys[1:])]
        inputs = [HeadInput(neck.channels, resolution, classes, own, class_agnostic) for own in stages]
        self._wanted = ((classes + 1,), (inputs[0].boxes, 4))
        self.head = nn.ModuleDict({key: head(input) for key, input in zip(keys, inputs, strict=True)})

    def forward(self, p: Features, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, B, 4), float32, in the order of the RoIs.

        A level without RoIs still runs its part, on none, so that its parameters have gradients (of zero).
        An RoI of negative area, inverted in one direction, is pooled as zeros (torchvision, Detectron2).

        Raises:
            InputError: the head gives other numbers of scores or boxes than `HeadInput` asks for.
        """
        level = self.level_of(rois.boxes) if rois.level is None else rois.level
        boxes = torch.where(_upright(rois.boxes)[:, None], rois.boxes, _OUTSIDE)
        if torch.compiler.is_exporting():
            return self._for_export(p, rois.image, boxes, level)
        by_level = rois.by_level or counts(*self.masks(level))
        order = level.argsort(stable=True)
        pooled = self._pool(p, _table(rois.image, boxes)[order], by_level, self.levels)
        back = order.argsort()
        if self.shared:
            scores, deltas = (part.float() for part in self.head["shared"](pooled[back]))
        else:
            parts = zip(self.levels, pooled.split(list(by_level)), strict=True)
            outputs = [self.head[str(k)](x) for k, x in parts]
            scores, deltas = (torch.cat(part)[back].float() for part in zip(*outputs, strict=True))
        given = (scores.shape[1:], deltas.shape[1:])
        if given != self._wanted:
            kind = type(next(iter(self.head.values()))).__name__
            raise InputError(
                f"{kind} gives scores {[*given[0]]} and boxes {[*given[1]]} of an RoI, not "
                f"{[*self._wanted[0]]} and {[*self._wanted[1]]}: HeadInput.classes + 1, background first, "
                "and (HeadInput.boxes, 4)"
            )
        return scores, deltas

    def on_places(self, p: Features, boxes: Tensor, there: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, of RoIs in a fixed number of places an image; the host waits to learn how many.

        Args:
            p: the maps.
            boxes: (N, P, 4).
            there: (N, P) which of these places are taken.

        Returns:
            Logits (N, P, K + 1) and deltas (N, P, B, 4), zeros in places that are not taken.
        """
        n, number = there.shape
        boxes, there = boxes.flatten(0, 1), there.flatten()
        level = self.level_of(boxes)
        if torch.compiler.is_exporting():  # where nobody waits, and places that are not taken are zeros
            rows, by_level = torch.arange(n * number, device=boxes.device), None
        else:
            masks = self.masks(level.masked_fill(~there, -1))
            taken, *by_level = counts(there, *masks)
            rows = places(there, taken)
        outputs = self(p, RoIs(boxes[rows], rows // number, level[rows], by_level))
        scores, deltas = (
            one.new_zeros(n * number, *one.shape[1:]).index_copy(0, rows, one).unflatten(0, (n, number))
            for one in outputs
        )
        return scores, deltas

    def level_of(self, boxes: Tensor) -> Tensor:
        """(...) int64, the place among `levels` of the one that boxes (..., 4) are pooled from (Eq. 1)."""
        first, last = self.levels[0], self.levels[-1]
        k = assign_levels(boxes, first, last, self.canonical_size, self.canonical_level, self.epsilon)
        return k - first

    def masks(self, level: Tensor) -> list[Tensor]:
        """Which RoIs are of each level: their numbers are `RoIs.by_level`. A level of -1 is none."""
        return [level == i for i in range(len(self.levels))]

    def _for_export(self, p: Features, image: Tensor, boxes: Tensor, level: Tensor) -> tuple[Tensor, Tensor]:
        """As `forward`, for export, where how many RoIs a level has is a symbol: level after level."""
        own = self.masks(level)
        rois = _table(image, boxes)
        # Sums in place of sorting, and one gather in place of a copy of all RoIs for each level.
        parts, place, first = [], level.new_zeros(len(boxes)), level.new_zeros(())
        for k, mine in zip(self.levels, own, strict=True):
            (rows,) = mine.nonzero(as_tuple=True)
            parts.append(self._pool(p, rois[rows], [len(rows)], [k]))
            place = torch.where(mine, first + mine.cumsum(0) - 1, place)
            first = first + mine.sum()
        x = torch.cat(parts)[place]
        heads = [self.head["shared"]] if self.shared else [self.head[str(k)] for k in self.levels]
        scores, deltas = heads[0](x)
        for head, mine in zip(heads[1:], own[1 : len(heads)], strict=True):
            others = head(x)
            scores = others[0].where(mine[:, None], scores)
            deltas = others[1].where(mine[:, None, None], deltas)
        return scores.float(), deltas.float()

    def _pool(self, p: Features, rois: Tensor, by_level: Sequence[int], levels: Sequence[int]) -> Tensor:
        """RoIs (R, 5), level after level, pooled: (R, d, resolution, resolution)."""
        # In float32 whatever the network's precision: coordinates of large images do not fit in 16 bits.
        maps, scales = [p[k].float() for k in levels], [2.0**-k for k in levels]
        if self.pooling == "pool":
            parts = zip(maps, rois.split(list(by_level)), scales, strict=True)
            return torch.cat([roi_pool(x, some, self.resolution, scale) for x, some, scale in parts])
        return pool_levels(maps, rois, by_level, self.resolution, scales, self.sampling_ratio, self.aligned)


def _upright(boxes: Tensor) -> Tensor:
    """Which boxes (R, 4) are not of negative area, and of numbers."""
    return (boxes[:, 2:] - boxes[:, :2]).prod(dim=1) >= 0


def _table(image: Tensor, boxes: Tensor) -> Tensor:
    """(R, 5) RoIs as torchvision takes them."""
    return torch.cat((image[:, None].to(boxes.dtype), boxes), dim=1)
