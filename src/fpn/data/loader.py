"""Loaders: of batches that workers hand over, of which training's goes on where a stopped run left off."""

import io
import itertools
import os
import pickle
import shutil
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, get_worker_info

from fpn.allocator import give_back_large_blocks
from fpn.data.coco import CocoDataset
from fpn.data.samplers import AspectRatioBatches
from fpn.errors import InputError
from fpn.torch_private import WatchedIterator
from fpn.types import Batch

Batches = Batch | list[Batch]
"""What a loader yields; of an image pyramid, the same images at several sizes."""

AHEAD = 2
"""Batches that a worker loads before they are asked for."""
_SHARED = Path("/dev/shm")
_LARGE = 2**14
"""Bytes from which a tensor goes by shared memory."""


def start_worker(worker: int) -> None:
    """Start a worker that gives back the memory of large photos, and that no signal to end does end.

    But for SIGTERM, if its own process sends it. Clusters and terminals send them to everything that belongs
    to a job. The process that trains then ends its step and writes a checkpoint, for which it needs its
    workers.
    """
    give_back_large_blocks()
    for number in (signal.SIGUSR1, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # which macOS lacks
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_await_parent, daemon=True).start()


def _await_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)


class Loader(DataLoader[Any]):
    """Batches, by workers if there are any, for which nobody waits for ever.

    Args:
        dataset: what to load from, by picks.
        batch_sampler: which picks make which batch, each time the same.
        collate: makes what is yielded of what is loaded.
        name: of the file of a pick, for messages.
        workers: processes that load; 0 loads in this one.
        patience: seconds that a batch may take to come from a worker; 0 for any number.
        on_wait: told, as often as every second, for how many seconds a batch has been waited for. What it
            raises ends the wait.
        **settings: other arguments of a DataLoader.
    """

    def __init__(
        self,
        dataset: Dataset[Any],
        batch_sampler: Any,
        collate: Callable[[Sequence[Any]], Any],
        name: Callable[[Any], str],
        workers: int,
        patience: float = 0,
        on_wait: Callable[[float], None] = lambda seconds: None,
        **settings: Any,
    ) -> None:
        given = {"persistent_workers": workers > 0, "pin_memory": torch.cuda.is_available()} | settings
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=partial(_handed_over, collate=collate),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=start_worker,
            **given,
        )
        self._picks, self._name, self._patience, self._told = batch_sampler, name, patience, on_wait
        self._number, self._begun = 0, 0.0

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Batches of the sampler.

        Raises:
            InputError: a batch does not come, with the files that it is of.
        """
        self._number, self._begun = 0, time.monotonic()
        for batch in super().__iter__():
            yield batch
            self._number, self._begun = self._number + 1, time.monotonic()

    def _get_iterator(self) -> Any:
        return WatchedIterator(self, self._wait) if self.num_workers else super()._get_iterator()

    def _wait(self) -> None:
        seconds = time.monotonic() - self._begun
        self._told(seconds)
        if 0 < self._patience <= seconds:
            picks: Any = next(itertools.islice(self._picks, self._number, None), [])
            raise InputError(
                f"a batch did not come from its worker in {self._patience:g} s, that of"
                f" {', '.join(map(self._name, picks[:8]))}: see that these can be read, or set"
                " data.load_timeout to more seconds"
            )


def room_told(needed: float) -> str:
    """What to tell of too little shared memory for batches under way; empty where there is enough, or none.

    Args:
        needed: bytes, of all workers.
    """
    free = shutil.disk_usage(_SHARED).free if _SHARED.is_dir() else needed
    if free >= needed:
        return ""
    return (
        f"{_SHARED} has room for {free / 2**20:,.0f} MiB, where workers may have {needed / 2**20:,.0f} MiB of"
        " images under way: what finds no room goes through a pipe, which is slower; docker run"
        " --shm-size=1g (or --ipc=host) makes room, fewer data.num_workers need less"
    )


class _Parcel:
    """What a worker hands over: it is unpickled as the content.

    Large tensors go by shared memory, or through a pipe where that has no room; all else is small, and faster
    by the pipe. torch itself takes shared memory for every tensor: a worker that finds no room fails unheard,
    and is waited for without end.
    """

    def __init__(self, content: Any) -> None:
        file = io.BytesIO()
        pickler = _Pickler(file)
        pickler.dump(content)
        self._large, self._rest = pickler.large, file.getvalue()

    def __reduce__(self) -> Any:
        return _unpacked, (self._large, self._rest)


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.large: list[Tensor | np.ndarray] = []

    def persistent_id(self, value: Any) -> int | None:
        if not isinstance(value, Tensor) or value.nbytes < _LARGE:
            return None
        self.large.append(_shared(value))
        return len(self.large) - 1

    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, large: Sequence[Tensor | np.ndarray]) -> None:
        super().__init__(file)
        self.large = large

    def persistent_load(self, number: int) -> Tensor:
        return torch.as_tensor(self.large[number])


def _handed_over(loaded: Sequence[Any], collate: Callable[[Sequence[Any]], Any]) -> Any:
    content = collate(loaded)
    return content if get_worker_info() is None else _Parcel(content)


def _shared(tensor: Tensor) -> Tensor | np.ndarray:
    try:
        return tensor.share_memory_()
    except RuntimeError:
        return tensor.numpy()


def _unpacked(large: Sequence[Tensor | np.ndarray], rest: bytes) -> Any:
    return _Unpickler(io.BytesIO(rest), large).load()


class TrainLoader(Loader):
    """Training batches from where training stands.

    A sample is a function of (seed, epoch, image), and Lightning knows the place in the epoch: a checkpoint
    need hold nothing but what the order depends on, to tell when that has changed.

    Args:
        dataset: what to load from.
        batch_sampler: which images make which batch.
        position: the epoch, and how many of its batches are done, asked as an iteration starts.
        **loading: the other arguments of a `Loader`.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_sampler: AspectRatioBatches,
        position: Callable[[], tuple[int, int]],
        **loading: Any,
    ) -> None:
        super().__init__(dataset, batch_sampler, **loading)
        self._batches = batch_sampler
        self._position = position

    def __iter__(self) -> Iterator[Batches]:  # type: ignore[override]
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
        return {"images": batches.picks, **fixed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn if a run goes on in another order than the one it stopped in."""
        now = self.state_dict()
        changed = [f"{key} was {state.get(key)}, is {now[key]}" for key in now if state.get(key) != now[key]]
        if changed:
            warnings.warn(
                f"An epoch begun before may repeat or miss images: {'; '.join(changed)}", stacklevel=2
            )
