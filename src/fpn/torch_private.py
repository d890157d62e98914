"""All that is used of PyTorch's inner parts, with its reason.

Nothing public goes on waiting for a worker, and nothing public exports a size that may also be 1.
"""

from collections.abc import Callable, Sequence
from typing import Any
from weakref import WeakMethod

from torch import Tensor
from torch.utils.data import DataLoader
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

_POLL = 1.0
"""Seconds between two looks at whether to go on waiting."""


class WatchedIterator(_MultiProcessingDataLoaderIter):
    """A loader's iterator that asks, as often as every second while it waits, whether to go on.

    A loader's own timeout ends the wait for good, also where workers are told of a new epoch.

    Args:
        loader: with workers.
        on_wait: a method; what it raises ends the wait.
    """

    def __init__(self, loader: DataLoader[Any], on_wait: Callable[[], None]) -> None:
        # Not to hold the loader, which holds this: workers end when it is let go of.
        self._on_wait = WeakMethod(on_wait)
        super().__init__(loader)

    def _try_get_data(self, timeout: float = _POLL) -> tuple[bool, Any]:
        found: tuple[bool, Any] = super()._try_get_data(min(timeout, _POLL))
        if not found[0] and (ask := self._on_wait()) is not None:
            ask()
        return found


def of_any_size(example: Tensor, dims: Sequence[int]) -> None:
    """Have `torch.export.export` assume nothing of an example's dimensions, not even that they exceed 1."""
    from torch._dynamo.decorators import mark_unbacked  # takes a second to import

    for dim in dims:
        mark_unbacked(example, dim)
