"""From masks to what they hold: the one place where the host waits for the device.

How many rows a mask leaves is known to the device alone. All masks of a step are counted together, so that it
costs one wait, and the rows are then found by numbers that the host knows.
"""

from collections.abc import Sequence

import torch
from torch import Tensor


def counts(*masks: Tensor) -> list[int]:
    """How many are true in each mask. The host waits for the device once, however many masks there are."""
    numbers: list[int] = torch.stack([mask.sum() for mask in masks]).tolist()
    return numbers


def places(mask: Tensor, number: int) -> Tensor:
    """(number,) int64 positions of what is true in a mask, flattened, in ascending order: without a wait."""
    return mask.flatten().sort(descending=True, stable=True).indices[:number]


def on_device(values: object, device: torch.device, dtype: torch.dtype | None = None) -> Tensor:
    """Numbers that the host knows, as a tensor on a device: without a wait."""
    table = torch.tensor(values, dtype=dtype)
    return table.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else table.to(device)


def padded(parts: Sequence[Tensor], fill: float, least: int = 0) -> Tensor:
    """(N, most, ...) sets of different sizes (·, ...) as one tensor.

    Args:
        parts: N of them.
        fill: what is in places that are not taken.
        least: the least number of places.
    """
    most = max([least, *map(len, parts)])
    taken = [n * most + i for n, part in enumerate(parts) for i in range(len(part))]
    flat = torch.cat(list(parts))
    whole = flat.new_full((len(parts) * most, *flat.shape[1:]), fill)
    index = on_device(taken, flat.device, torch.int64)
    return whole.index_copy(0, index, flat).unflatten(0, (len(parts), most))
