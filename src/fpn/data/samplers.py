"""Which images make which batch, for any number of processes.

Symbols: I images, B images per batch and process, W processes (world size), rank 0…W-1, P picks in an epoch.

A batch sampler here hands out picks, not indices: an image and the seed of everything random about it. What a
sample looks like therefore depends on (seed, epoch, image) only, whatever worker or process loads it. Of an
image that comes several times in an epoch, it also depends on which of these times it is.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from fpn.errors import InputError


class Pick(NamedTuple):
    """One image to load."""

    image: int
    """Position in the data set."""
    seed: int
    """Seeds the sample's random transforms; 0 for evaluation, which has none."""


class AspectRatioBatches(Sampler[list[Pick]]):
    """Shuffled training batches of images of like orientation, which pad each other little.

    Each epoch shuffles the images and cuts the landscape ones (w ≥ h) and the portrait ones into batches of
    B. What is left of both makes one mixed batch if there is enough. The ⌊P / B⌋ batches are shuffled and
    dealt to the processes in turn, ⌊P / (B·W)⌋ to each. Without repeats P is I, no image occurs twice in an
    epoch and fewer than B·W are left out, other ones every time: the fewest that give all processes as many
    batches, all of them full.

    An image that is to come r times comes ⌊r⌋ or ⌈r⌉ times, at random so that the mean over epochs is r. They
    are drawn together (systematic sampling), so that every epoch has the same number of batches.

    Args:
        aspect_ratios: (I,) width / height.
        batch_size: B.
        rank: the process whose batches these are.
        world_size: W.
        seed: with the epoch, it determines every batch and pick.
        reshuffle: False repeats epoch 0 for ever, to overfit a few batches.
        repeats: (I,) how often each image is to come in an epoch, 1 or more; None for once each.

    Raises:
        InputError: there are fewer than B·W picks.
    """

    def __init__(
        self,
        aspect_ratios: NDArray[np.floating],
        batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        reshuffle: bool = True,
        repeats: NDArray[np.floating] | None = None,
    ) -> None:
        self.repeats = np.ones(len(aspect_ratios)) if repeats is None else repeats
        self.picks = picks_of(self.repeats)
        """P."""
        if self.picks < batch_size * world_size:
            each = f"one batch of {batch_size} for each of {world_size} processes"
            raise InputError(f"{len(aspect_ratios)} images do not make {each}; lower data.batch_size")
        self.landscape = np.asarray(aspect_ratios) >= 1
        self.batch_size, self.rank, self.world_size = batch_size, rank, world_size
        self.seed, self.reshuffle = seed, reshuffle
        self.epoch = 0
        self.start = 0
        """Batches of this process to pass over, when training goes on in the middle of an epoch."""

    def set_epoch(self, epoch: int) -> None:
        """Choose the shuffle that the next iteration runs through."""
        self.epoch = epoch if self.reshuffle else 0

    def __len__(self) -> int:
        """Batches per epoch, the same in every process."""
        return self.picks // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[list[Pick]]:
        epoch = self.epoch
        rng = np.random.default_rng((self.seed, epoch))
        counts = self._counts(rng)
        images = np.repeat(np.arange(len(counts)), counts)
        times = np.arange(len(images)) - np.repeat(np.cumsum(counts) - counts, counts)
        batches = self._all_batches(rng, self.landscape[images])
        for mine in range(self.start, len(self)):
            batch = batches[mine * self.world_size + self.rank]
            picked = zip(images[batch].tolist(), times[batch].tolist(), strict=True)
            yield [Pick(image, sample_seed(self.seed, epoch, image, time)) for image, time in picked]

    def _counts(self, rng: np.random.Generator) -> NDArray[np.int64]:
        """(I,) how often each image comes, P or P + 1 times in all; what fills no batch is left out."""
        counts = np.floor(self.repeats).astype(np.int64)
        fractions = self.repeats - counts
        if fractions.any():
            # Marks at distances of 1 from a random start, on a line where each image takes up its fraction.
            order = rng.permutation(len(counts))
            ends = np.cumsum(fractions[order])
            marks = rng.random() + np.arange(len(counts))
            marked = np.searchsorted(ends, marks[marks < ends[-1]], side="right")
            counts[order[marked]] += 1
        return counts

    def _all_batches(self, rng: np.random.Generator, landscape: NDArray[np.bool_]) -> NDArray[np.int64]:
        """(⌊P / B⌋, B) places in `landscape` (P,): the batches of all processes, in order."""
        shuffled = rng.permutation(len(landscape))
        groups = [shuffled[landscape[shuffled]], shuffled[~landscape[shuffled]]]
        full = [group[: len(group) // self.batch_size * self.batch_size] for group in groups]
        left = np.concatenate([group[len(cut) :] for group, cut in zip(groups, full, strict=True)])
        mixed = rng.permutation(left)[: len(left) // self.batch_size * self.batch_size]
        return rng.permutation(np.concatenate([*full, mixed]).reshape(-1, self.batch_size))


class ExactShards(Sampler[list[Pick]]):
    """Every image exactly once over all processes: image i goes to rank i mod W, none is repeated to fill up.

    Processes may have different numbers of batches, so a step must not wait for the others. Where
    there are fewer images than processes, some have none, which the data module refuses.

    Args:
        images: I.
        batch_size: most images in a batch; the last one may have fewer.
        rank: the process whose share this is.
        world_size: W.
    """

    def __init__(self, images: int, batch_size: int, rank: int = 0, world_size: int = 1) -> None:
        self.share = range(rank, images, world_size)
        self.batch_size = batch_size

    def __len__(self) -> int:
        """Batches of this process."""
        return -(-len(self.share) // self.batch_size)

    def __iter__(self) -> Iterator[list[Pick]]:
        for first in range(0, len(self.share), self.batch_size):
            yield [Pick(image, 0) for image in self.share[first : first + self.batch_size]]


def picks_of(repeats: NDArray[np.floating]) -> int:
    """P, of images that are to come so often each."""
    return math.floor(repeats.sum() + 1e-6)  # but for rounding


def sample_seed(seed: int, epoch: int, image: int, time: int = 0) -> int:
    """The seed of one sample: unrelated for neighbouring epochs and images, the same on every machine.

    Args:
        seed: of the run.
        epoch: counted from 0.
        image: its position in the data set.
        time: how often the image has come in this epoch before.
    """
    of_time = (time,) if time else ()
    return int(np.random.SeedSequence((seed, epoch, image, *of_time)).generate_state(1)[0])
