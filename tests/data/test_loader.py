"""Loaders against what may go wrong on the way from a worker."""

import time
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, Dataset, SequentialSampler

from fpn.data.loader import Loader
from fpn.errors import InputError


class Slow(Dataset[torch.Tensor]):
    """Large and small numbers that take their time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __getitem__(self, place: int) -> torch.Tensor:
        time.sleep(self.seconds)
        return torch.full((1 if place % 2 else 100_000,), float(place))


def loader(seconds: float, **options: Any) -> Loader:
    batches = BatchSampler(SequentialSampler(range(6)), 2, drop_last=False)
    named = {"name": lambda place: f"{place}.jpg", "workers": 1, "pin_memory": False}
    return Loader(Slow(seconds), batches, lambda loaded: {"of": loaded}, **named | options)


def test_a_slow_worker_is_waited_for_in_every_epoch() -> None:
    """Also where the one before was left with batches under way."""
    waits: list[float] = []
    slow = loader(0.7, on_wait=waits.append)
    first = next(iter(slow))
    assert [one[0].item() for one in first["of"]] == [0, 1]
    found = [one[0].item() for batch in slow for one in batch["of"]]
    assert found == [0, 1, 2, 3, 4, 5]
    assert waits
    assert max(waits) < 10


def test_a_wait_without_end_names_the_files() -> None:
    with pytest.raises(InputError, match=r"did not come .* that of 0\.jpg, 1\.jpg: see"):
        next(iter(loader(30, patience=1.5)))


def test_workers_end_with_their_loader() -> None:
    kept = loader(0)
    next(iter(kept))
    (worker,) = kept._iterator._workers  # type: ignore[union-attr]
    del kept
    assert not worker.is_alive()
