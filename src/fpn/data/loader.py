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
from torch.utils.data import DataLoader, get_worker_info

from fpn.allocator import give_back_large_blocks
from fpn.data.coco import CocoDataset
from fpn.data.samplers import AspectRatioBatches, ExactShards
from fpn.data.transforms import Sample
from fpn.errors import InputError
from fpn.types import Batch

Batches = Batch | list[Batch]
"""What a loader yields; of an image pyramid, the same images at several sizes."""

AHEAD = 2
"""Batches that a worker loads before they are asked for."""
_SHARED = Path("/dev/shm")
_POLL = 1.0
"""Seconds between two looks at whether to go on waiting."""


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


class Loader(DataLoader[Sample]):
    """Batches, by workers if there are any, for which nobody waits for ever.

    Args:
        dataset: what to load from.
        batch_sampler: which images make which batch, each time the same.
        collate: makes what is yielded of samples.
        workers: processes that load; 0 loads in this one.
        patience: seconds that a batch may take to come from a worker; 0 for any number.
        on_wait: told, as often as every second, for how many seconds a batch has been waited for. What it
            raises ends the wait.
    """

    def __init__(
        self,
        dataset: CocoDataset,
        batch_sampler: AspectRatioBatches | ExactShards,
        collate: Callable[[Sequence[Sample]], Batches],
        workers: int,
        patience: float = 0,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        super().__init__(
            dataset,
            batch_sampler=batch_sampler,
            collate_fn=partial(_handed_over, collate=collate),
            num_workers=workers,
            prefetch_factor=AHEAD if workers else None,
            worker_init_fn=start_worker,
            persistent_workers=workers > 0,
            pin_memory=torch.cuda.is_available(),
            timeout=_POLL if workers else 0,
        )
        self._picks, self._patience, self._on_wait = batch_sampler, patience, on_wait

    def __iter__(self) -> Iterator[Batches]:  # type: ignore[override]
        """Batches of the sampler.

        Raises:
            InputError: a batch does not come, with the files that it is of.
        """
        batches = super().__iter__()
        for number in itertools.count():
            begun = time.monotonic()
            while True:
                try:
                    batch: Any = next(batches)
                    break
                except StopIteration:
                    return
                except RuntimeError as error:
                    if not str(error).startswith("DataLoader timed out"):
                        raise
                self._on_wait(time.monotonic() - begun)
                if 0 < self._patience <= time.monotonic() - begun:
                    raise InputError(self._missed(number))
            yield batch

    def _missed(self, number: int) -> str:
        data: Any = self.dataset
        picks = next(itertools.islice(self._picks, number, None), [])
        files = ", ".join(str(data.image_folder / data.annotations.file_names[p.image]) for p in picks[:8])
        return (
            f"a batch did not come from its worker in {self._patience:g} s, that of {files}: see that these"
            " can be read, or set data.load_timeout to more seconds"
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
    """Batches on their way from a worker: it is unpickled as these.

    Images go by shared memory, or through a pipe where that has no room; all else is small, and faster by the
    pipe. torch itself takes shared memory for every tensor: a worker that finds no room fails unheard, and is
    waited for without end.
    """

    def __init__(self, batches: Batches) -> None:
        self._single = isinstance(batches, Batch)
        listed: list[Batch] = [batches] if isinstance(batches, Batch) else batches
        self._images = [_shared(batch.images) for batch in listed]
        file = io.BytesIO()
        _ByValue(file).dump([batch[1:] for batch in listed])
        self._rest = file.getvalue()

    def __reduce__(self) -> Any:
        return _unpacked, (self._single, self._images, self._rest)


class _ByValue(pickle.Pickler):
    def reducer_override(self, value: Any) -> Any:
        return (torch.from_numpy, (value.numpy(),)) if isinstance(value, Tensor) else NotImplemented


def _handed_over(samples: Sequence[Sample], collate: Callable[[Sequence[Sample]], Batches]) -> Any:
    batches = collate(samples)
    return batches if get_worker_info() is None else _Parcel(batches)


def _shared(images: Tensor) -> Tensor | np.ndarray:
    try:
        return images.share_memory_()
    except RuntimeError:
        return images.numpy()


def _unpacked(single: bool, images: list[Tensor | np.ndarray], rest: bytes) -> Batches:
    batches = [
        Batch(torch.as_tensor(own), *others) for own, others in zip(images, pickle.loads(rest), strict=True)
    ]
    return batches[0] if single else batches


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
        return {"images": len(batches.landscape), **fixed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Warn if a run goes on in another order than the one it stopped in."""
        now = self.state_dict()
        changed = [f"{key} was {state.get(key)}, is {now[key]}" for key in now if state.get(key) != now[key]]
        if changed:
            warnings.warn(
                f"An epoch begun before may repeat or miss images: {'; '.join(changed)}", stacklevel=2
            )
