"""The order of samples, whatever the sizes."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.order import SampleOrder, rank_part
from tests.helpers import property_test

WORLD_SIZES = (1, 2, 3, 4)
orders = st.builds(
    SampleOrder,
    num_samples=st.integers(1, 150),
    seed=st.integers(0, 2**32),
    shard_slices=st.integers(1, 40),
    pool_shards=st.integers(1, 8),
)


def stream(order: SampleOrder, length: int) -> np.ndarray:
    """The first samples (length, 2), asked for one by one."""
    return np.concatenate([order.global_batch(number, 1) for number in range(length)])


@property_test
@given(orders, st.integers(0, 1000))
def test_every_epoch_is_a_permutation(order: SampleOrder, epoch: int) -> None:
    assert np.array_equal(np.sort(order.epoch(epoch)), np.arange(order.num_samples))


@property_test
@given(orders, st.integers(1, 3), st.integers(0, 50), st.sampled_from(WORLD_SIZES))
def test_the_ranks_parts_are_the_global_batch(order: SampleOrder, size: int, number: int, world_size: int) -> None:
    batch = order.global_batch(number, 12 * size)
    parts = [rank_part(batch, rank, world_size) for rank in range(world_size)]
    assert {len(part) for part in parts} == {12 * size // world_size}, "all ranks make equally many steps"
    assert np.array_equal(np.concatenate(parts), batch)


@property_test
@given(orders, st.integers(1, 64))
def test_every_slice_comes_once_per_epoch(order: SampleOrder, batch_size: int) -> None:
    num_batches = -(-3 * order.num_samples // batch_size)
    samples = np.concatenate([order.global_batch(number, batch_size) for number in range(num_batches)])
    assert (np.diff(samples[:, 0]) >= 0).all()
    for epoch in range(3):
        seen = samples[samples[:, 0] == epoch, 1]
        assert np.array_equal(np.sort(seen), np.arange(order.num_samples))


@property_test
@given(orders, st.integers(1, 20), st.integers(0, 20))
def test_a_resume_goes_on_in_the_same_order(order: SampleOrder, batch_size: int, done: int) -> None:
    whole = stream(order, batch_size * (done + 3))
    again = SampleOrder(order.num_samples, order.seed, order.shard_slices, order.pool_shards)
    rest = np.concatenate([again.global_batch(number, batch_size) for number in range(done, done + 3)])
    assert np.array_equal(rest, whole[done * batch_size :])


@property_test
@given(orders)
def test_a_pool_bounds_the_shards_that_are_open_at_once(order: SampleOrder) -> None:
    """A shard is open from its first slice to its last."""
    shards = order.epoch(0) // order.shard_slices
    places = [np.flatnonzero(shards == shard) for shard in np.unique(shards)]
    opened = np.zeros(order.num_samples, int)
    for place in places:
        opened[place[0] : place[-1] + 1] += 1
    assert opened.max() <= order.pool_shards


def test_seed_and_epoch_change_the_order() -> None:
    order = SampleOrder(100, seed=1, shard_slices=10, pool_shards=3)
    other = SampleOrder(100, seed=2, shard_slices=10, pool_shards=3)
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), other.epoch(0))
    assert not np.array_equal(order.epoch(0), np.arange(100))


def test_a_pool_of_all_shards_mixes_all_of_them() -> None:
    order = SampleOrder(1000, seed=0, shard_slices=10, pool_shards=100)
    assert len(np.unique(order.epoch(0)[:100] // 10)) > 50


def test_shards_come_in_another_order_each_epoch() -> None:
    order = SampleOrder(1000, seed=0, shard_slices=10, pool_shards=1)
    first, second = ([int(index) // 10 for index in order.epoch(epoch)[::10]] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != sorted(first)


def test_the_order_cannot_be_changed_by_a_caller() -> None:
    order = SampleOrder(10, seed=0, shard_slices=3, pool_shards=2)
    with pytest.raises(ValueError, match="read-only"):
        order.epoch(0)[0] = 5


def test_a_batch_that_does_not_divide_is_a_defect() -> None:
    with pytest.raises(AssertionError):
        rank_part(np.zeros((10, 2), np.int64), 0, 3)
