"""A detector as one function of tensors, for programs that run without this project's code.

Symbols: N images of at most H × W pixels, D places for boxes of an image.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from fpn.data.transforms import ImageSettings
from fpn.deploy.resizing import resized, resized_sizes
from fpn.errors import InputError
from fpn.models.detectors import ProposalNetwork
from fpn.models.optimized import optimized
from fpn.torch_private import of_any_size
from fpn.types import Batch

Input = Literal["pixels", "normalised"]
"""What goes in: images as they are decoded, or resized, normalised and padded by whoever calls."""
OUTPUTS = ("boxes", "scores", "labels", "count")
_LARGEST = 2**15
"""Pixels of a side of the padded batch."""


class Deployed(nn.Module):
    """A detector with what comes before and after it.

    Args:
        detector: a ProposalNetwork or FasterRCNN; a copy in evaluation mode is taken, its norms folded.
        image: how images are prepared.
        input: pixels or normalised.

    Raises:
        InputError: the detector is of another kind.
    """

    normalisation: Tensor

    def __init__(self, detector: nn.Module, image: ImageSettings, input: Input = "pixels") -> None:
        super().__init__()
        if not isinstance(detector, ProposalNetwork):
            reason = (
                "needs proposals" if getattr(detector, "reads_proposals", False) else "is of its own kind"
            )
            raise InputError(
                f"{type(detector).__name__} {reason}: FasterRCNN and ProposalNetwork are exported"
            )
        if image.divisor % 32 and detector.rpn.grid == "spread":
            raise InputError(
                f"data.images.divisor {image.divisor}: an exported rpn.grid spread needs multiples of 32"
            )
        self.detector = optimized(detector).cpu().float().requires_grad_(False)
        self.image, self.input = image, input
        factor = torch.tensor([[255.0 * std for std in image.std], [255.0 * mean for mean in image.mean]])
        self.register_buffer("normalisation", factor.view(2, 3, 1, 1), persistent=False)

    def forward(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, ...]:
        """All that is found.

        Args:
            images: (N, 3, H, W) RGB. Pixels are uint8 as decoded; smaller images have anything at their right
                and bottom. Normalised ones are float32, resized, and padded there with zeros, to
                multiples of `image.divisor`.
            sizes: (N, 2) int64 heights and widths of the images without padding.

        Returns:
            Boxes (N, D, 4) in pixels of the images as they came, scores (N, D), labels (N, D) int64, of a
            ProposalNetwork none, and (N,) int64 how many there are: the first ones of the D places.
        """
        torch._check(images.shape[0] >= 1)
        torch._check(sizes.shape[0] == images.shape[0])
        if self.input == "pixels":
            images, new = self._prepared(images, sizes)
        else:
            new = sizes
        for side in images.shape[2:]:
            torch._check(side >= self.image.divisor)
            torch._check(side <= _LARGEST)
        batch = Batch(images, [], [], [])
        found = self.detector.found(batch, new.float())[-1]
        factors = (sizes.float() / new.float()).flip(1).repeat(1, 2)
        whole = (found.boxes * factors[:, None], found.scores, found.labels, found.there.sum(dim=1))
        return whole if self.detector.finds_objects else (*whole[:2], whole[3])

    def _prepared(self, images: Tensor, sizes: Tensor) -> tuple[Tensor, Tensor]:
        new = resized_sizes(sizes, self.image)
        height, width = (
            (new.amax(dim=0) + self.image.divisor - 1) // self.image.divisor * self.image.divisor
        ).tolist()
        for side in (height, width):
            torch._check(side >= self.image.divisor)
            torch._check(side <= _LARGEST)
        std, mean = self.normalisation
        x = (resized(images, sizes, new, (height, width), self.image.antialias) - mean) / std
        inside = [
            torch.arange(side, device=new.device) < limit[:, None]
            for side, limit in zip((height, width), new.unbind(1), strict=True)
        ]
        mask = inside[0][:, None, :, None] & inside[1][:, None, None, :]
        return x.where(mask, 0), new

    @property
    def outputs(self) -> tuple[str, ...]:
        """The names of what `forward` gives."""
        return OUTPUTS if self.detector.finds_objects else ("boxes", "scores", "count")

    def program(self) -> torch.export.ExportedProgram:
        """`torch.export`'s program of it, for batches, heights and widths of any size.

        Raises:
            InputError: a part cannot be exported.
        """
        dtype = torch.uint8 if self.input == "pixels" else torch.float32
        images = torch.zeros(2, 3, 96, 160, dtype=dtype)
        sizes = torch.tensor([[90, 150], [96, 160]])
        with torch.no_grad():
            of_any_size(images, (0, 2, 3))
            of_any_size(sizes, (0,))
            try:
                return torch.export.export(self, (images, sizes), strict=True)
            except Exception as error:  # of a part: PyTorch has many
                raise InputError(f"this detector cannot be exported: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
