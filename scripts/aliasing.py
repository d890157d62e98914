"""The aliasing effect of upsampling, which the 3×3 on each merged map is said to reduce (Sec. 3).

A map is a signal, sampled once a cell. Where it is enlarged twofold by repeating its cells, a pattern of f
cycles a cell of the new map comes with an image of itself at 1/2 - f that is not in the coarse map: the edges
of the blocks. It is tan(πf) times as strong, as strong as the pattern itself at the finest the coarse map
holds, 1/4; and it moves with the blocks, not with the object, when the picture moves by less than a block.
What follows measures both: the images in the spectrum, and what changes when a picture moves.

Symbols: N images, d channels, h × w cells of a map; frequencies are cycles a cell, at most 1/2.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_iou

from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import FeaturePyramid, Neck, nearest
from fpn.types import Batch, Detections, Features, Size

Upsampling = Callable[[Tensor, Size], Tensor]
BINOMIAL = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)


def bilinear(x: Tensor, size: Size) -> Tensor:
    """A map enlarged to (height, width) by straight lines between the centres of its cells.

    Twofold, that is the map with its cells repeated, averaged with weights 1:2:1 along both sides.
    """
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def blurred(x: Tensor, size: Size) -> Tensor:
    """A map enlarged by repeating its cells, then averaged with weights 1:4:6:4:1 along both sides."""
    x = F.pad(nearest(x, size), (2, 2, 2, 2), mode="replicate")
    for side in (-2, -1):
        length = x.shape[side] - 4
        x = sum(weight * x.narrow(side, i, length) for i, weight in enumerate(BINOMIAL))  # type: ignore[assignment]
    return x


UPSAMPLINGS: dict[str, Upsampling] = {"nearest": nearest, "bilinear": bilinear, "blurred": blurred}


class Spectrum(NamedTuple):
    """Power over frequency: the greater of a pattern's frequencies along rows and along columns.

    What a map of half the resolution can hold is then what lies at 1/4 and below, in all directions.
    """

    frequency: Tensor
    """(B,) middles of the bands, cycles a cell, up to 1/2."""
    power: Tensor
    """(B,) mean power of a band's frequencies, the whole map's being 1 in the mean; NaN where it has none."""
    number: Tensor
    """(B,) frequencies of a band."""

    def above(self, frequency: float) -> float:
        """The share of the power, in [0, 1], of bands above a frequency; NaN of a map without any.

        The window lets a pattern of 1/4 exactly reach one frequency further: of noise in which nothing is
        above 1/4, it finds 0.5 % there in maps of 64 × 64 cells, 1.5 % of 20 × 20.
        """
        power = self.power * self.number
        return float(power[self.frequency > frequency].nansum() / power.nansum())


def spectrum(maps: Tensor, bands: int = 16) -> Spectrum:
    """Of (N, d, h, w) maps, each less its mean and faded out towards its border."""
    h, w = maps.shape[-2:]
    window = _fading(h)[:, None] * _fading(w)
    maps = maps.detach().double()
    weighted = (maps - (maps * window).sum((-2, -1), keepdim=True) / window.sum()) * window
    power = torch.fft.fft2(weighted).abs().square().mean(dim=(0, 1)).flatten()
    along = [torch.fft.fftfreq(side).abs() for side in (h, w)]
    frequency = torch.maximum(along[0][:, None], along[1]).flatten()
    # A band has its upper end, as 1/4 is of the patterns that half the resolution can hold.
    band = ((frequency * 2 * bands).ceil().long() - 1).clamp(min=0)
    number = torch.bincount(band, minlength=bands)
    total = torch.zeros(bands, dtype=torch.float64).index_add_(0, band, power)
    middles = (torch.arange(bands) + 0.5) / (2 * bands)
    return Spectrum(middles, total / number / power.mean(), number)


def _fading(length: int) -> Tensor:
    """Hann's window, without the zeros at its ends."""
    return torch.hann_window(length + 2, periodic=False, dtype=torch.float64)[1:-1]


def block_edges(maps: Tensor) -> float:
    """Steps between cells at the edges of 2 × 2 blocks over steps within, root mean square.

    1 for a map that knows nothing of blocks, infinite for one that has only been enlarged by repeating
    cells, 2 for noise enlarged bilinearly, 1.3 blurred. Any convolution after that moves the steps elsewhere,
    so that less than 1 tells of blocks as well.

    Args:
        maps: (N, d, h, w), whose blocks begin at the first cell.
    """
    within, between = [], []
    for x in (maps, maps.transpose(-2, -1)):
        steps = x.detach().double().diff(dim=-1).square()
        within.append(steps[..., 0::2].mean())
        between.append(steps[..., 1::2].mean())
    return float((torch.stack(between).mean() / torch.stack(within).mean()).sqrt())


class Smoothing(NamedTuple):
    """What a 3×3 makes of the two summands of a merged map: of what comes from above, and from the side."""

    images_before: float
    """The share of the enlarged map's power, in [0, 1], that the coarse map cannot have held: images."""
    images_after: float
    """The same after the 3×3."""
    gain_above: float
    """Power of the enlarged map after the 3×3 over before."""
    gain_lateral: float
    """Power of the lateral map after the 3×3 over before."""


@torch.no_grad()
def smoothing(detector: ProposalNetwork, images: Tensor, random: bool = False) -> dict[int, Smoothing]:
    """What the 3×3 of each level that has a level above does to the summands, its bias left out.

    Sum and convolution are linear, so that each summand can be followed by itself.

    Args:
        detector: with a `FeaturePyramid` with top-down pathway, lateral connections and 3×3, and no
            nonlinearity.
        images: (N, 3, H, W), prepared.
        random: a fresh 3×3 in place of the trained one, for comparison.

    Raises:
        TypeError: its neck is another.
    """
    neck = pyramid_of(detector)
    if not smooths_a_sum(neck):
        raise TypeError("its neck has no top-down pathway, laterals or 3×3, or a nonlinearity")
    merged = neck.merge(detector.bottom_up(images))
    found = {}
    for k in (k for k in neck.levels if k + 1 in merged):
        weight: Tensor = next(neck.smooths[str(k)].parameters())
        if random:
            always_the_same = torch.Generator().manual_seed(k)
            weight = torch.nn.init.kaiming_uniform_(torch.empty_like(weight), a=1, generator=always_the_same)
        above = nearest(merged[k + 1], (merged[k].shape[-2], merged[k].shape[-1]))
        lateral = merged[k] - above
        above_after, lateral_after = (F.conv2d(x, weight, padding=1) for x in (above, lateral))
        found[k] = Smoothing(
            spectrum(above).above(0.25),
            spectrum(above_after).above(0.25),
            _power(above_after) / _power(above),
            _power(lateral_after) / _power(lateral),
        )
    return found


def _power(maps: Tensor) -> float:
    """Of what varies over the cells of a channel."""
    return float(maps.var(dim=(-2, -1), correction=0).sum())


@torch.no_grad()
def merged_maps(detector: ProposalNetwork, images: Tensor) -> dict[str, Features]:
    """The maps of a feature pyramid before the 3×3, by each way of enlarging, and "after 3×3".

    Args:
        detector: with a `FeaturePyramid` for a neck.
        images: (N, 3, H, W), prepared.
    """
    neck = pyramid_of(detector)
    c = detector.bottom_up(images)
    found = {name: neck.merge(c, upsample) for name, upsample in UPSAMPLINGS.items()}
    return {**found, "after 3×3": neck(c)}


def smooths_a_sum(neck: Neck) -> bool:
    """Whether its 3×3 follow sums of a lateral and an enlarged map, and all of it is linear."""
    if not isinstance(neck, FeaturePyramid):
        return False
    has_both = neck.top_down and len(neck.inputs) == len(neck.path)
    return bool(neck.smooths) and has_both and not neck.nonlinearity


def pyramid_of(detector: ProposalNetwork) -> FeaturePyramid:
    """Its neck.

    Raises:
        TypeError: it is another than a feature pyramid.
    """
    if not isinstance(detector.neck, FeaturePyramid):
        raise TypeError(f"{type(detector.neck).__name__} merges no maps: take a FeaturePyramid")
    return detector.neck


class Drift(NamedTuple):
    """What is different when all that has happened is that the picture moved."""

    shift: int
    """Pixels to the right and down."""
    map: float
    """Root mean square of the difference of P2 from itself moved along, over that of what varies in P2."""
    lost: float
    """The share, in [0, 1], of the best boxes that are no longer among the best: none of those in the moved
    picture is of their class and overlaps them by half. Worse ones may. NaN where there is no box."""
    overlap: float
    """Mean IoU of the counterparts, once they are moved back; NaN where there is none."""
    score: float
    """Mean difference of their scores; NaN where there is none."""


@torch.no_grad()
def drifts(
    detector: ProposalNetwork,
    images: Tensor,
    shifts: Sequence[int] = range(1, 9),
    top: int = 30,
    upsample: Upsampling = nearest,
) -> list[Drift]:
    """How the finest map and the best boxes change while each image moves over a larger canvas.

    The images lie on zeros, the mean colour, 64 pixels from the border at least, so that all of an image is
    always seen. A shift by a multiple of 4 moves P2 by whole cells. By others it is read between its cells
    along straight lines, which blurs it and counts as a difference too.

    Args:
        detector: in evaluation mode.
        images: (N, 3, H, W), prepared, H and W multiples of 32.
        shifts: in pixels, up to 32.
        top: boxes of an image that are followed, proposals of a network that finds nothing else.
        upsample: how P2 is made here; boxes are found as always.
    """
    margin, (h, w) = 64 // 4, (side // 4 for side in images.shape[-2:])
    p, boxes = _seen(detector, images, 0, top, upsample)
    home = p[..., margin : margin + h, margin : margin + w]
    varies = home.var(dim=(-2, -1), correction=0).mean().sqrt()
    number = sum(len(one.boxes) for one in boxes)
    found = []
    for shift in shifts:
        moved, others = _seen(detector, images, shift, top, upsample)
        back = _along(_along(moved, margin + shift / 4, h, -2), margin + shift / 4, w, -1)
        map_ = float((back - home).square().mean().sqrt() / varies)
        overlaps, scores = [torch.zeros(0)], [torch.zeros(0)]
        for one, other in zip(boxes, others, strict=True):
            if not len(one.boxes) or not len(other.boxes):
                continue
            alike = one.labels[:, None] == other.labels
            overlap, counterpart = (box_iou(one.boxes, other.boxes - shift) * alike).max(dim=1)
            kept = overlap >= 0.5
            overlaps.append(overlap[kept])
            scores.append((one.scores - other.scores[counterpart]).abs()[kept])
        overlap, score = torch.cat(overlaps), torch.cat(scores)
        lost = 1 - len(overlap) / number if number else math.nan
        found.append(Drift(shift, map_, lost, _mean(overlap), _mean(score)))
    return found


def _seen(
    detector: ProposalNetwork, images: Tensor, shift: int, top: int, upsample: Upsampling
) -> tuple[Tensor, list[Detections]]:
    """P2 and the best boxes found, where the images lie this far from their home on the canvas."""
    n, _, h, w = images.shape
    size = (h + 160, w + 160)
    canvas = images.new_zeros(n, 3, *size)
    canvas[..., 64 + shift : 64 + shift + h, 64 + shift : 64 + shift + w] = images
    found = detector.detect(Batch(canvas, [size] * n, [size] * n, list(range(n)), None))
    best = [Detections(*(part[:top] for part in one)) for one in found]
    neck = pyramid_of(detector)
    merged = neck.merge(detector.bottom_up(canvas), upsample)
    return neck.smooth(merged)[min(neck.levels)], best


def _along(x: Tensor, start: float, length: int, side: int) -> Tensor:
    """Cells from a start that may lie between two."""
    whole = int(start)
    part = start - whole
    return (1 - part) * x.narrow(side, whole, length) + part * x.narrow(side, whole + 1, length)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
