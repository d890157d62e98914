"""A script: `fpn`, but in the second of its processes a loss is not a number at step POISONED_STEP."""

import os
import sys
from typing import Any

import torch
from torch import Tensor

from fpn.lit.cli import main
from fpn.models.detectors import FasterRCNN

original = FasterRCNN.losses
steps = 0


def losses(self: FasterRCNN, *arguments: Any) -> dict[str, Tensor]:
    """Those of the detector, once with a fault."""
    global steps
    found = original(self, *arguments)
    if not torch.is_grad_enabled():  # of a validation
        return found
    if steps == int(os.environ["POISONED_STEP"]) and os.environ.get("LOCAL_RANK") == "1":
        found["rpn_box"] = found["rpn_box"] * float("nan")
    steps += 1
    return found


if __name__ == "__main__":
    FasterRCNN.losses = losses  # type: ignore[method-assign]
    main(sys.argv[1:])
