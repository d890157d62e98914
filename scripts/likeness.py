"""Whether all levels speak one language, as a head that they share needs (Sec. 4.1 and 5.1).

An image of twice the size shows on level k + 1 what the image itself shows on level k, cell for cell. If the
levels are alike in semantics, the same features stand there, and the shared head says the same of them.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fpn.models.detectors import ProposalNetwork
from fpn.models.necks import nearest
from fpn.types import Features


class Likeness(NamedTuple):
    """How alike two neighbouring levels are, each number at most 1."""

    levels: tuple[int, int]
    """k and k + 1."""
    octave: float
    """Mean cosine of level k of an image and level k + 1 of the image at twice the size, cell for cell."""
    objectness: float
    """Correlation of what the RPN says of the same two."""
    across: float
    """Mean cosine of levels k and k + 1 of one image, the coarser enlarged as the top-down pathway does."""


@torch.no_grad()
def likenesses(detector: ProposalNetwork, images: Tensor) -> list[Likeness]:
    """Of each pair of the neck's levels k and k + 1; the RPN has to read them all.

    Features count as their differences from their channel's mean over all cells of their level.

    Args:
        detector: in evaluation mode.
        images: (N, 3, H, W), prepared, H and W multiples of 32.
    """
    double = F.interpolate(images, scale_factor=2, mode="bilinear", align_corners=False)
    (p, says), (p_double, says_double) = (_read(detector, some) for some in (images, double))
    found = []
    for k in (k for k in detector.neck.levels if k + 1 in detector.neck.levels):
        coarse = nearest(p[k + 1], (p[k].shape[-2], p[k].shape[-1]))
        found.append(
            Likeness(
                (k, k + 1),
                _cosine(p[k], p_double[k + 1]),
                float(torch.corrcoef(torch.stack((says[k].flatten(), says_double[k + 1].flatten())))[0, 1]),
                _cosine(p[k], coarse),
            )
        )
    return found


def _read(detector: ProposalNetwork, images: Tensor) -> tuple[Features, dict[int, Tensor]]:
    p = detector.neck(detector.bottom_up(images))
    return p, detector.rpn(p, (images.shape[-2], images.shape[-1])).objectness


def _cosine(one: Tensor, other: Tensor) -> float:
    one, other = (x - x.mean(dim=(0, 2, 3), keepdim=True) for x in (one, other))
    return float(F.cosine_similarity(one, other, dim=1).mean())
