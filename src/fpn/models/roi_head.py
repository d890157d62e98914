"""The Fast R-CNN detector on a pyramid: RoI pooling over levels, two hidden layers, predictor (Sec. 4.2).

Symbols: R RoIs of the whole batch, K object classes, d channels of the pyramid.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.ops import roi_align, roi_pool

from fpn.errors import InputError
from fpn.models.necks import Neck
from fpn.ops.levels import assign_levels
from fpn.types import Features, RoIs


class TwoFCHead(nn.Module):
    """Two fully connected layers with ReLU, class scores and class-specific deltas.

    Args:
        channels: d.
        resolution: side of the pooled RoIs, in cells.
        classes: K; the predictor gives K + 1 scores, the background's first.
        hidden: width of the two layers.
    """

    def __init__(self, channels: int, resolution: int, classes: int, hidden: int = 1024) -> None:
        super().__init__()
        self.fc6 = nn.Linear(channels * resolution**2, hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.scores = nn.Linear(hidden, classes + 1)
        self.deltas = nn.Linear(hidden, 4 * (classes + 1))
        # The FPN paper is silent; these are Fast R-CNN's (its Sec. 2.3).
        nn.init.normal_(self.scores.weight, std=0.01)
        nn.init.normal_(self.deltas.weight, std=0.001)
        nn.init.zeros_(self.scores.bias)
        nn.init.zeros_(self.deltas.bias)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """From (R, d, resolution, resolution) to logits (R, K + 1) and deltas (R, K + 1, 4)."""
        x = torch.relu(self.fc6(x.flatten(1)))
        x = torch.relu(self.fc7(x))
        return self.scores(x), self.deltas(x).unflatten(1, (-1, 4))


class RoIHead(nn.Module):
    """Each RoI, pooled from the level that Eq. 1 gives it, to class scores and deltas.

    Args:
        neck: the neck whose maps it reads.
        classes: K.
        head: what turns pooled RoIs into scores and deltas.
        levels: the P levels it reads; null for all the neck gives.
        shared: one head for all levels; false builds one for each.
        resolution: side of the pooled RoIs, in cells.
        pooling: align (RoIAlign) or pool (Fast R-CNN's RoI max pooling).
        sampling_ratio: samples along a side of a cell of RoIAlign; 0 takes as many as the cell has pixels.
        aligned: shift RoIAlign by half a pixel, as Detectron2 does.
        canonical_size: pixels; an RoI of this size is read from the canonical level (Eq. 1).
        canonical_level: k0 of Eq. 1.
        box_weights: factors of the deltas dx, dy, dw, dh.

    Raises:
        InputError: levels the neck does not give, or with a gap.
    """

    def __init__(
        self,
        neck: Neck,
        classes: int,
        head: Callable[[int, int, int], nn.Module] = TwoFCHead,
        levels: Sequence[int] | None = None,
        shared: bool = True,
        resolution: int = 7,
        pooling: Literal["align", "pool"] = "align",
        sampling_ratio: int = 2,
        aligned: bool = False,
        canonical_size: float = 224.0,
        canonical_level: int = 4,
        box_weights: Sequence[float] = (10.0, 10.0, 5.0, 5.0),
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
        self.canonical_size, self.canonical_level = canonical_size, canonical_level
        # `head` holds one module under the key "shared", or one for each level under its number.
        keys = ["shared"] if shared else [str(k) for k in self.levels]
        self.head = nn.ModuleDict({key: head(neck.channels, resolution, classes) for key in keys})

    def forward(self, p: Features, rois: RoIs) -> tuple[Tensor, Tensor]:
        """Logits (R, K + 1) and deltas (R, K + 1, 4), float32, in the order of the RoIs.

        A level without RoIs still runs its part, on none, so that its parameters have gradients (of zero).
        """
        level = assign_levels(
            rois.boxes, self.levels[0], self.levels[-1], self.canonical_size, self.canonical_level
        )
        indices = {k: torch.where(level == k)[0] for k in self.levels}
        pooled = {k: self._pool(p[k], k, rois.boxes[i], rois.image[i]) for k, i in indices.items()}
        back = torch.cat(list(indices.values())).argsort()
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
