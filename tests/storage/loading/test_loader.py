"""Batches of the ranks, put together, are the global order; what is in memory has a bound."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.dataset import dataset, layout, writing
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.loading.loader import Allocate, Batch, Loader, Share
from larmor.storage.loading.order import SampleOrder, StoredOrder, num_lanes
from larmor.storage.loading.reader import ReadOptions, SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import (
    SHAPE,
    flip_byte,
    global_batch,
    property_test,
    random_kspace,
    stored_volume,
    write_dataset,
    write_layout,
)

NUM_SLICES = 37
GLOBAL_BATCH = 24
CHUNK = 8 * int(np.prod(SHAPE)) + 4
KSPACE = random_kspace(NUM_SLICES)
OTHER_SHAPE = (2, 8, 10)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Shards of four slices."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 4 * (CHUNK - 4))
    store = ObjectStore(tmp_path / "data")
    write_dataset(store, {"train": KSPACE})
    return store


@contextmanager
def opened(store: ObjectStore, **options: Any) -> Iterator[SliceReader]:
    reader = SliceReader(store, dataset.read_split(store, "train"), ReadOptions(**{"num_threads": 2, **options}))
    try:
        yield reader
    finally:
        reader.close()


@pytest.fixture
def reader(store: ObjectStore) -> Iterator[SliceReader]:
    with opened(store, block_bytes=3 * CHUNK, memory_bytes=10_000) as reader:
        yield reader


def make_order(num_samples: int = NUM_SLICES, block_slices: int = 3, batch_size: int = GLOBAL_BATCH) -> SampleOrder:
    return SampleOrder(np.arange(num_samples) // block_slices, 3, 4, num_lanes(batch_size))


def take(
    reader: SliceReader,
    order: SampleOrder,
    share: Share,
    first_batch: int,
    num_batches: int,
    read_ahead_bytes: int = 20_000,
) -> list[Batch]:
    """Some global batches of one rank, as micro-batches."""
    batches = Loader(reader, order, share, read_ahead_bytes).batches(first_batch)
    found = list(islice(batches, num_batches * share.num_micro_batches))
    batches.close()
    return found


def kspace_of(batch: Batch) -> np.ndarray:
    """Of a batch of one shape, in its order."""
    (group,) = batch.groups
    assert np.array_equal(group.rows, np.arange(len(batch.samples)))
    return group.kspace


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.samples, other.samples)
        for group, like in zip(one.groups, other.groups, strict=True):
            assert np.array_equal(group.rows, like.rows)
            assert np.array_equal(group.kspace, like.kspace)


class TestEpoch:
    @pytest.mark.parametrize("num_samples", [NUM_SLICES, 30, 3])
    @pytest.mark.parametrize("world_size", [1, 3, 4])
    @pytest.mark.parametrize("stored", [True, False])
    def test_the_ranks_have_it_once(self, reader: SliceReader, world_size: int, num_samples: int, stored: bool) -> None:
        order = StoredOrder(reader.block_of) if stored else make_order()
        wanted = order.epoch(2)[:num_samples]
        assert not stored or np.array_equal(order.epoch(2), np.arange(NUM_SLICES))
        for rank in range(world_size):
            share = Share(rank, world_size, 5 * world_size, 1)
            batches = list(Loader(reader, order, share, 20_000).epoch(2, num_samples))
            assert all(len(batch.samples) == 5 for batch in batches[:-1])
            found = [sample for batch in batches for sample in batch.samples.tolist()]
            assert found == [[2, index] for index in wanted[rank::world_size]]
            for batch in batches:
                assert np.array_equal(kspace_of(batch), KSPACE[batch.samples[:, 1]])

    def test_one_rank_reads_each_block_at_once(self, store: ObjectStore) -> None:
        for make in (StoredOrder, lambda block_of: SampleOrder(block_of, 0, 2)):
            with opened(store, block_bytes=3 * CHUNK) as reader:
                loader = Loader(reader, make(reader.block_of), Share(0, 1, 4, 1))
                assert sum(len(batch.samples) for batch in loader.epoch(0)) == NUM_SLICES
                assert reader.counts.num_requests == reader.block_of.max() + 1


class TestOrder:
    @pytest.mark.parametrize("accumulation", [1, 2])
    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    @pytest.mark.parametrize("first_batch", [0, 5])
    def test_the_ranks_together_follow_the_global_order(
        self, reader: SliceReader, world_size: int, accumulation: int, first_batch: int
    ) -> None:
        order = make_order()
        shares = [Share(rank, world_size, GLOBAL_BATCH, accumulation) for rank in range(world_size)]
        ranks = [take(reader, order, share, first_batch, num_batches=4) for share in shares]
        for number in range(4):
            samples = np.empty((GLOBAL_BATCH, 2), np.int64)
            kspace = np.empty((GLOBAL_BATCH, *SHAPE), np.complex64)
            for rank, batches in enumerate(ranks):
                parts = batches[number * accumulation : (number + 1) * accumulation]
                assert {len(part.samples) for part in parts} == {GLOBAL_BATCH // world_size // accumulation}
                samples[rank::world_size] = np.concatenate([part.samples for part in parts])
                kspace[rank::world_size] = np.concatenate([kspace_of(part) for part in parts])
            assert np.array_equal(samples, global_batch(order, first_batch + number, GLOBAL_BATCH))
            assert np.array_equal(kspace, KSPACE[samples[:, 1]])

    @pytest.mark.parametrize("first_batch", [1, 4, 40])
    def test_a_start_in_the_middle_goes_on_exactly(self, reader: SliceReader, first_batch: int) -> None:
        order, share = make_order(batch_size=10), Share(1, 2, 10, 1)
        whole = take(reader, order, share, 0, num_batches=first_batch + 5)
        rest = take(reader, make_order(batch_size=10), share, first_batch, num_batches=5)
        assert_equal(whole[first_batch:], rest)

    @pytest.mark.parametrize(("before", "after"), [(1, 4), (4, 1), (2, 3), (3, 8)])
    def test_another_world_size_goes_on_exactly(self, reader: SliceReader, before: int, after: int) -> None:
        order, seen = make_order(), []
        for world_size, first_batch, num_batches in ((before, 0, 3), (after, 3, 4)):
            shares = [Share(rank, world_size, GLOBAL_BATCH, 1) for rank in range(world_size)]
            ranks = [take(reader, make_order(), share, first_batch, num_batches) for share in shares]
            for number in range(num_batches):
                batch = np.empty((GLOBAL_BATCH, 2), np.int64)
                for rank, batches in enumerate(ranks):
                    batch[rank::world_size] = batches[number].samples
                    assert np.array_equal(kspace_of(batches[number]), KSPACE[batches[number].samples[:, 1]])
                seen.append(batch)
        stream = np.concatenate(seen)
        assert np.array_equal(stream, np.concatenate([global_batch(order, n, GLOBAL_BATCH) for n in range(7)]))
        assert np.array_equal(np.sort(stream[: 4 * NUM_SLICES, 1]), np.repeat(np.arange(NUM_SLICES), 4))

    def test_how_slices_are_read_changes_nothing(self, store: ObjectStore) -> None:
        """Threads, read-ahead, block size and memory of the reader; the order is given."""
        results = []
        for options, read_ahead in (
            ({"num_threads": 1, "block_bytes": 3 * CHUNK}, 0),
            ({"num_threads": 4, "block_bytes": 3 * CHUNK}, 10**6),
            ({"num_threads": 4, "block_bytes": 1}, 50_000),
            ({"num_threads": 3, "block_bytes": 10**6, "memory_bytes": 10**6}, 3 * CHUNK),
        ):
            with opened(store, **options) as reader:
                order = make_order(batch_size=10)
                results.append(take(reader, order, Share(0, 1, 10, 2), 0, 8, read_ahead_bytes=read_ahead))
        for other in results[1:]:
            assert_equal(results[0], other)

    @pytest.mark.parametrize(("first_batch", "end"), [(0, 3), (2, 3), (3, 3), (1, 8)])
    @pytest.mark.parametrize("read_ahead_bytes", [0, 10**6])
    def test_it_ends_where_it_is_told_to(
        self, reader: SliceReader, first_batch: int, end: int, read_ahead_bytes: int
    ) -> None:
        """And asks for no slice beyond the blocks of the last batch."""
        order, share = make_order(batch_size=12), Share(1, 2, 12, 2)
        batches = list(Loader(reader, order, share, read_ahead_bytes).batches(first_batch, end))
        assert len(batches) == 2 * (end - first_batch)
        expected = [global_batch(order, number, 12)[1::2] for number in range(first_batch, end)]
        assert np.array_equal(
            np.concatenate([np.empty((0, 2), np.int64), *(batch.samples for batch in batches)]),
            np.concatenate([np.empty((0, 2), np.int64), *expected]),
        )
        blocks = reader.block_of[np.concatenate([np.empty(0, np.int64), *(samples[:, 1] for samples in expected)])]
        assert reader.counts.bytes_read <= len(blocks) * 3 * CHUNK

    def test_an_epoch_smaller_than_a_batch_is_repeated(self, tmp_path: Path) -> None:
        store = ObjectStore(tmp_path)
        write_dataset(store, {"train": KSPACE[:3]})
        with opened(store) as reader:
            order = make_order(3, 2, 8)
            batches = take(reader, order, Share(1, 2, 8, 1), 0, num_batches=6)
        samples = np.concatenate([batch.samples for batch in batches])
        assert np.array_equal(samples, np.concatenate([global_batch(order, n, 8)[1::2] for n in range(6)]))
        for batch in batches:
            assert np.array_equal(kspace_of(batch), KSPACE[batch.samples[:, 1]])

    @pytest.mark.parametrize("world_size", [1, 2, 3, 4])
    def test_every_slice_is_asked_for_once_per_epoch(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch, world_size: int
    ) -> None:
        """By all ranks together, over three epochs; of a fourth one some are asked for in advance."""
        asked = np.zeros(NUM_SLICES, int)
        for rank in range(world_size):
            with opened(store, block_bytes=3 * CHUNK) as reader:
                fetch = reader.fetch

                def counted(into: dict[int, np.ndarray], fetch: Any = fetch) -> Future[Any]:
                    asked[list(into)] += 1
                    return fetch(into)

                monkeypatch.setattr(reader, "fetch", counted)
                take(reader, make_order(batch_size=12), Share(rank, world_size, 12, 1), 0, 3 * NUM_SLICES // 12, 0)
        assert set(asked.tolist()) <= {3, 4}
        assert (asked == 3).any()


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> tuple[ObjectStore, list[np.ndarray]]:
    """Volumes of two shapes by turns, and their slices."""
    store = ObjectStore(tmp_path_factory.mktemp("mixed"))
    shapes = [SHAPE, OTHER_SHAPE, SHAPE, OTHER_SHAPE]
    volumes = tuple(stored_volume(f"v{n}", f"v{n}", shape, 4 + n) for n, shape in enumerate(shapes))
    kspace = [random_kspace(4 + n, shape, n) for n, shape in enumerate(shapes)]
    writing.publish(store, {"train": write_layout(store, SplitLayout("train", volumes), kspace)}, [])
    return store, [item for volume in kspace for item in volume]


class TestBatch:
    @pytest.mark.parametrize("world_size", [1, 2])
    def test_slices_of_unequal_shape_stand_in_groups(
        self, mixed: tuple[ObjectStore, list[np.ndarray]], world_size: int
    ) -> None:
        store, slices = mixed
        with opened(store, block_bytes=3000) as reader:
            order = SampleOrder(reader.block_of, 0, 3, num_lanes(8))
            for rank in range(world_size):
                batches = take(reader, order, Share(rank, world_size, 8, 1), 0, num_batches=8)
                assert 2 in {len(batch.groups) for batch in batches}
                for number, batch in enumerate(batches):
                    assert np.array_equal(batch.samples, global_batch(order, number, 8)[rank::world_size])
                    rows = np.concatenate([group.rows for group in batch.groups])
                    assert np.array_equal(np.sort(rows), np.arange(8 // world_size))
                    for group in batch.groups:
                        for row, values in zip(group.rows, group.kspace, strict=True):
                            assert np.array_equal(values, slices[batch.samples[row, 1]])

    @property_test
    @given(st.lists(st.sampled_from([(1, 2, 3), (2, 2, 3), (1, 3, 2)]), min_size=1, max_size=8), st.booleans())
    def test_gathering_puts_every_slice_in_its_row(self, shapes: list[tuple[int, int, int]], own: bool) -> None:
        slices = [random_kspace(1, shape, seed)[0] for seed, shape in enumerate(shapes)]
        samples = np.stack([np.zeros(len(shapes), np.int64), np.arange(len(shapes))], axis=1)
        asked: list[tuple[int, ...]] = []

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            asked.append(shape)
            return np.full(shape, np.nan, np.complex64)

        batch = Batch.gather(slices, samples, allocate if own else None)
        assert len(batch.groups) == len(set(shapes))
        assert asked == ([group.kspace.shape for group in batch.groups] if own else [])
        found = {
            int(row): values for group in batch.groups for row, values in zip(group.rows, group.kspace, strict=True)
        }
        assert found.keys() == set(range(len(shapes)))
        assert all(np.array_equal(found[row], slices[row]) for row in found)
        assert batch.samples is samples

    def test_a_batch_of_equal_shapes_is_one_group(self) -> None:
        kspace, samples = random_kspace(4), np.zeros((4, 2), np.int64)
        batch = Batch.of(kspace, samples)
        assert kspace_of(batch) is kspace

    def test_the_memory_of_a_batch_is_not_used_again_while_it_is_held(self, reader: SliceReader) -> None:
        batches = Loader(reader, make_order(), Share(0, 1, GLOBAL_BATCH, 1)).batches(0)
        held = list(islice(batches, 12))
        batches.close()
        for batch in held:
            assert np.array_equal(kspace_of(batch), KSPACE[batch.samples[:, 1]])
        places = {kspace_of(batch).__array_interface__["data"][0] for batch in held}
        assert len(places) == len(held)

    def test_the_caller_chooses_the_memory(self, reader: SliceReader) -> None:
        made: list[np.ndarray] = []

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            made.append(np.empty(shape, np.complex64))
            return made[-1]

        batches = Loader(reader, make_order(), Share(0, 1, GLOBAL_BATCH, 1), allocate=allocate).batches(0)
        kspace = kspace_of(next(batches))
        assert any(kspace is array for array in made)
        batches.close()


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> ObjectStore:
    store = ObjectStore(tmp_path_factory.mktemp("large"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "SHARD_BYTES", 100 * (CHUNK - 4))
        write_dataset(store, {"train": random_kspace(TestMemory.NUM_SLICES)})
    return store


class TestMemory:
    """The data set is much larger than what is mixed and read ahead."""

    NUM_SLICES, BLOCK, POOL = 1200, 5, 4

    def watch(self) -> tuple[Allocate, Callable[[], int]]:
        """What makes a loader's batches, and how many slices there is room for in those that anyone holds."""
        alive: list[weakref.ref[np.ndarray]] = []

        def allocate(shape: tuple[int, ...]) -> np.ndarray:
            array = np.empty(shape, np.complex64)
            alive.append(weakref.ref(array))
            return array

        return allocate, lambda: sum(len(array) for found in alive if (array := found()) is not None)

    @pytest.mark.parametrize(("world_size", "batch_size"), [(1, 1), (1, 8), (4, 8), (3, 6)])
    def test_few_slices_are_in_memory_at_any_time(self, large: ObjectStore, world_size: int, batch_size: int) -> None:
        """Those that the open windows of this rank reach, and what was asked for in advance."""
        num_ahead = 4
        with opened(large, block_bytes=self.BLOCK * CHUNK, num_threads=2) as reader:
            allocate, count = self.watch()
            lanes = num_lanes(batch_size)
            order = SampleOrder(reader.block_of, 0, self.POOL, lanes)
            share = Share(0, world_size, batch_size, 1)
            loader = Loader(reader, order, share, num_ahead * share.micro_batch_size * CHUNK, allocate)
            batches, most, seen = loader.batches(0), 0, 0
            for batch in islice(batches, self.NUM_SLICES // batch_size):
                most, seen = max(most, count()), seen + len(batch.samples)
            batches.close()
            own_lanes = lanes // world_size if lanes % world_size == 0 else lanes
            open_blocks = 2 * max(self.POOL, lanes) * own_lanes // lanes
            ahead = (num_ahead + 2) * share.micro_batch_size
            assert seen == self.NUM_SLICES // batch_size * share.micro_batch_size
            assert 0 < most <= open_blocks * self.BLOCK + ahead < self.NUM_SLICES // 3

    def test_a_batch_that_was_consumed_is_let_go(self, large: ObjectStore) -> None:
        """With blocks of one slice nothing stays but what was asked for in advance."""
        with opened(large, block_bytes=1) as reader:
            allocate, count = self.watch()
            order = SampleOrder(reader.block_of, 0, 50, num_lanes(8))
            batches = Loader(reader, order, Share(0, 1, 8, 1), 0, allocate).batches(0)
            for _ in islice(batches, 60):
                assert count() <= 3 * 8
            batches.close()


class TestEnd:
    def test_closing_leaves_no_threads(self, store: ObjectStore) -> None:
        before = set(threading.enumerate())
        with opened(store, num_threads=4) as reader:
            batches = Loader(reader, make_order(batch_size=10), Share(0, 1, 10, 1)).batches(0)
            next(batches)
            assert set(threading.enumerate()) > before
            batches.close()
        assert set(threading.enumerate()) == before

    def test_closing_stops_reading_ahead(self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
        """What was asked for and has not begun is dropped; what is under way is waited for."""
        with opened(store, num_threads=1, block_bytes=1) as reader:
            futures: list[Future[Any]] = []
            fetch = reader.fetch

            def noted(into: dict[int, np.ndarray]) -> Future[Any]:
                futures.append(fetch(into))
                return futures[-1]

            monkeypatch.setattr(reader, "fetch", noted)
            read, allowed = reader._store.read_into, threading.Semaphore(12)  # enough for the first batch
            monkeypatch.setattr(reader._store, "read_into", lambda *a: (allowed.acquire(timeout=30), read(*a))[1])
            batches = Loader(reader, make_order(37, 1, 4), Share(0, 1, 4, 1), 10**6).batches(0)
            next(batches)
            timer = threading.Timer(0.2, allowed.release, [1000])
            timer.start()
            batches.close()
            timer.join()  # the next test counts threads
        assert len(futures) > 37, "more than an epoch was asked for in advance"
        assert all(future.done() for future in futures)
        assert sum(future.cancelled() for future in futures) >= len(futures) // 2

    def test_nothing_is_left_in_shared_memory(self, store: ObjectStore) -> None:
        def used() -> int:  # by this process: others have their own there
            return Path("/proc/self/maps").read_text().count("/dev/shm")

        before = used()
        with opened(store) as reader:
            batches = Loader(reader, make_order(), Share(0, 1, GLOBAL_BATCH, 1)).batches(0)
            list(islice(batches, 5))
            assert used() == before
            batches.close()

    @pytest.mark.parametrize("read_ahead_bytes", [0, 10**6])
    def test_damage_reaches_the_consumer_and_leaves_no_threads(self, store: ObjectStore, read_ahead_bytes: int) -> None:
        before = set(threading.enumerate())
        flip_byte(store, "train/kspace/c/2/0/0/0", 5)
        with opened(store) as reader:
            loader = Loader(reader, make_order(), Share(0, 1, 6, 1), read_ahead_bytes)
            batches = loader.batches(0)

            def consume() -> None:
                for batch in islice(batches, 7):
                    assert np.array_equal(kspace_of(batch), KSPACE[batch.samples[:, 1]])

            with pytest.raises(InputError, match="train/kspace/c/2/0/0/0: slice 8 is damaged"):
                consume()
            with pytest.raises(StopIteration):
                next(batches)
        assert set(threading.enumerate()) == before

    def test_of_few_slices_no_more_than_an_epoch_is_read_ahead(self, store: ObjectStore) -> None:
        with opened(store) as reader:
            batches = Loader(reader, make_order(batch_size=10), Share(0, 1, 10, 1), read_ahead_bytes=10**9).batches(0)
            next(batches)
            batches.close()
            assert reader.counts.bytes_read <= 2 * (NUM_SLICES + 10) * CHUNK

    def test_two_generators_of_one_loader_do_not_disturb_each_other(self, reader: SliceReader) -> None:
        loader = Loader(reader, make_order(), Share(0, 1, GLOBAL_BATCH, 1))
        first, second = loader.batches(0), loader.batches(2)
        list(islice(first, 2))
        for _ in range(4):
            assert_equal([next(first)], [next(second)])
        first.close()
        second.close()
