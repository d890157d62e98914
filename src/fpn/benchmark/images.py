"""What both sides are given: image files, and boxes to learn from."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchvision.io import write_jpeg

from fpn.data.coco import read_image
from fpn.data.scene import draw_scene
from fpn.errors import InputError
from fpn.types import Size, Targets

ASPECT = 5 / 3
"""Limit of the long side over the short side, that of 800 and 1333."""
LONG_SIDE = 640
"""Pixels of drawn images, as of COCO's."""


def jpeg_files(images: str | None, number: int, folder: Path) -> list[Path]:
    """Image files, the first of a folder by name and over again where it has fewer, or drawn ones.

    Args:
        images: a folder with JPEG files; None draws scenes of shapes.
        number: how many.
        folder: where drawn images are put.

    Raises:
        InputError: there is no such folder, no JPEG file in it, or one that cannot be read.
    """
    if images is not None:
        found = sorted(p for p in Path(images).glob("*") if p.suffix.lower() in (".jpg", ".jpeg"))[:number]
        if not found:
            raise InputError(f"images {images}: no folder with JPEG files")
        for file in found:
            read_image(file)
        return [found[i % len(found)] for i in range(number)]
    files = [folder / f"{i:03}.jpg" for i in range(number)]
    for seed, file in enumerate(files):
        picture, _ = draw_scene(np.random.default_rng(seed), seed, LONG_SIDE)
        write_jpeg(torch.from_numpy(picture).permute(2, 0, 1).contiguous(), str(file), quality=90)
    return files


def random_targets(size: Size, number: int, classes: int, seed: int) -> Targets:
    """Boxes of an eighth to a half of an image's sides, with labels in 1…K.

    Args:
        size: of the image.
        number: how many boxes.
        classes: K.
        seed: of all chance.
    """
    generator = torch.Generator().manual_seed(seed)
    limits = torch.tensor([size[1], size[0]])
    sides = limits * (0.125 + 0.375 * torch.rand(number, 2, generator=generator))
    corner = (limits - sides) * torch.rand(number, 2, generator=generator)
    labels = torch.randint(1, classes + 1, (number,), generator=generator)
    return Targets(torch.cat((corner, corner + sides), dim=1), labels, torch.zeros(0, 4))


def size_of(image: Tensor) -> Size:
    """(height, width) of a (…, H, W) tensor."""
    return (image.shape[-2], image.shape[-1])
