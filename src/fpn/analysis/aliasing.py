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
from fpn.models.necks import FeaturePyramid, nearest
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
    """Power over frequency, of all directions together."""

    frequency: Tensor
    """(B,) middles of the bands, cycles a cell, up to 1/2."""
    power: Tensor
    """(B,) mean power of a band's frequencies, the whole map's being 1 in the mean."""

    def above(self, frequency: float) -> float:
        """The share of the power, in [0, 1], of bands above a frequency."""
        # A band's frequencies are as many as its ring is long.
        power = self.power * self.frequency
        return float(power[self.frequency > frequency].sum() / power.sum())


def spectrum(maps: Tensor, bands: int = 16) -> Spectrum:
    """Of (N, d, h, w) maps, each less its mean and faded out towards its border."""
    h, w = maps.shape[-2:]
    window = torch.hann_window(h, periodic=False)[:, None] * torch.hann_window(w, periodic=False)
    maps = maps.detach().double()
    weighted = (maps - (maps * window).sum((-2, -1), keepdim=True) / window.sum()) * window
    power = torch.fft.fft2(weighted).abs().square().mean(dim=(0, 1))
    radius = torch.hypot(torch.fft.fftfreq(h)[:, None], torch.fft.fftfreq(w))
    band = (radius * 2 * bands).long()
    inside = band < bands  # beyond 1/2 there are the corners alone
    total = torch.zeros(bands, dtype=torch.float64).index_add_(0, band[inside], power[inside])
    number = torch.zeros(bands, dtype=torch.float64).index_add_(0, band[inside], inside[inside].double())
    mean = total / number.clamp(min=1)
    return Spectrum((torch.arange(bands) + 0.5) / (2 * bands), mean / power.mean().clamp(min=1e-300))


def block_edges(maps: Tensor) -> float:
    """Steps between cells at the edges of 2 × 2 blocks over steps within, root mean square.

    1 for a map that knows nothing of blocks, infinite for one that has only been enlarged by repeating cells.

    Args:
        maps: (N, d, h, w), whose blocks begin at the first cell.
    """
    within, between = [], []
    for x in (maps, maps.transpose(-2, -1)):
        steps = x.detach().double().diff(dim=-1).square()
        within.append(steps[..., 0::2].mean())
        between.append(steps[..., 1::2].mean())
    return float((torch.stack(between).mean() / torch.stack(within).mean()).sqrt())


def gain(smoothing: torch.nn.Conv2d, points: int = 17) -> Spectrum:
    """How a trained 3×3 passes frequencies along a row: root mean square over its pairs of channels.

    Args:
        smoothing: the convolution.
        points: frequencies from 0 to 1/2.

    Returns:
        The gains in place of powers, that of frequency 0 being 1: a blur falls towards 1/2.
    """
    rows = smoothing.weight.detach().double().sum(dim=-2)  # of a map that is the same all along a column
    frequency = torch.linspace(0, 0.5, points, dtype=torch.float64)
    wave = torch.exp(-2j * torch.pi * frequency[:, None] * torch.arange(-1, 2))
    response = torch.einsum("oik,fk->foi", rows.to(wave.dtype), wave).abs().square().mean(dim=(1, 2)).sqrt()
    return Spectrum(frequency, response / response[0])


@torch.no_grad()
def merged_maps(detector: ProposalNetwork, images: Tensor) -> dict[str, Features]:
    """The maps of a feature pyramid before the 3×3, by each way of enlarging, and "smoothed": after it.

    Args:
        detector: with a `FeaturePyramid` for a neck.
        images: (N, 3, H, W), prepared.
    """
    neck = pyramid_of(detector)
    c = detector.bottom_up(images)
    found = {name: neck.merge(c, upsample) for name, upsample in UPSAMPLINGS.items()}
    return {**found, "smoothed": neck(c)}


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
    """Root mean square of the difference of P2 from itself moved along, over that of P2."""
    lost: float
    """The share, in [0, 1], of the boxes found that have no counterpart of IoU 1/2 in the moved picture."""
    overlap: float
    """Mean IoU of the counterparts, once they are moved back."""
    score: float
    """Mean difference of their scores."""


@torch.no_grad()
def drifts(
    detector: ProposalNetwork, images: Tensor, shifts: Sequence[int] = range(1, 9), top: int = 30
) -> list[Drift]:
    """How the finest map and the best proposals change while each image moves over a larger canvas.

    The images lie on zeros, the mean colour, 64 pixels from the border at least, so that all of an image is
    always seen. Between cells P2 is moved by straight lines, which for shifts that are no multiples of 4
    counts as a difference; the two kinds of necks share it.

    Args:
        detector: in evaluation mode.
        images: (N, 3, H, W), prepared, H and W multiples of 32.
        shifts: in pixels, up to 32.
        top: proposals of an image that are followed.
    """
    margin, (h, w) = 64 // 4, (side // 4 for side in images.shape[-2:])
    p, proposals = _seen(detector, images, 0)
    home = p[..., margin : margin + h, margin : margin + w]
    found = []
    for shift in shifts:
        moved, others = _seen(detector, images, shift)
        back = _along(_along(moved, margin + shift / 4, h, -2), margin + shift / 4, w, -1)
        map_ = float((back - home).square().mean().sqrt() / home.square().mean().sqrt())
        number, overlaps, scores = 0, [], []
        for one, other in zip(proposals, others, strict=True):
            boxes, own = one.boxes[:top], one.scores[:top]
            number += len(boxes)
            if len(boxes) and len(other.boxes):
                overlap, counterpart = box_iou(boxes, other.boxes - shift).max(dim=1)
                kept = overlap >= 0.5
                overlaps.append(overlap[kept])
                scores.append((own - other.scores[counterpart]).abs()[kept])
        overlap, score = (torch.cat([torch.zeros(0), *part]) for part in (overlaps, scores))
        lost = 1 - len(overlap) / max(number, 1)
        found.append(Drift(shift, map_, lost, _mean(overlap), _mean(score)))
    return found


def _seen(detector: ProposalNetwork, images: Tensor, shift: int) -> tuple[Tensor, list[Detections]]:
    """P2 and the boxes found, where the images lie this far from their home on the canvas."""
    n, _, h, w = images.shape
    size = (h + 128, w + 128)
    canvas = images.new_zeros(n, 3, *size)
    canvas[..., 64 + shift : 64 + shift + h, 64 + shift : 64 + shift + w] = images
    found = detector.detect(Batch(canvas, [size] * n, [size] * n, list(range(n)), None))
    return detector.neck(detector.bottom_up(canvas))[min(detector.neck.levels)], found


def _along(x: Tensor, start: float, length: int, side: int) -> Tensor:
    """Cells from a start that may lie between two."""
    whole = int(start)
    part = start - whole
    return (1 - part) * x.narrow(side, whole, length) + part * x.narrow(side, whole + 1, length)


def _mean(values: Tensor) -> float:
    return float(values.mean()) if len(values) else math.nan
