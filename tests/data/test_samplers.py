"""Samplers against counting: every image at most once, as many full batches everywhere, nothing else."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fpn.data.samplers import AspectRatioBatches, ExactShards, Pick, sample_seed
from fpn.errors import InputError

sizes = st.tuples(st.integers(0, 200), st.integers(0, 200), st.integers(1, 7), st.integers(1, 5))


def aspect_ratios(landscape: int, portrait: int) -> np.ndarray:
    rng = np.random.default_rng(landscape * 1000 + portrait)
    return rng.permutation(np.concatenate([rng.uniform(1, 2, landscape), rng.uniform(0.5, 0.99, portrait)]))


def epoch_of(
    ratios: np.ndarray,
    batch: int,
    world: int,
    seed: int = 0,
    epoch: int = 0,
    repeats: np.ndarray | None = None,
) -> list[list[list[Pick]]]:
    ranks = [AspectRatioBatches(ratios, batch, rank, world, seed, repeats=repeats) for rank in range(world)]
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
        with pytest.raises(InputError, match="do not make one batch"):
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


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(1, 4), st.integers(0, 5))
def test_repeated_images_make_as_many_batches_everywhere(
    images: int, batch: int, world: int, epoch: int
) -> None:
    ratios = aspect_ratios(images - images // 3, images // 3)
    repeats = np.random.default_rng(images).uniform(1, 4, images)
    if int(repeats.sum()) < batch * world:
        return
    ranks = epoch_of(ratios, batch, world, epoch=epoch, repeats=repeats)
    assert {len(batches) for batches in ranks} == {int(repeats.sum()) // (batch * world)}
    picks = [pick for batches in ranks for picks in batches for pick in picks]
    assert len(picks) == len(ranks[0]) * batch * world
    counts = Counter(pick.image for pick in picks)
    # Nothing comes more often than ⌈r⌉ times over all processes, and no sample twice.
    assert all(counts[image] <= np.ceil(repeats[image]) for image in range(images))
    assert len({pick.seed for pick in picks}) == len(picks)
    # What comes fewer than ⌊r⌋ times has been left out, of which there is less than a step, and the one over.
    lacking = sum(max(int(repeats[image]) - counts[image], 0) for image in range(images))
    assert lacking <= batch * world


def test_over_many_epochs_an_image_comes_as_often_as_it_should() -> None:
    repeats = np.array([1.0, 1.25, 1.5, 2.0, 2.9, 1.0, 3.35])  # 13 in all
    sampler, epochs = AspectRatioBatches(np.ones(7), 1, repeats=repeats), 3000
    counts: Counter[int] = Counter()
    together: Counter[int] = Counter()
    for epoch in range(epochs):
        sampler.set_epoch(epoch)
        of_epoch = Counter(pick.image for (pick,) in sampler)
        assert sum(of_epoch.values()) == 13
        assert all(
            of_epoch[image] in (int(repeats[image]), int(np.ceil(repeats[image]))) for image in range(7)
        )
        counts.update(of_epoch)
        together[(of_epoch[1] > 1) + 2 * (of_epoch[2] > 1)] += 1
    for image, expected in enumerate(repeats):
        # Four standard deviations of what is drawn for each.
        fraction = expected % 1
        assert (
            abs(counts[image] / epochs - expected) <= 4 * (fraction * (1 - fraction) / epochs) ** 0.5 + 1e-9
        )
    assert set(together) == {0, 1, 2, 3}


def test_an_image_that_comes_again_is_drawn_for_anew() -> None:
    batches = epoch_of(np.ones(3), 1, 1, seed=4, epoch=2, repeats=np.full(3, 3.0))
    seeds = {(pick.image, pick.seed) for ((pick,),) in zip(*batches, strict=True)}
    assert seeds == {(image, sample_seed(4, 2, image, time)) for image in range(3) for time in range(3)}
    assert sample_seed(4, 2, 1, 0) == sample_seed(4, 2, 1)


def test_without_repeats_an_epoch_is_what_it_was() -> None:
    ratios = aspect_ratios(20, 11)
    assert epoch_of(ratios, 2, 2, 1, 3) == epoch_of(ratios, 2, 2, 1, 3, repeats=np.ones(31))


@settings(deadline=None)
@given(st.integers(0, 100), st.integers(1, 7), st.integers(1, 9))
def test_shards_are_complete_disjoint_and_unpadded(images: int, batch: int, world: int) -> None:
    shards = [ExactShards(images, batch, rank, world) for rank in range(world)]
    assert [len(shard) for shard in shards] == [len(list(shard)) for shard in shards]
    picks = [[pick for picks in shard for pick in picks] for shard in shards]
    for rank, own in enumerate(picks):
        assert own == [Pick(image, 0) for image in range(images) if image % world == rank]
    assert all(1 <= len(picks) <= batch for shard in shards for picks in shard)
