"""The region proposal network on a pyramid: anchors, and a head that slides over every level (Sec. 4.1).

Symbols: N images, A_k anchors on level k, d channels of the pyramid.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fpn.errors import InputError
from fpn.models.necks import Neck
from fpn.ops.anchors import cell_anchors, grid_anchors
from fpn.settings import BoxWeights, PositiveFloat, PositiveInt
from fpn.types import Features, RPNOutput, Size

ANCHOR_SIZES: dict[int, list[float]] = {2: [32], 3: [64], 4: [128], 5: [256], 6: [512]}
"""Square roots of the anchors' areas in pixels: one per level of {P2…P6}."""


class RPNHead(nn.Module):
    """A 3×3 convolution with ReLU, then sibling 1×1 convolutions for objectness and deltas.

    Args:
        channels: d, of the input and of the 3×3.
        anchors: anchors at each position.
        convolutions: of 3×3, one after the other; the paper has one.
    """

    def __init__(self, channels: int, anchors: int, convolutions: int = 1) -> None:
        super().__init__()
        self.conv, *more = (nn.Conv2d(channels, channels, 3, padding=1) for _ in range(convolutions))
        self.more = nn.ModuleList(more)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.conv, *more, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, p: Tensor) -> tuple[Tensor, Tensor]:
        """From (N, d, h, w) to logits (N, A) and deltas (N, A, 4), ordered as the A = h · w · anchors."""
        n = len(p)
        x = F.relu(self.conv(p))
        for conv in self.more:
            x = F.relu(conv(x))
        objectness = self.objectness(x).permute(0, 2, 3, 1).reshape(n, -1)
        deltas = self.deltas(x).permute(0, 2, 3, 1).reshape(n, -1, 4)
        return objectness, deltas


class RegionProposalNetwork(nn.Module):
    """Anchors on every level, and what the head says of them.

    A level above the neck's coarsest is made by stride-2 subsampling: P6 from P5. Only the RPN sees it.

    Args:
        neck: the neck whose maps it reads.
        sizes: square roots of the anchors' areas in pixels, by level.
        ratios: heights over widths of the anchors.
        shared: one head for all levels; false builds one for each.
        rounded: anchors with whole-pixel corners (torchvision); false keeps exact shapes (Detectron2).
        grid: where anchors stand. "spread" divides the padded image evenly among a map's positions, which on
            a P6 of odd size is under 64 pixels (torchvision); "stride" is always 2**k pixels (Detectron2).
        box_weights: factors of the deltas dx, dy, dw, dh.
        size_factor: multiplies all sizes, for images of another size than they are meant for.
        convolutions: of 3×3 in the head, one after the other; the paper has one.

    Raises:
        InputError: levels the neck cannot give, or different numbers of anchors under a shared head.
    """

    def __init__(
        self,
        neck: Neck,
        sizes: Mapping[int, Sequence[PositiveFloat]] = ANCHOR_SIZES,
        ratios: Sequence[PositiveFloat] = (0.5, 1.0, 2.0),
        shared: bool = True,
        rounded: bool = True,
        grid: Literal["spread", "stride"] = "spread",
        box_weights: BoxWeights = (1.0, 1.0, 1.0, 1.0),
        size_factor: PositiveFloat = 1.0,
        convolutions: PositiveInt = 1,
    ) -> None:
        super().__init__()
        self.levels = tuple(sorted(int(k) for k in sizes))
        self.sizes = {k: tuple(size_factor * size for size in sizes[k]) for k in self.levels}
        self.ratios, self.box_weights = tuple(ratios), tuple(box_weights)
        self.top, self.shared, self.rounded, self.grid = max(neck.levels), shared, rounded, grid
        below_top = [k for k in self.levels if k <= self.top]
        if not below_top or not set(below_top) <= set(neck.levels):
            raise InputError(
                f"rpn.sizes are for levels {list(self.levels)}, but the neck gives {list(neck.levels)}"
            )
        cells = {k: cell_anchors(size, ratios, rounded) for k, size in self.sizes.items()}
        counts = {k: len(cell) for k, cell in cells.items()}
        if not all(counts.values()):
            raise InputError("rpn.sizes and rpn.ratios leave a level without anchors: give one each, or more")
        if shared and len(set(counts.values())) > 1:
            raise InputError(
                f"rpn.sizes give {counts} anchors by level: a shared head needs the same number on each"
            )
        for k, cell in cells.items():
            self.register_buffer(f"cell{k}", cell, persistent=False)
        self.toggles = {"shared": shared}
        # `head` holds one module under the key "shared", or one for each level under its number.
        keys = ["shared"] if shared else [str(k) for k in self.levels]
        self.head = nn.ModuleDict(
            {key: RPNHead(neck.channels, counts[self.levels[i]], convolutions) for i, key in enumerate(keys)}
        )

    def forward(self, p: Features, image_size: Size) -> RPNOutput:
        """Anchors, logits and deltas by level, from {k: P_k} of a batch padded to `image_size`."""
        maps = {k: p[k] for k in self.levels if k <= self.top}
        x = p[self.top]
        for k in range(self.top + 1, max(self.levels) + 1):
            x = F.max_pool2d(x, 1, stride=2)
            if k in self.levels:
                maps[k] = x
        output = RPNOutput({}, {}, {})
        for k, x in maps.items():
            output.anchors[k] = self.anchors(k, x.shape[-2:], image_size)
            objectness, deltas = self.head["shared" if self.shared else str(k)](x)
            output.objectness[k], output.deltas[k] = objectness.float(), deltas.float()
        return output

    def anchors(self, level: int, map_size: Sequence[int], image_size: Size) -> Tensor:
        """(A, 4) anchors of a level whose map is `map_size` in a batch of `image_size`."""
        h, w = map_size
        stride = (2**level, 2**level)
        if self.grid == "spread":
            stride = (_spread(level, image_size[0], h), _spread(level, image_size[1], w))
        return grid_anchors(self.get_buffer(f"cell{level}"), (h, w), stride)


def _spread(level: int, side: int, cells: int) -> int:
    """Pixels from a position to the next: as torchvision has it of the multiples of 32 that it pads to.

    Of other sides, a part of the last cell would count as a whole one, and move the anchors off their cells.
    """
    if torch.compiler.is_exporting() or side % 32 == 0 or cells != -(-side // 2**level):
        return side // cells
    return 2**level
