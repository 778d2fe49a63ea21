"""Reading slices: the same bytes as zarr reads, in few requests, and no damage goes unseen."""

from __future__ import annotations

import gc
import weakref
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from storage import dataset
from storage.errors import InputError
from storage.object_store import ObjectStore
from storage.shards import ByteRange, SliceReader, plan_ranges
from tests.helpers import SHAPE, flip_byte, property_test, random_kspace, write_dataset

CHUNK = 8 * int(np.prod(SHAPE)) + 4
NUM_SLICES = 18  # four shards of four slices, and one of two


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dataset, "SHARD_BYTES", 4 * 8 * int(np.prod(SHAPE)))


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    store = ObjectStore(tmp_path / "data")
    write_dataset(store, {"train": random_kspace(NUM_SLICES)})
    return store


def count_requests(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None, int | None]]:
    """The requests that go to the store from now on."""
    requests, read = [], store.read

    def counted(path: str, start: int | None = None, stop: int | None = None) -> bytes:
        requests.append((path, start, stop))
        return read(path, start, stop)

    monkeypatch.setattr(store, "read", counted)
    return requests


@pytest.mark.parametrize("num_threads", [1, 4])
def test_slices_are_bit_identical_to_what_zarr_reads(store: ObjectStore, num_threads: int) -> None:
    expected = zarr.open_group(store.url, mode="r")["train/kspace"][:]
    reader = SliceReader(store, "train", num_threads)
    order = np.random.default_rng(0).permutation(NUM_SLICES).tolist()
    found = reader.read(order)
    reader.close()
    assert expected.shape == (NUM_SLICES, *SHAPE)
    for index, values in zip(order, found, strict=True):
        assert values.dtype == np.complex64
        assert values.tobytes() == expected[index].tobytes()


def test_slices_of_zeros_are_slices_too(tmp_path: Path) -> None:
    kspace = random_kspace(NUM_SLICES)
    kspace[[0, 5]] = 0
    kspace[8:12] = 0  # a whole shard
    kspace[NUM_SLICES - 1] = 0
    store = ObjectStore(tmp_path / "zeros")
    write_dataset(store, {"train": kspace})
    reader = SliceReader(store, "train")
    assert np.array_equal(np.stack(reader.read(range(NUM_SLICES))), kspace)
    reader.close()
    assert np.array_equal(zarr.open_group(store.url, mode="r")["train/kspace"][:], kspace)
    last = max(path for path in store.list() if path.startswith("train/kspace/c/"))
    assert store.size(last) == 2 * CHUNK + 4 * 16 + 4, "the last shard holds no slices beyond the end"


def test_repeats_are_read_once_and_returned_each(store: ObjectStore) -> None:
    reader = SliceReader(store, "train")
    found = reader.read([7, 2, 7, 7])
    reader.close()
    assert np.array_equal(found[0], found[2])
    assert np.array_equal(found[0], found[3])
    assert not np.array_equal(found[0], found[1])
    assert reader.bytes_read == 2 * CHUNK


def test_neighbours_travel_in_one_request(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = SliceReader(store, "train")
    requests = count_requests(store, monkeypatch)
    reader.read([2, 0, 1, 3])
    assert len(requests) == 2, "one for the shard's index, one for its four slices"
    reader.read([0, 3, 4])
    assert len(requests) == 5, "the index of the first shard is known"
    reader.close()


def test_the_cache_keeps_its_bound_and_the_newest(store: ObjectStore) -> None:
    reader = SliceReader(store, "train", cache_bytes=3 * 8 * int(np.prod(SHAPE)) + 7)
    alive = [weakref.ref(reader.read([index])[0]) for index in range(NUM_SLICES)]
    gc.collect()
    kept = [index for index, slice_ in enumerate(alive) if slice_() is not None]
    assert kept == [NUM_SLICES - 3, NUM_SLICES - 2, NUM_SLICES - 1]
    before = reader.bytes_read
    reader.read(kept)
    assert reader.bytes_read == before
    reader.read([kept[0], 0])  # the oldest is used again, so that the next one goes
    assert reader.bytes_read == before + CHUNK
    reader.read([kept[0], kept[2]])
    assert reader.bytes_read == before + CHUNK
    reader.read([kept[1]])
    assert reader.bytes_read == before + 2 * CHUNK
    reader.close()


def test_a_call_larger_than_the_cache_is_served(store: ObjectStore) -> None:
    reader = SliceReader(store, "train", cache_bytes=3 * CHUNK)
    found = [weakref.ref(values) for values in reader.read(range(NUM_SLICES))]
    gc.collect()
    assert sum(slice_() is not None for slice_ in found) <= 3
    reader.close()


def test_without_a_cache_nothing_is_kept(store: ObjectStore) -> None:
    reader = SliceReader(store, "train", cache_bytes=0)
    reader.read([1])
    reader.read([1])
    assert reader.bytes_read == 2 * CHUNK
    reader.close()


class TestDamage:
    """Shard 1 holds the slices 4 to 7; its path is part of every message."""

    SHARD = "train/kspace/c/1/0/0/0"

    def check(self, store: ObjectStore, index: int, reason: str) -> None:
        reader = SliceReader(store, "train")
        try:
            with pytest.raises(InputError, match=f"{store.url}/{self.SHARD}: {reason}.*; convert the data again"):
                reader.read([0, index])
            assert len(reader.read([0, 8, 17])) == 3, "other shards are well"
        finally:
            reader.close()

    @pytest.mark.parametrize("place", [0, CHUNK // 2, CHUNK - 1])
    @pytest.mark.parametrize("row", [0, 3])
    def test_a_flipped_byte_of_a_slice(self, store: ObjectStore, row: int, place: int) -> None:
        flip_byte(store, self.SHARD, row * CHUNK + place)
        self.check(store, 4 + row, f"slice {4 + row} is damaged")
        reader = SliceReader(store, "train")
        assert len(reader.read([index for index in range(NUM_SLICES) if index != 4 + row])) == NUM_SLICES - 1
        reader.close()

    @pytest.mark.parametrize("place", [-1, -4, -5, -68])
    def test_a_flipped_byte_of_the_index(self, store: ObjectStore, place: int) -> None:
        flip_byte(store, self.SHARD, place)
        self.check(store, 5, "the shard's index is damaged")

    @pytest.mark.parametrize("left", [0, 10, CHUNK, 4 * CHUNK + 67])
    def test_a_shard_cut_short(self, store: ObjectStore, left: int) -> None:
        store.write(self.SHARD, store.read(self.SHARD)[:left])
        self.check(store, 5, "the shard's index is damaged")

    def test_a_missing_shard(self, store: ObjectStore) -> None:
        store.delete(self.SHARD)
        self.check(store, 5, "the shard is missing")

    def test_a_shard_that_goes_missing_while_it_is_read(self, store: ObjectStore) -> None:
        reader = SliceReader(store, "train")
        reader.read([4])
        store.delete(self.SHARD)
        with pytest.raises(InputError, match=f"{self.SHARD}: the shard is missing"):
            reader.read([5])
        reader.close()

    def test_a_slice_beyond_the_end(self, store: ObjectStore) -> None:
        reader = SliceReader(store, "train")
        with pytest.raises(InputError, match=r"train/kspace/c/4/0/0/0: slice 18 is not in its shard"):
            reader.read([NUM_SLICES])
        reader.close()


class TestPlan:
    """Shards of 8 slices of 100 bytes each, stored from the last to the first."""

    @staticmethod
    def locate(index: int) -> tuple[int, int]:
        start = (7 - index % 8) * 100
        return start, start + 100

    @pytest.mark.parametrize(
        ("wanted", "max_gap", "max_bytes", "expected"),
        [
            ([], 0, 1000, []),
            ([3], 0, 1, [ByteRange(0, 400, 500, (3,))]),
            ([1, 2], 0, 1000, [ByteRange(0, 500, 700, (2, 1))]),
            ([1, 3], 99, 1000, [ByteRange(0, 400, 500, (3,)), ByteRange(0, 600, 700, (1,))]),
            ([1, 3], 100, 1000, [ByteRange(0, 400, 700, (3, 1))]),
            ([0, 1, 2], 0, 200, [ByteRange(0, 500, 700, (2, 1)), ByteRange(0, 700, 800, (0,))]),
            ([7, 8], 10**6, 10**6, [ByteRange(0, 0, 100, (7,)), ByteRange(1, 700, 800, (8,))]),
            ([5, 5, 5], 0, 1000, [ByteRange(0, 200, 300, (5,))]),
        ],
    )
    def test_ranges(self, wanted: list[int], max_gap: int, max_bytes: int, expected: list[ByteRange]) -> None:
        assert plan_ranges(wanted, 8, self.locate, max_gap, max_bytes) == expected

    @property_test
    @given(st.lists(st.integers(0, 63)), st.integers(0, 300), st.integers(1, 900))
    def test_every_plan_keeps_the_bounds(self, wanted: list[int], max_gap: int, max_bytes: int) -> None:
        ranges = plan_ranges(wanted, 8, self.locate, max_gap, max_bytes)
        assert sorted(index for item in ranges for index in item.slices) == sorted(set(wanted))
        for item in ranges:
            assert {index // 8 for index in item.slices} == {item.shard}
            places = [self.locate(index) for index in item.slices]
            assert (item.start, item.stop) == (places[0][0], places[-1][1])
            assert item.stop - item.start <= max_bytes or len(item.slices) == 1
            gaps = [start - stop for (_, stop), (start, _) in pairwise(places)]
            assert all(0 <= gap <= max_gap for gap in gaps)
        for first, second in pairwise(ranges):
            could_join = second.start - first.stop <= max_gap and second.start + 100 - first.start <= max_bytes
            assert first.shard != second.shard or not could_join
