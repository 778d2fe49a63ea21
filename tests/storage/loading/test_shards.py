"""Which bytes of which object hold a slice, and whether they are whole."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given
from hypothesis import strategies as st

from larmor.storage.dataset import layout, writing
from larmor.storage.dataset.dataset import SplitInfo, read_split
from larmor.storage.dataset.layout import Bucket, SplitLayout
from larmor.storage.loading.shards import (
    ByteRange,
    ShardIndexes,
    crc_matches,
    decode_slice,
    plan_ranges,
    read_shard_index,
)
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from tests.helpers import SHAPE, flip_byte, property_test, random_kspace, stored_volume, write_layout

CHUNK = 8 * int(np.prod(SHAPE)) + 4
SHARD = "train/kspace/c/1/0/0/0"  # slices 4 to 7


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ObjectStore:
    """Shards of four slices: two of the first shape and two of the second, the last ones not full."""
    monkeypatch.setattr(layout, "SHARD_BYTES", 4 * (CHUNK - 4))
    store = ObjectStore(tmp_path / "data")
    volumes = (stored_volume("a", "a", SHAPE, 7), stored_volume("b", "b", (2, 8, 12), 6))
    entry = write_layout(store, SplitLayout("train", volumes), [random_kspace(7), random_kspace(6, (2, 8, 12), 1)])
    writing.publish(store, {"train": entry}, [])
    return store


@pytest.fixture
def info(store: ObjectStore) -> SplitInfo:
    return read_split(store, "train")


class TestPlan:
    """Eight slices of 100 bytes to a shard, stored in reverse order."""

    @dataclass(frozen=True)
    class Reversed:
        def locate(self, index: int) -> tuple[str, int, int]:
            start = (7 - index % 8) * 100
            return f"shard{index // 8}", start, start + 100

    PLACES = Reversed()

    def slices(self, *indices: int) -> tuple[tuple[int, int, int], ...]:
        return tuple((index, *self.PLACES.locate(index)[1:]) for index in indices)

    @pytest.mark.parametrize(
        ("wanted", "max_gap", "max_bytes", "expected"),
        [
            ([], 0, 1000, []),
            ([3], 0, 1, [("shard0", 400, 500, (3,))]),
            ([1, 2], 0, 1000, [("shard0", 500, 700, (2, 1))]),
            ([1, 3], 99, 1000, [("shard0", 400, 500, (3,)), ("shard0", 600, 700, (1,))]),
            ([1, 3], 100, 1000, [("shard0", 400, 700, (3, 1))]),
            ([0, 1, 2], 0, 200, [("shard0", 500, 700, (2, 1)), ("shard0", 700, 800, (0,))]),
            ([7, 8], 10**6, 10**6, [("shard0", 0, 100, (7,)), ("shard1", 700, 800, (8,))]),
            ([5, 5, 5], 0, 1000, [("shard0", 200, 300, (5,))]),
        ],
    )
    def test_ranges(
        self,
        wanted: list[int],
        max_gap: int,
        max_bytes: int,
        expected: list[tuple[str, int, int, tuple[int, ...]]],
    ) -> None:
        ranges = [ByteRange(path, start, stop, self.slices(*indices)) for path, start, stop, indices in expected]
        assert plan_ranges(wanted, self.PLACES, max_gap, max_bytes) == ranges  # type: ignore[arg-type]

    @property_test
    @given(st.lists(st.integers(0, 63)), st.integers(0, 300), st.integers(1, 900))
    def test_every_plan_keeps_the_bounds(self, wanted: list[int], max_gap: int, max_bytes: int) -> None:
        ranges = plan_ranges(wanted, self.PLACES, max_gap, max_bytes)  # type: ignore[arg-type]
        assert sorted(index for item in ranges for index, *_ in item.slices) == sorted(set(wanted))
        for item in ranges:
            assert item.slices == self.slices(*(index for index, *_ in item.slices))
            assert {self.PLACES.locate(index)[0] for index, *_ in item.slices} == {item.path}
            assert (item.start, item.stop) == (item.slices[0][1], item.slices[-1][2])
            assert item.stop - item.start <= max_bytes or len(item.slices) == 1
            gaps = [start - stop for (_, _, stop), (_, start, _) in pairwise(item.slices)]
            assert all(0 <= gap <= max_gap for gap in gaps)
        for first, second in pairwise(ranges):
            could_join = second.start - first.stop <= max_gap and second.start + 100 - first.start <= max_bytes
            assert first.path != second.path or not could_join


class TestIndex:
    def test_slices_lie_where_the_index_says(self, store: ObjectStore, info: SplitInfo) -> None:
        group: Any = zarr.open_group(store.url, mode="r")["train"]
        indexes = ShardIndexes(store, info)
        for index in range(info.num_slices):
            path, start, stop = indexes.locate(index)
            bucket = info.bucket_of(index)
            array = decode_slice(memoryview(store.read(path, start, stop)), bucket)
            assert array is not None
            expected = group["kspace_1" if bucket.number else "kspace"][int(info.row[index])]
            assert array.tobytes() == expected.tobytes()

    def test_every_shards_index_is_read_once(
        self, store: ObjectStore, info: SplitInfo, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        read, requests = store.read, []

        def counted(path: str, start: int | None = None, stop: int | None = None) -> bytes:
            requests.append((path, start))
            return read(path, start, stop)

        monkeypatch.setattr(store, "read", counted)
        indexes = ShardIndexes(store, info)
        for index in [*range(info.num_slices), 0, 12]:
            indexes.locate(index)
        assert sorted(requests) == [
            (f"train/{array}/c/{shard}/0/0/0", -(4 * 16 + 4)) for array in ("kspace", "kspace_1") for shard in (0, 1)
        ]

    def test_the_places_are_those_of_zarrs_index(self, store: ObjectStore) -> None:
        table = read_shard_index(store, "train/kspace/c/1/0/0/0", 4)
        assert table.tolist()[:3] == [[row * CHUNK, CHUNK] for row in range(3)]
        assert (table[3] == np.iinfo(np.uint64).max).all(), "there is no fourth slice"

    @pytest.mark.parametrize("place", [-1, -4, -5, -68])
    def test_a_flipped_byte_is_seen(self, store: ObjectStore, place: int) -> None:
        flip_byte(store, SHARD, place)
        with pytest.raises(InputError, match=f"{store.url}/{SHARD}: the shard's index is damaged; convert the data"):
            read_shard_index(store, SHARD, 4)

    @pytest.mark.parametrize("left", [0, 3, 67, 68, CHUNK])
    def test_a_shard_cut_short_is_seen(self, store: ObjectStore, left: int) -> None:
        store.write(SHARD, store.read(SHARD)[:left])
        with pytest.raises(InputError, match=f"{SHARD}: the shard's index is damaged"):
            read_shard_index(store, SHARD, 4)

    def test_what_is_damaged_on_the_way_is_read_again(
        self, store: ObjectStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        expected, read, answers = read_shard_index(store, SHARD, 4), store.read, [0, 1]

        def damaged_once(path: str, start: int | None = None, stop: int | None = None) -> bytes:
            return read(path, start, stop) if answers.pop() == 0 else b"\0" * 68

        monkeypatch.setattr(store, "read", damaged_once)
        assert np.array_equal(read_shard_index(store, SHARD, 4), expected)

    def test_a_slice_that_the_index_leaves_out_is_named(self, store: ObjectStore, info: SplitInfo) -> None:
        raw = store.read(SHARD)
        table = np.frombuffer(raw[-68:-4], "<u8").copy()
        table[2:4] = np.iinfo(np.uint64).max
        index = table.tobytes()
        store.write(SHARD, raw[:-68] + index + crc32c.crc32c(index).to_bytes(4, "little"))
        with pytest.raises(InputError, match=f"{SHARD}: slice 5 is not in its shard; convert the data again"):
            ShardIndexes(store, info).locate(5)
        assert ShardIndexes(store, info).locate(6) == (SHARD, 2 * CHUNK, 3 * CHUNK)

    def test_a_missing_shard_is_named(self, store: ObjectStore, info: SplitInfo) -> None:
        store.delete(SHARD)
        with pytest.raises(InputError, match=f"{store.url}/{SHARD}: the shard is missing; convert the data again"):
            ShardIndexes(store, info).locate(5)

    def test_other_kinds_have_shards_of_their_own(self, store: ObjectStore, info: SplitInfo) -> None:
        with pytest.raises(InputError, match="train/sensitivity_maps/c/0/0/0/0: the shard is missing"):
            ShardIndexes(store, info, "sensitivity_maps").locate(0)


class TestSlice:
    BUCKET = Bucket(0, (2, 3, 4), 1, 1)

    def encoded(self) -> bytes:
        values = random_kspace(1, self.BUCKET.shape).tobytes()
        return values + crc32c.crc32c(values).to_bytes(4, "little")

    def test_it_is_a_view_that_cannot_be_written_to(self) -> None:
        content = bytearray(self.encoded())
        array = decode_slice(memoryview(content), self.BUCKET)
        assert array is not None
        assert (array.shape, array.dtype) == ((2, 3, 4), np.complex64)
        assert np.shares_memory(array, np.frombuffer(content, np.uint8))
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0

    @property_test
    @given(st.data())
    def test_every_flipped_bit_is_seen(self, data: st.DataObject) -> None:
        content = bytearray(self.encoded())
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= 1 << data.draw(st.integers(0, 7))
        assert decode_slice(memoryview(content), self.BUCKET) is None

    @pytest.mark.parametrize("left", [0, 3, 4, 100, 195])
    def test_a_slice_cut_short_is_seen(self, left: int) -> None:
        assert decode_slice(memoryview(self.encoded())[:left], self.BUCKET) is None


@property_test
@given(st.binary(max_size=100))
def test_a_checksum_matches_what_it_was_made_of_and_nothing_else(content: bytes) -> None:
    checksum = crc32c.crc32c(content)
    assert crc_matches(content + checksum.to_bytes(4, "little"))
    assert not crc_matches(content + (checksum ^ 1).to_bytes(4, "little"))
