"""A training loader that goes on where a stopped run left off."""

import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import DataLoader

from fpn.allocator import give_back_large_blocks
from fpn.data.coco import CocoDataset
from fpn.data.samplers import AspectRatioBatches
from fpn.data.transforms import Sample
from fpn.types import Batch


def start_worker(worker: int) -> None:
    """Prepare a worker: it outlives signals, and gives back the memory of large photos."""
    outlive_signals(worker)
    give_back_large_blocks()


def outlive_signals(worker: int) -> None:
    """Start a worker that no signal to end does end, but SIGTERM if its own process sends it.

    Clusters and terminals send them to everything that belongs to a job. The process that trains then ends
    its step and writes a checkpoint, for which it needs its workers.
    """
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS lacks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class TrainLoader(DataLoader[Sample]):
    """Training batches from where training stands.

    A sample is a function of (seed, epoch, image), and Lightning knows the place in the epoch: a checkpoint
    need hold nothing but what the order depends on, to tell when that has changed.

    Args:
        dataset: what to load from.
        batch_sampler: which images make which batch.
        position: the epoch, and how many of its batches are done, asked as an iteration starts.
        settings: the other arguments of a DataLoader.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_sampler: AspectRatioBatches,
        position: Callable[[], tuple[int, int]],
        **settings: Any,
    ) -> None:
        super().__init__(dataset, batch_sampler=batch_sampler, **settings)
        self._batches = batch_sampler
        self._position = position

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        """Batches of the sampler's epoch.

        A generator, so that nothing starts before the first batch is asked for: Lightning makes the iterator
        of a resumed run before it sets the epoch, and workers would load the beginning of another one.
        """
        epoch, self._batches.start = self._position()
        # Not by Lightning, which would count one too many in a run resumed from an epoch's end.
        self._batches.set_epoch(epoch)
        yield from super().__iter__()

    def state_dict(self) -> dict[str, int]:
        """What the order of the images depends on besides the epoch."""
        batches = self._batches
        fixed = {key: getattr(batches, key) for key in ("seed", "batch_size", "world_size")}
        return {"images": len(batches.landscape), **fixed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn if a run goes on in another order than the one it stopped in."""
        now = self.state_dict()
        changed = [f"{key} was {state.get(key)}, is {now[key]}" for key in now if state.get(key) != now[key]]
        if changed:
            warnings.warn(
                f"An epoch begun before may repeat or miss images: {'; '.join(changed)}", stacklevel=2
            )
