"""The order of samples, whatever the sizes."""

from __future__ import annotations

import hashlib
import math
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from larmor.storage.dataset import layout, writing
from larmor.storage.dataset.dataset import read_split
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.loading.order import SampleOrder, blocks_of, num_lanes
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import global_batch, property_test, random_kspace, stored_volume, write_layout

WORLD_SIZES = (1, 2, 3, 4, 6, 8)


@dataclass(frozen=True)
class Arguments:
    """What an order is made from; blocks of `block_slices` neighbouring slices."""

    num_samples: int
    block_slices: int
    seed: int
    pool_blocks: int
    lanes: int

    @property
    def block_of(self) -> np.ndarray:
        return np.arange(self.num_samples) // self.block_slices

    def make(self) -> SampleOrder:
        return SampleOrder(self.block_of, self.seed, self.pool_blocks, self.lanes)


arguments = st.builds(
    Arguments,
    num_samples=st.integers(1, 150),
    block_slices=st.integers(1, 40),
    seed=st.integers(0, 2**32),
    pool_blocks=st.integers(1, 60),
    lanes=st.sampled_from((1, 2, 4, 6, 8, 16, 128)),
)
orders = arguments.map(Arguments.make)


def stream(order: SampleOrder, length: int) -> np.ndarray:
    """The first samples (length, 2), asked for one by one."""
    return np.concatenate([global_batch(order, number, 1) for number in range(length)])


def most_open(names: np.ndarray) -> int:
    """How many names are open at once, each from its first place to its last."""
    opened = np.zeros(len(names), int)
    for name in np.unique(names):
        places = np.flatnonzero(names == name)
        opened[places[0] : places[-1] + 1] += 1
    return int(opened.max(initial=0))


@property_test
@given(orders, st.integers(0, 1000))
def test_every_epoch_is_a_permutation(order: SampleOrder, epoch: int) -> None:
    assert np.array_equal(np.sort(order.epoch(epoch)), np.arange(order.num_samples))


@property_test
@given(orders, st.integers(1, 64))
def test_every_slice_comes_once_per_epoch(order: SampleOrder, batch_size: int) -> None:
    num_batches = -(-3 * order.num_samples // batch_size)
    samples = np.concatenate([global_batch(order, number, batch_size) for number in range(num_batches)])
    assert (np.diff(samples[:, 0]) >= 0).all()
    for epoch in range(3):
        seen = samples[samples[:, 0] == epoch, 1]
        assert np.array_equal(np.sort(seen), np.arange(order.num_samples))


@property_test
@given(arguments, st.integers(1, 3), st.integers(0, 20), st.sampled_from(WORLD_SIZES), st.sampled_from(WORLD_SIZES))
def test_a_resume_goes_on_in_the_same_order_at_any_world_size(
    given_: Arguments, size: int, done: int, before: int, after: int
) -> None:
    """The ranks of one world consume some batches, those of another the rest, of an order made anew."""
    batch_size, worlds = 24 * size, [before] * done + [after] * 3
    whole = stream(given_.make(), batch_size * len(worlds))
    seen = np.empty_like(whole)
    order = given_.make()
    for number, world_size in enumerate(worlds):
        if number == done:
            order = given_.make()
        batch = seen[number * batch_size : (number + 1) * batch_size]
        for rank in range(world_size):
            batch[rank::world_size] = global_batch(order, number, batch_size)[rank::world_size]
    assert np.array_equal(seen, whole)


@property_test
@given(arguments, st.integers(0, 5))
def test_a_pool_bounds_the_blocks_that_are_open_at_once(given_: Arguments, epoch: int) -> None:
    """A block, or a lane's part of one, is open from its first slice to its last.

    In a lane of c parts with a window of w = max(1, pool_blocks / lanes) that are at most w (c - 1) / (c - w),
    rounded up: w for many parts, all of them up to w, and less than 2 w in any case.
    """
    order, lanes = given_.make(), given_.lanes
    pieces, window = order.pieces(epoch), max(1.0, given_.pool_blocks / lanes)
    for lane in range(lanes):
        count = len(np.unique(pieces[lane::lanes]))
        bound = count if count <= window else math.ceil(window * (count - 1) / (count - window) - 1e-9)
        assert most_open(pieces[lane::lanes]) <= min(count, bound)
    assert most_open(pieces) <= 2 * max(given_.pool_blocks, lanes)


@pytest.mark.parametrize("lanes", [1, 4, 8])
def test_of_many_blocks_hardly_more_than_the_pool_is_open(lanes: int) -> None:
    order = Arguments(num_samples=10_000, block_slices=10, seed=0, pool_blocks=16, lanes=lanes).make()
    assert 8 <= most_open(order.pieces(0)) <= 16 + 2 * lanes


@property_test
@given(arguments, st.integers(0, 5))
def test_a_piece_lies_in_one_block_and_one_lane(given_: Arguments, epoch: int) -> None:
    order, lanes = given_.make(), given_.lanes
    pieces, blocks = order.pieces(epoch), given_.block_of[order.epoch(epoch)]
    for piece in np.unique(pieces):
        places = np.flatnonzero(pieces == piece)
        assert len(set(blocks[places])) == 1
        assert len(set((places % lanes).tolist())) == 1


@property_test
@given(arguments, st.integers(0, 5))
def test_lanes_tear_few_blocks_apart(given_: Arguments, epoch: int) -> None:
    """At most one block at each border between lanes, and one at the place where a lane begins."""
    order = given_.make()
    assert len(np.unique(order.pieces(epoch))) <= order.num_blocks + 2 * (given_.lanes - 1)


@property_test
@given(arguments, st.sampled_from(WORLD_SIZES), st.integers(0, 3))
def test_a_rank_that_divides_the_lanes_reads_whole_blocks(given_: Arguments, world_size: int, epoch: int) -> None:
    """Of all blocks at most one for each border between lanes is read by several ranks."""
    assume(given_.lanes % world_size == 0)
    order = given_.make()
    blocks = given_.block_of[order.epoch(epoch)]
    readers = [set(blocks[rank::world_size].tolist()) for rank in range(world_size)]
    shared = [block for block in range(order.num_blocks) if sum(block in reader for reader in readers) > 1]
    assert len(shared) <= given_.lanes - 1


def test_a_rank_of_four_reads_a_quarter_of_the_blocks() -> None:
    given_ = Arguments(num_samples=6400, block_slices=16, seed=0, pool_blocks=32, lanes=16)
    blocks = given_.block_of[given_.make().epoch(0)]
    for rank in range(4):
        touched, counts = np.unique(blocks[rank::4], return_counts=True)
        assert 100 <= len(touched) <= 108
        assert (counts == 16).sum() >= 92, "nearly all of them whole"
    touched = np.unique(blocks[0::3])
    assert len(touched) == 400, "three do not divide the lanes: a part of every block"


@pytest.mark.parametrize(("batch_size", "lanes"), [(1, 1), (3, 1), (12, 4), (24, 8), (48, 16), (4096, 16)])
def test_the_number_of_lanes_divides_the_batch(batch_size: int, lanes: int) -> None:
    assert num_lanes(batch_size) == lanes
    assert batch_size % lanes == 0


def test_seed_and_epoch_change_the_order() -> None:
    given_ = Arguments(num_samples=100, block_slices=10, seed=1, pool_blocks=3, lanes=2)
    order, other = given_.make(), SampleOrder(given_.block_of, 2, 3, 2)
    assert not np.array_equal(order.epoch(0), order.epoch(1))
    assert not np.array_equal(order.epoch(0), other.epoch(0))
    assert not np.array_equal(order.epoch(0), np.arange(100))


def test_a_pool_of_all_blocks_is_a_uniform_permutation() -> None:
    """Over many epochs every slice comes to every place equally often, and two that were stored side by side
    are as far apart as any: χ² of 15, 225 and 14 degrees of freedom stays below what one in 10⁶ exceeds."""
    num_samples, epochs = 16, 8000
    order = Arguments(num_samples, block_slices=4, seed=7, pool_blocks=4, lanes=1).make()
    places = np.array([np.argsort(order.epoch(epoch)) for epoch in range(epochs)])

    def deviation(counts: np.ndarray, expected: np.ndarray) -> float:
        return float(((counts - expected) ** 2 / expected).sum())

    even = np.full(num_samples, epochs / num_samples)
    firsts = np.bincount([int(order.epoch(epoch)[0]) for epoch in range(epochs)], minlength=num_samples)
    assert deviation(firsts, even) < 56
    counts = np.stack([np.bincount(places[:, index], minlength=num_samples) for index in range(num_samples)])
    assert deviation(counts, np.broadcast_to(even, counts.shape)) < 338
    apart = np.bincount(np.abs(places[:, 0] - places[:, 1]), minlength=num_samples)[1:]
    pairs = np.arange(num_samples - 1, 0, -1)
    assert deviation(apart, epochs * pairs / pairs.sum()) < 54


def test_a_pool_of_all_blocks_mixes_all_of_them() -> None:
    order = Arguments(num_samples=1000, block_slices=10, seed=0, pool_blocks=100, lanes=1).make()
    assert len(np.unique(order.epoch(0)[:100] // 10)) > 50


def test_blocks_come_in_another_order_each_epoch() -> None:
    order = Arguments(num_samples=1000, block_slices=10, seed=0, pool_blocks=1, lanes=1).make()
    first, second = ([int(index) // 10 for index in order.epoch(epoch)[::10]] for epoch in (0, 1))
    assert sorted(first) == sorted(second) == list(range(100))
    assert first != second
    assert first != sorted(first)


@pytest.mark.parametrize("lanes", [1, 4])
def test_neighbours_in_a_block_do_not_stay_neighbours(lanes: int) -> None:
    order = Arguments(num_samples=4000, block_slices=10, seed=0, pool_blocks=8, lanes=lanes).make()
    epoch = order.epoch(0)
    assert (np.abs(np.diff(epoch)) == 1).mean() < 0.05


def test_the_order_cannot_be_changed_by_a_caller() -> None:
    order = Arguments(num_samples=10, block_slices=3, seed=0, pool_blocks=2, lanes=2).make()
    for array in (order.epoch(0), order.pieces(0)):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 5


def test_an_epoch_that_was_forgotten_comes_back_the_same() -> None:
    order = Arguments(num_samples=50, block_slices=4, seed=0, pool_blocks=3, lanes=4).make()
    before = [(order.epoch(epoch).copy(), order.pieces(epoch).copy()) for epoch in range(10)]
    for epoch, (slices, pieces) in enumerate(before):
        assert np.array_equal(order.epoch(epoch), slices)
        assert np.array_equal(order.pieces(epoch), pieces)


def test_every_process_finds_the_same_order() -> None:
    program = (
        "import hashlib, numpy as np; from larmor.storage.loading.order import SampleOrder; "
        "order = SampleOrder(np.arange(500) // 7, 11, 6, 8); "
        "print(hashlib.sha256(order.samples(np.arange(1700)).tobytes()).hexdigest())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=Path(__file__).parents[3],
            env={"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    here = SampleOrder(np.arange(500) // 7, 11, 6, 8).samples(np.arange(1700))
    assert found == {hashlib.sha256(here.tobytes()).hexdigest()}


@pytest.mark.parametrize("block_bytes", [1, 3000, 5000, 10**9])
def test_blocks_are_neighbours_in_one_shard_and_keep_their_bound(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, block_bytes: int
) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 12_000)
    shapes = [(1, 16, 12), (2, 8, 8), (1, 16, 12)]
    volumes = tuple(stored_volume(f"v{n}", f"v{n}", shape, 5 + n) for n, shape in enumerate(shapes))
    store = ObjectStore(tmp_path)
    split = SplitLayout("train", volumes)
    entry = write_layout(store, split, [random_kspace(5 + n, shape) for n, shape in enumerate(shapes)])
    writing.publish(store, {"train": entry}, [])
    info = read_split(store, "train")
    blocks = blocks_of(info, block_bytes)
    assert np.array_equal(np.unique(blocks), np.arange(blocks.max() + 1)), "numbered from 0 without gaps"
    for block in np.unique(blocks):
        members = np.flatnonzero(blocks == block)
        (number,) = set(info.bucket[members].tolist())
        bucket = info.buckets[number]
        assert len(set((info.row[members] // bucket.shard_slices).tolist())) == 1
        assert np.array_equal(np.diff(np.sort(info.row[members])), np.ones(len(members) - 1))
        assert len(members) * bucket.chunk_bytes <= block_bytes or len(members) == 1


def test_a_block_larger_than_a_part_of_its_shard_holds_whole_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shard of 25 slices is stored in parts of 3; a block of at most 8 begins with a part and holds 2 of them."""
    shape = (1, 16, 12)
    chunk = 8 * int(np.prod(shape)) + 4
    monkeypatch.setattr(layout, "SHARD_BYTES", 25 * chunk)
    monkeypatch.setattr(layout, "_PART_BYTES", 3 * chunk)
    monkeypatch.setattr(layout, "_LEAST_PART", 2 * chunk)
    store = ObjectStore(tmp_path)
    entry = write_layout(store, SplitLayout("train", (stored_volume("v", "v", shape, 30),)), [random_kspace(30, shape)])
    writing.publish(store, {"train": entry}, [])
    info = read_split(store, "train")
    assert np.bincount(blocks_of(info, 8 * chunk)).tolist() == [6, 6, 6, 6, 1, 5]
    assert np.bincount(blocks_of(info, 3 * chunk)).tolist() == [3] * 8 + [1, 3, 2]
    assert np.bincount(blocks_of(info, 2 * chunk)).tolist() == [2] * 12 + [1, 2, 2, 1]
