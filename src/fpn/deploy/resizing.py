"""Resizing as `fpn.data.transforms` does it, of a batch of images of different sizes, by matrices.

A side is resized by a product with a matrix: the share of each old pixel in each new one. That is a few
operators in any runtime, and images of different sizes have different matrices of one shape. It costs a
hundredth of what the network does with the result.

Symbols: N images of at most H × W pixels, h × w once resized.
"""

import torch
from torch import Tensor

from fpn.data.transforms import ImageSettings

_BITS = 15
"""Of PyTorch's whole-numbered shares, in which it resizes bytes as bytes."""


def resized_sizes(sizes: Tensor, settings: ImageSettings) -> Tensor:
    """(N, 2) int64 what `resized_size` says of sizes (N, 2), in its float64: no side is rounded otherwise."""
    old = sizes.double()
    short, long = old.amin(dim=1, keepdim=True), old.amax(dim=1, keepdim=True)
    # No constants: PyTorch multiplies by reciprocals, rounded twice, where a number is divided, and OpenVINO
    # 2026.4 divides by it.
    least, most = settings.short_side + 0 * short, settings.max_side + 0 * short
    if settings.rounding == "down":
        return (old * torch.minimum(least / short, most / long)).floor().long().clamp(min=1)
    long = least / short * long
    scale = most / long
    sides = torch.cat(
        (least.where(long <= most, least * scale), long.where(long <= most, long * scale)), dim=1
    )
    sides = (sides + 0.5).floor().long().clamp(min=1)
    return sides.where(sizes[:, :1] < sizes[:, 1:], sides.flip(1))


def resized(images: Tensor, sizes: Tensor, new: Tensor, canvas: tuple[int, int], antialias: bool) -> Tensor:
    """Images resized each to a size of its own, at the top left of a canvas; the rest of it is of no meaning.

    Args:
        images: (N, 3, H, W) of values from 0 to 255.
        sizes: (N, 2) of the images, without padding.
        new: (N, 2) sizes they are to have.
        canvas: height and width of the result.
        antialias: cover every pixel, and round to whole numbers after either side.

    Returns:
        (N, 3, *canvas) float32.
    """
    across = _shares(sizes[:, 1], new[:, 1], images.shape[3], canvas[1], antialias)
    down = _shares(sizes[:, 0], new[:, 0], images.shape[2], canvas[0], antialias)
    wide = images.float() @ across[0].transpose(1, 2)[:, None]
    if not antialias:
        return down[0][:, None] @ wide
    return _rounded(down[0][:, None] @ _rounded(wide, across[1]), down[1])


def _shares(old: Tensor, new: Tensor, pixels: int, canvas: int, antialias: bool) -> tuple[Tensor, Tensor]:
    """(N, canvas, pixels) the share of each old pixel in each new one, and (N,) their unit."""
    i, j = torch.arange(canvas, device=old.device), torch.arange(pixels, device=old.device)
    old, new = old[:, None, None], new[:, None, None]
    if not antialias:
        # In float32 and in these steps, as F.interpolate, whose rounding shows at thousands of pixels.
        places = (old.float() / new.float()) * (i[:, None] + 0.5) - 0.5
        places = torch.minimum(places.clamp(min=0), (old - 1).float())
        return (1 - (j - places).abs()).clamp(min=0), old.new_ones(len(old))
    # Between the centres of a new pixel and an old one, in halves of the side that has more pixels.
    apart = (2 * j + 1) * new - (2 * i[:, None] + 1) * old
    shares = (1 - apart.abs() / (2 * torch.maximum(old, new))).clamp(min=0)
    shares = shares.where((j < old) & (i[:, None] < new), 0)
    shares = shares / shares.sum(dim=2, keepdim=True).clamp(min=1e-6)
    # Whole numbers, as large as 16 bits hold.
    bits = torch.arange(1, 23, device=old.device)
    largest = shares.amax(dim=(1, 2))[:, None]
    bits = ((0.5 + largest * 2.0**bits).floor() < 2.0**_BITS).sum(dim=1)
    unit = 2.0**bits
    return (shares * unit[:, None, None] + 0.5).floor(), unit


def _rounded(images: Tensor, unit: Tensor) -> Tensor:
    return (images / unit[:, None, None, None] + 0.5).floor().clamp(0, 255)
