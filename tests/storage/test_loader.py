"""Batches of the ranks, put together, are the global order."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from storage import dataset
from storage.errors import InputError
from storage.loader import Batch, DataConfig, Loader, Share, open_reader
from storage.object_store import ObjectStore
from storage.order import SampleOrder
from storage.shards import SliceReader
from tests.helpers import SHAPE, flip_byte, random_kspace, write_dataset

NUM_SLICES = 37
GLOBAL_BATCH = 24


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 4 * 8 * int(np.prod(SHAPE)))
    store = ObjectStore(tmp_path / "data")
    write_dataset(store, {"train": random_kspace(NUM_SLICES)})
    return store


@pytest.fixture
def reader(store: ObjectStore) -> Iterator[SliceReader]:
    reader = SliceReader(store, "train", num_threads=2, cache_bytes=10_000)
    yield reader
    reader.close()


def order(reader: SliceReader) -> SampleOrder:
    return SampleOrder(NUM_SLICES, seed=3, shard_slices=reader.info.shard_slices, pool_shards=2)


def take(reader: SliceReader, share: Share, first_batch: int, num_batches: int, read_ahead: int = 3) -> list[Batch]:
    """Some global batches of one rank, as micro-batches."""
    batches = Loader(reader, order(reader), share, read_ahead).batches(first_batch)
    found = list(islice(batches, num_batches * share.num_micro_batches))
    batches.close()
    return found


@pytest.mark.parametrize("accumulation", [1, 2])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("first_batch", [0, 5])
def test_the_ranks_together_follow_the_global_order(
    reader: SliceReader, world_size: int, accumulation: int, first_batch: int
) -> None:
    shares = [Share(rank, world_size, GLOBAL_BATCH, accumulation) for rank in range(world_size)]
    ranks = [take(reader, share, first_batch, num_batches=4) for share in shares]
    stored = np.stack(reader.read(range(NUM_SLICES)))
    for number in range(4):
        steps = slice(number * accumulation, (number + 1) * accumulation)
        parts = [batch for rank in ranks for batch in rank[steps]]
        assert {len(batch.samples) for batch in parts} == {GLOBAL_BATCH // world_size // accumulation}
        samples = np.concatenate([batch.samples for batch in parts])
        assert np.array_equal(samples, order(reader).global_batch(first_batch + number, GLOBAL_BATCH))
        kspace = np.concatenate([batch.kspace for batch in parts])
        assert np.array_equal(kspace, stored[samples[:, 1]])


def test_a_start_in_the_middle_goes_on_exactly(reader: SliceReader) -> None:
    share = Share(1, 2, 10, 1)
    whole, rest = take(reader, share, 0, num_batches=9), take(reader, share, 4, num_batches=5)
    for expected, found in zip(whole[4:], rest, strict=True):
        assert np.array_equal(expected.samples, found.samples)
        assert np.array_equal(expected.kspace, found.kspace)


def test_threads_and_read_ahead_change_nothing(store: ObjectStore) -> None:
    results = []
    for num_threads, read_ahead in ((1, 1), (4, 1), (4, 7)):
        reader = SliceReader(store, "train", num_threads)
        results.append(take(reader, Share(0, 1, 10, 2), 0, num_batches=8, read_ahead=read_ahead))
        reader.close()
    for other in results[1:]:
        for expected, found in zip(results[0], other, strict=True):
            assert np.array_equal(expected.samples, found.samples)
            assert np.array_equal(expected.kspace, found.kspace)


def test_closing_leaves_no_threads(store: ObjectStore) -> None:
    before = set(threading.enumerate())
    reader = SliceReader(store, "train", num_threads=4)
    batches = Loader(reader, order(reader), Share(0, 1, 10, 1), read_ahead=5).batches(0)
    next(batches)
    assert set(threading.enumerate()) > before
    batches.close()
    reader.close()
    assert set(threading.enumerate()) == before


def test_damage_reaches_the_consumer_and_leaves_no_threads(store: ObjectStore) -> None:
    before = set(threading.enumerate())
    flip_byte(store, "train/kspace/c/2/0/0/0", 5)
    reader = SliceReader(store, "train", num_threads=2)
    batches = Loader(reader, order(reader), Share(0, 1, NUM_SLICES, 1), read_ahead=2).batches(0)
    with pytest.raises(InputError, match="train/kspace/c/2/0/0/0: slice 8 is damaged"):
        next(batches)
    reader.close()
    assert set(threading.enumerate()) == before


def test_a_reader_opens_from_the_configuration(store: ObjectStore) -> None:
    reader = open_reader(DataConfig(url=store.url), "train")
    assert reader.info.num_slices == NUM_SLICES
    reader.close()
    with pytest.raises(InputError, match="has no split 'test'"):
        open_reader(DataConfig(url=store.url), "test")
