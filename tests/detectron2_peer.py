"""Detectron2's Faster R-CNN on FPN as the independent truth, written from its documented behaviour.

It works on weights under Detectron2's names and on images as decoded. Layers are PyTorch's; whatever is done
with their output is spelled out one number at a time. Classes count from 0 here, the background coming last.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

State = Mapping[str, Tensor]
Box = tuple[float, float, float, float]

BODY = "backbone.bottom_up."
DEPTHS = {50: (3, 4, 6, 3), 101: (3, 4, 23, 3)}
MEAN = (103.53, 116.28, 123.675)
"""Of blue, green and red."""
RPN_WEIGHTS, BOX_WEIGHTS = (1.0, 1.0, 1.0, 1.0), (10.0, 10.0, 5.0, 5.0)


class Limits(NamedTuple):
    """What a test makes smaller."""

    short: int = 800
    longest: int = 1333
    per_level: int = 1000
    per_image: int = 1000


class Scored(NamedTuple):
    score: float
    box: Box
    class_: int = 0


class Result(NamedTuple):
    proposals: list[Scored]
    """In pixels of the resized image, scored by their logits."""
    objects: list[Scored] | None
    """In pixels of the image as given; None where the weights end at the RPN."""


def resnet_weights(depth: int = 50, width: int = 64) -> dict[str, Tensor]:
    """A ResNet's, random, for blue, green and red values that vary by some 57."""
    generator = torch.Generator().manual_seed(7)
    state = {}

    def add(name: str, inputs: int, outputs: int, kernel: int, scale: float = 1.0) -> None:
        # Variances near the epsilon of the BatchNorm, so that it counts.
        std = scale * 0.03 * math.sqrt(2 / (outputs * kernel**2))
        shape = (outputs, inputs, kernel, kernel)
        state[f"{name}.weight"] = torch.empty(shape).normal_(0, std, generator=generator)
        norm = {part: torch.empty(outputs) for part in ("weight", "bias", "running_mean", "running_var")}
        norm["weight"].uniform_(0.3, 0.6, generator=generator)
        norm["bias"].normal_(0, 0.1, generator=generator)
        norm["running_mean"].normal_(0, 0.003, generator=generator)
        norm["running_var"].uniform_(0.0005, 0.002, generator=generator)
        state.update({f"{name}.norm.{part}": value for part, value in norm.items()})

    add("stem.conv1", 3, width, 7, 1 / 57)
    inputs = width
    for stage, blocks in enumerate(DEPTHS[depth], 2):
        middle = width * 2 ** (stage - 2)
        for block in range(blocks):
            name = f"res{stage}.{block}"
            if block == 0:
                add(f"{name}.shortcut", inputs, 4 * middle, 1)
            add(f"{name}.conv1", inputs, middle, 1)
            add(f"{name}.conv2", middle, middle, 3)
            add(f"{name}.conv3", middle, 4 * middle, 1)
            inputs = 4 * middle
    return state


def detector_weights(depth: int = 50, classes: int = 5) -> dict[str, Tensor]:
    """A detector's, random, but made to find much."""
    generator = torch.Generator().manual_seed(11)
    state = {f"{BODY}{name}": value for name, value in resnet_weights(depth).items()}

    def add(name: str, std: float, *shape: int) -> None:
        state[f"{name}.weight"] = torch.empty(shape).normal_(0, std, generator=generator)
        state[f"{name}.bias"] = torch.empty(shape[0]).uniform_(-0.1, 0.1, generator=generator)

    for level in range(2, 6):
        inputs = 64 * 2**level
        add(f"backbone.fpn_lateral{level}", inputs**-0.5, 256, inputs, 1, 1)
        add(f"backbone.fpn_output{level}", 256**-0.5 / 3, 256, 256, 3, 3)
    add("proposal_generator.rpn_head.conv", 0.01, 256, 256, 3, 3)
    add("proposal_generator.rpn_head.objectness_logits", 0.3, 3, 256, 1, 1)
    add("proposal_generator.rpn_head.anchor_deltas", 0.1, 12, 256, 1, 1)
    # Boxes that grow are pooled from P5 too.
    state["proposal_generator.rpn_head.anchor_deltas.bias"].view(3, 4)[:, 2:] += 0.5
    add("roi_heads.box_head.fc1", (3 * 256 * 49) ** -0.5, 1024, 256 * 49)
    add("roi_heads.box_head.fc2", (3 * 1024) ** -0.5, 1024, 1024)
    add("roi_heads.box_predictor.cls_score", 1.0, classes + 1, 1024)
    add("roi_heads.box_predictor.bbox_pred", 0.3, 4 * classes, 1024)
    return state


def without_roi_heads(state: State) -> dict[str, Tensor]:
    """The RPN's own model, as of Detectron2's rpn_R_50_FPN."""
    return {name: value for name, value in state.items() if not name.startswith("roi_heads.")}


def infer(state: State, image: Tensor, limits: Limits, canvas: tuple[int, int] | None = None) -> Result:
    """Proposals and objects of a uint8 RGB image (3, H, W), which may be padded further, to a canvas."""
    x, (height, width) = prepare(image, limits, canvas)
    body = {name.removeprefix(BODY): value for name, value in state.items() if name.startswith(BODY)}
    p = pyramid(state, bottom_up(body, x))
    proposals = propose(state, p, (height, width), limits)
    if not any(name.startswith("roi_heads.") for name in state):
        return Result(proposals, None)
    across, down = image.shape[2] / width, image.shape[1] / height
    objects = []
    for found in recognise(state, p, [proposal.box for proposal in proposals], (height, width)):
        x1, y1, x2, y2 = found.box
        objects.append(found._replace(box=(x1 * across, y1 * down, x2 * across, y2 * down)))
    return Result(proposals, objects)


def resized(height: int, width: int, short: int, longest: int) -> tuple[int, int]:
    """The sides of a resized image."""
    scale = short / min(height, width)
    if height < width:
        h, w = float(short), scale * width
    else:
        h, w = scale * height, float(short)
    if max(h, w) > longest:
        scale = longest / max(h, w)
        h, w = h * scale, w * scale
    return int(h + 0.5), int(w + 0.5)


def resize(image: Tensor, size: tuple[int, int]) -> Tensor:
    """A uint8 image (3, H, W) in another size, as PIL makes it."""
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    picture = picture.resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)


def prepare(
    image: Tensor, limits: Limits, canvas: tuple[int, int] | None = None
) -> tuple[Tensor, tuple[int, int]]:
    """What the network sees (1, 3, ·, ·), and the size of the resized image in it."""
    size = resized(image.shape[1], image.shape[2], limits.short, limits.longest)
    x = resize(image, size).float().flip(0) - torch.tensor(MEAN)[:, None, None]
    height, width = canvas or (math.ceil(size[0] / 32) * 32, math.ceil(size[1] / 32) * 32)
    return F.pad(x, (0, width - size[1], 0, height - size[0]))[None], size


def bottom_up(state: State, x: Tensor) -> dict[int, Tensor]:
    """C2…C5 of a ResNet of bottlenecks, from images of blue, green and red."""

    def convolve(x: Tensor, name: str, stride: int = 1) -> Tensor:
        weight = state[f"{name}.weight"]
        norm = [state[f"{name}.norm.{p}"] for p in ("running_mean", "running_var", "weight", "bias")]
        return F.batch_norm(F.conv2d(x, weight, None, stride, weight.shape[-1] // 2), *norm, eps=1e-5)

    x = F.max_pool2d(F.relu(convolve(x, "stem.conv1", 2)), 3, 2, 1)
    maps = {}
    for stage in range(2, 6):
        block = 0
        while f"res{stage}.{block}.conv1.weight" in state:
            name = f"res{stage}.{block}"
            stride = 2 if block == 0 and stage > 2 else 1
            shortcut = convolve(x, f"{name}.shortcut", stride) if block == 0 else x
            y = F.relu(convolve(x, f"{name}.conv1", stride))
            y = F.relu(convolve(y, f"{name}.conv2"))
            x = F.relu(convolve(y, f"{name}.conv3") + shortcut)
            block += 1
        maps[stage] = x
    return maps


def pyramid(state: State, c: Mapping[int, Tensor]) -> dict[int, Tensor]:
    """P2…P6."""
    p: dict[int, Tensor] = {}
    above = None
    for level in (5, 4, 3, 2):
        lateral, output = f"backbone.fpn_lateral{level}", f"backbone.fpn_output{level}"
        x = F.conv2d(c[level], state[f"{lateral}.weight"], state[f"{lateral}.bias"])
        if above is not None:
            x = x + F.interpolate(above, scale_factor=2.0, mode="nearest")
        above = x
        p[level] = F.conv2d(x, state[f"{output}.weight"], state[f"{output}.bias"], padding=1)
    p[6] = F.max_pool2d(p[5], 1, 2)
    return p


def cell_anchors(sizes: Sequence[float], ratios: Sequence[float]) -> list[Box]:
    """The anchors of one position, the ratio running fastest."""
    anchors = []
    for size in sizes:
        for ratio in ratios:
            w = math.sqrt(size**2 / ratio)
            h = ratio * w
            anchors.append((-w / 2, -h / 2, w / 2, h / 2))
    return anchors


def decode(deltas: Sequence[float], box: Box, weights: Sequence[float]) -> Box:
    """The box that deltas make of another."""
    dx, dy, dw, dh = (delta / weight for delta, weight in zip(deltas, weights, strict=True))
    dw, dh = min(dw, math.log(1000 / 16)), min(dh, math.log(1000 / 16))
    w, h = box[2] - box[0], box[3] - box[1]
    x, y = box[0] + w / 2 + dx * w, box[1] + h / 2 + dy * h
    w, h = w * math.exp(dw), h * math.exp(dh)
    return x - w / 2, y - h / 2, x + w / 2, y + h / 2


def clip(box: Box, size: tuple[int, int]) -> Box:
    """The box within an image of (height, width)."""
    x1, y1, x2, y2 = box
    return (
        min(max(x1, 0.0), size[1]),
        min(max(y1, 0.0), size[0]),
        min(max(x2, 0.0), size[1]),
        min(max(y2, 0.0), size[0]),
    )


def overlap(a: Box, b: Box) -> float:
    """Intersection over union."""
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    if w <= 0 or h <= 0:
        return 0.0
    return w * h / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - w * h)


def suppress(found: Sequence[Scored], threshold: float) -> list[Scored]:
    """Greedy non-maximum suppression, best first."""
    kept: list[Scored] = []
    for one in sorted(found, key=lambda one: -one.score):
        if all(overlap(one.box, other.box) <= threshold for other in kept):
            kept.append(one)
    return kept


def propose(state: State, p: Mapping[int, Tensor], size: tuple[int, int], limits: Limits) -> list[Scored]:
    """The RPN's proposals for an image of (height, width), best first."""
    names = ("conv", "objectness_logits", "anchor_deltas")
    conv, objectness, deltas = (
        [state[f"proposal_generator.rpn_head.{name}.{part}"] for part in ("weight", "bias")] for name in names
    )
    proposals: list[Scored] = []
    for level, values in p.items():
        hidden = F.relu(F.conv2d(values, *conv, padding=1))
        logits, moves = (F.conv2d(hidden, *layer)[0].tolist() for layer in (objectness, deltas))
        cell = cell_anchors([2.0 ** (level + 3)], (0.5, 1.0, 2.0))
        _, _, height, width = values.shape
        places = [
            (logits[a][y][x], a, y, x) for a in range(len(cell)) for y in range(height) for x in range(width)
        ]
        found = []
        for logit, a, y, x in sorted(places, reverse=True)[: limits.per_level]:
            left, top = x * 2**level, y * 2**level
            x1, y1, x2, y2 = cell[a]
            anchor = (left + x1, top + y1, left + x2, top + y2)
            move = [moves[4 * a + coordinate][y][x] for coordinate in range(4)]
            box = clip(decode(move, anchor, RPN_WEIGHTS), size)
            if box[2] > box[0] and box[3] > box[1]:
                found.append(Scored(logit, box))
        proposals += suppress(found, 0.7)
    return sorted(proposals, key=lambda one: -one.score)[: limits.per_image]


def level_of(box: Box) -> int:
    """The level a box is pooled from."""
    side = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    return min(max(math.floor(4 + math.log2(side / 224 + 1e-8)), 2), 5)


def sample(values: NDArray[np.float32], y: float, x: float) -> NDArray[np.float32]:
    """All channels of a map (h, w, channels) between its positions, or 0 beyond its border."""
    h, w, channels = values.shape
    if not (-1 <= y <= h and -1 <= x <= w):
        return np.zeros(channels, np.float32)
    y, x = min(max(y, 0.0), h - 1.0), min(max(x, 0.0), w - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
    upper = values[top, left] * (left + 1 - x) + values[top, right] * (x - left)
    lower = values[bottom, left] * (left + 1 - x) + values[bottom, right] * (x - left)
    return np.asarray(upper * (top + 1 - y) + lower * (y - top), np.float32)


def roi_align(
    values: NDArray[np.float32], box: Box, scale: float, resolution: int, aligned: bool = True
) -> NDArray[np.float32]:
    """A map (h, w, channels) pooled over a box, (resolution, resolution, channels)."""
    x1, y1, x2, y2 = (side * scale - (0.5 if aligned else 0.0) for side in box)
    w, h = (x2 - x1, y2 - y1) if aligned else (max(x2 - x1, 1.0), max(y2 - y1, 1.0))
    w, h = w / resolution, h / resolution
    across, down = math.ceil(w), math.ceil(h)
    pooled = np.zeros((resolution, resolution, values.shape[2]), np.float32)
    for row in range(resolution):
        for column in range(resolution):
            for i in range(down):
                for j in range(across):
                    y, x = y1 + (row + (i + 0.5) / down) * h, x1 + (column + (j + 0.5) / across) * w
                    pooled[row, column] += sample(values, y, x) / (down * across)
    return pooled


def recognise(
    state: State, p: Mapping[int, Tensor], boxes: Sequence[Box], size: tuple[int, int]
) -> list[Scored]:
    """Objects in proposals, in pixels of the resized image of (height, width), best first."""
    layers = {
        name: [state[f"roi_heads.{name}.{part}"] for part in ("weight", "bias")]
        for name in ("box_head.fc1", "box_head.fc2", "box_predictor.cls_score", "box_predictor.bbox_pred")
    }
    maps = {level: p[level][0].permute(1, 2, 0).contiguous().numpy() for level in range(2, 6)}
    pooled = [roi_align(maps[level_of(box)], box, 2.0 ** -level_of(box), 7) for box in boxes]
    x = torch.from_numpy(np.stack(pooled)).permute(0, 3, 1, 2).flatten(1)
    for name in ("box_head.fc1", "box_head.fc2"):
        x = F.relu(F.linear(x, *layers[name]))
    scores = F.linear(x, *layers["box_predictor.cls_score"]).softmax(1).tolist()
    deltas = F.linear(x, *layers["box_predictor.bbox_pred"]).tolist()
    objects: list[Scored] = []
    for class_ in range(len(scores[0]) - 1):
        found = []
        for box, score, delta in zip(boxes, scores, deltas, strict=True):
            if score[class_] > 0.05:
                moved = decode(delta[4 * class_ : 4 * class_ + 4], box, BOX_WEIGHTS)
                found.append(Scored(score[class_], clip(moved, size), class_))
        objects += suppress(found, 0.5)
    best = sorted(objects, key=lambda one: -one.score)[:100]
    # Only the output drops what has no area.
    return [one for one in best if one.box[2] > one.box[0] and one.box[3] > one.box[1]]
