"""Samplers against counting: every image at most once, as many full batches everywhere, nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn.data.samplers import AspectRatioBatches, ExactShards, Pick, sample_seed

sizes = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(1, 7), st.integers(1, 5))


def aspect_ratios(landscape: int, portrait: int) -> np.ndarray:
    rng = np.random.default_rng(landscape * 1000 + portrait)
    return rng.permutation(np.concatenate([rng.uniform(1, 2, landscape), rng.uniform(0.5, 0.99, portrait)]))


def epoch_of(
    ratios: np.ndarray, batch: int, world: int, seed: int = 0, epoch: int = 0
) -> list[list[list[Pick]]]:
    ranks = [AspectRatioBatches(ratios, batch, rank, world, seed) for rank in range(world)]
    for sampler in ranks:
        sampler.set_epoch(epoch)
    batches = [list(sampler) for sampler in ranks]
    assert [len(sampler) for sampler in ranks] == [len(found) for found in batches]
    return batches


@settings(max_examples=150, deadline=None)
@given(sizes, st.integers(0, 3))
def test_an_epoch_is_disjoint_full_equal_and_drops_least(
    shape: tuple[int, int, int, int], epoch: int
) -> None:
    landscape, portrait, batch, world = shape
    images = landscape + portrait
    if images < batch * world:
        with pytest.raises(ValueError, match="do not make one batch"):
            AspectRatioBatches(aspect_ratios(landscape, portrait), batch, 0, world)
        return
    ratios = aspect_ratios(landscape, portrait)
    ranks = epoch_of(ratios, batch, world, epoch=epoch)
    assert len({len(batches) for batches in ranks}) == 1
    picks = [pick.image for batches in ranks for picks in batches for pick in picks]
    assert all(len(picks) == batch for batches in ranks for picks in batches)
    assert len(picks) == len(set(picks)) == images // (batch * world) * batch * world
    assert set(picks) <= set(range(images))
    orientations = [
        {bool(ratios[pick.image] >= 1) for pick in picks} for batches in ranks for picks in batches
    ]
    # Each orientation leaves fewer than `batch` images, so at most one batch can be mixed.
    assert sum(len(found) > 1 for found in orientations) <= 1


def test_square_images_count_as_landscape() -> None:
    for batches in epoch_of(np.array([1.0, 1.0, 1.5, 1.5, 0.5, 0.5, 0.7, 0.7]), 4, 1):
        assert {frozenset(pick.image for pick in picks) for picks in batches} == {
            frozenset({0, 1, 2, 3}),
            frozenset({4, 5, 6, 7}),
        }


def test_epochs_differ_and_repeat_exactly() -> None:
    ratios = aspect_ratios(40, 30)
    first, second = epoch_of(ratios, 2, 2, epoch=0), epoch_of(ratios, 2, 2, epoch=1)
    assert first != second
    assert first == epoch_of(ratios, 2, 2, epoch=0)
    assert first != epoch_of(ratios, 2, 2, seed=1, epoch=0)
    seeds = [{p.image: p.seed for b in ranks for picks in b for p in picks} for ranks in (first, second)]
    assert all(seeds[0][image] != seeds[1][image] for image in seeds[0].keys() & seeds[1].keys())


def test_every_image_comes_up_over_a_few_epochs() -> None:
    seen = Counter(
        pick.image
        for epoch in range(20)
        for batches in epoch_of(aspect_ratios(7, 4), 4, 2, epoch=epoch)
        for picks in batches
        for pick in picks
    )
    assert set(seen) == set(range(11))


def test_the_seed_of_a_sample_does_not_depend_on_who_loads_it() -> None:
    ratios = aspect_ratios(20, 20)
    alone, shared = epoch_of(ratios, 1, 1, seed=5, epoch=3), epoch_of(ratios, 2, 4, seed=5, epoch=3)
    for ranks in (alone, shared):
        for batches in ranks:
            assert all(pick.seed == sample_seed(5, 3, pick.image) for picks in batches for pick in picks)
    assert len({sample_seed(s, e, i) for s in range(10) for e in range(10) for i in range(10)}) == 1000


def test_an_iteration_started_in_the_middle_is_the_rest_of_the_whole() -> None:
    sampler = AspectRatioBatches(aspect_ratios(20, 11), 2, 1, 2)
    whole = list(sampler)
    sampler.start = 4
    assert list(sampler) == whole[4:]
    assert len(sampler) == len(whole)


def test_without_reshuffling_every_epoch_is_the_first() -> None:
    sampler = AspectRatioBatches(aspect_ratios(9, 9), 2, reshuffle=False)
    first = list(sampler)
    sampler.set_epoch(7)
    assert list(sampler) == first


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 7), st.integers(1, 9))
def test_shards_are_complete_disjoint_and_unpadded(images: int, batch: int, world: int) -> None:
    shards = [ExactShards(images, batch, rank, world) for rank in range(world)]
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    picks = [[pick for picks in shard for pick in picks] for shard in shards]
    for rank, own in enumerate(picks):
        assert own == [Pick(image, 0) for image in range(images) if image % world == rank]
    assert all(1 <= len(picks) <= batch for shard in shards for picks in shard)
