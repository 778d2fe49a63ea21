"""Slices on a local disk: fewer requests, never more disk than allowed, never wrong bytes."""

from __future__ import annotations

import hashlib
import os
import resource
import shutil
import stat
import time
import uuid
from collections import namedtuple
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from larmor.storage.dataset import dataset, layout, writing
from larmor.storage.loading.cache import DiskCache
from larmor.storage.loading.reader import ReadOptions, SliceReader
from larmor.storage.objects.object_store import Client, ObjectStore
from tests.helpers import SHAPE, contents_of, random_kspace, write_dataset

CHUNK = 8 * int(np.prod(SHAPE)) + 4
NUM_SLICES = 12
KSPACE = random_kspace(NUM_SLICES)
LARGE = 10**9


def identity(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()


def content(index: int, num_bytes: int = 1000) -> bytes:
    return np.random.default_rng(index).bytes(num_bytes)


def put(cache: DiskCache, *indices: int, num_bytes: int = 1000) -> None:
    for index in indices:
        whole = memoryview(content(index, num_bytes))
        cache.put(index, (whole[: num_bytes // 3], whole[num_bytes // 3 :]))


def get(cache: DiskCache, index: int, num_bytes: int = 1000) -> bytes | None:
    into = memoryview(bytearray(num_bytes))
    return bytes(into) if cache.get(index, (into[: num_bytes // 2], into[num_bytes // 2 :])) else None


def bytes_below(folder: Path) -> int:
    return sum(len(data) for data in contents_of(folder).values())


class TestFolder:
    """The cache alone."""

    def make(self, folder: Path, max_bytes: int = LARGE, name: str = "data", split: str = "train") -> DiskCache:
        return DiskCache(folder, max_bytes, identity(name), split)

    def test_what_was_put_comes_back_also_to_others(self, tmp_path: Path) -> None:
        put(self.make(tmp_path), 0, 7, 12_345)
        cache = self.make(tmp_path)
        for index in (0, 7, 12_345):
            assert get(cache, index) == content(index)
        assert get(cache, 1) is None
        assert get(self.make(tmp_path, split="test"), 0) is None
        assert get(self.make(tmp_path, name="other"), 0) is None

    def test_a_slice_of_another_length_is_not_taken(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        put(cache, 3, num_bytes=1000)
        assert get(cache, 3, num_bytes=999) is None
        assert get(cache, 3, num_bytes=1001) is None

    def test_what_was_discarded_is_gone_and_may_come_again(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path)
        put(cache, 3)
        cache.discard(3)
        cache.discard(4)
        assert get(cache, 3) is None
        put(cache, 3)
        assert get(cache, 3) == content(3)

    @pytest.mark.parametrize("max_bytes", [0, 999, 1000, 5500, 20_000])
    def test_it_keeps_its_bound_and_what_it_has(self, tmp_path: Path, max_bytes: int) -> None:
        cache = self.make(tmp_path, max_bytes)
        put(cache, *range(15))
        assert bytes_below(tmp_path) <= max_bytes
        kept = [index for index in range(15) if get(cache, index) is not None]
        assert kept == list(range(min(15, max_bytes // 1000))), "the first stay; the others would only replace them"

    def test_two_workers_keep_one_bound(self, tmp_path: Path) -> None:
        """Each measures what the other has added after at most a fiftieth of the bound."""
        caches = [self.make(tmp_path, 100_000) for _ in range(2)]
        for index in range(200):
            put(caches[index % 2], index)
            assert bytes_below(tmp_path) <= 100_000 * (1 + 1 / 50) + 1000
        assert bytes_below(tmp_path) >= 95_000

    def test_threads_keep_the_bound(self, tmp_path: Path) -> None:
        cache = self.make(tmp_path, 50_000)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda index: put(cache, index), range(200)))
        assert 40_000 <= bytes_below(tmp_path) <= 50_000

    def test_other_data_sets_make_room_the_oldest_first(self, tmp_path: Path) -> None:
        for age, name in ((50, "b"), (90, "a"), (10, "c")):
            put(self.make(tmp_path, name=name), 0, 1, 2)
            opened = time.time() - age
            os.utime(tmp_path / identity(name)[:32], (opened, opened))
        cache = self.make(tmp_path, 10_500, name="new")
        there = []
        for index in range(9):
            put(cache, index)
            there.append("".join(name for name in "abc" if (tmp_path / identity(name)[:32]).exists()))
        assert there == ["abc", "bc", "bc", "bc", "c", "c", "c", "", ""]
        put(cache, 9, 10)
        assert [index for index in range(11) if get(cache, index)] == list(range(10)), (
            "its own slices are never evicted"
        )

    def test_opening_a_data_set_makes_it_the_newest(self, tmp_path: Path) -> None:
        for age, name in ((90, "a"), (50, "b")):
            put(self.make(tmp_path, name=name), 0, 1)
            opened = time.time() - age
            os.utime(tmp_path / identity(name)[:32], (opened, opened))
        self.make(tmp_path, name="a", split="test")
        put(self.make(tmp_path, 4500, name="new"), 0)
        assert (tmp_path / identity("a")[:32]).exists()
        assert not (tmp_path / identity("b")[:32]).exists()

    def test_other_peoples_files_are_neither_counted_nor_removed(self, tmp_path: Path) -> None:
        """Somebody may name a folder that holds more than the cache."""
        foreign = {"thesis/chapter.tex": b"x" * 5000, "notes.partial-1": b"y" * 5000, "results/run.partial-2": b"z"}
        for name, data in foreign.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_bytes(data)
            os.utime(tmp_path / name, (1, 1))
        (tmp_path / identity("link")[:32]).symlink_to(tmp_path / "thesis")
        cache = self.make(tmp_path, 2500)
        put(cache, *range(5))
        assert [index for index in range(5) if get(cache, index)] == [0, 1]
        for name, data in foreign.items():
            assert (tmp_path / name).read_bytes() == data

    def test_what_a_killed_worker_left_is_removed_after_a_while(self, tmp_path: Path) -> None:
        put(self.make(tmp_path), 5)
        folder = tmp_path / identity("data")[:32] / "train" / "0"
        for name, age in (("6.partial-old", 7200), ("7.partial-new", 60)):
            (folder / name).write_bytes(b"half")
            os.utime(folder / name, (time.time() - age,) * 2)
        self.make(tmp_path)
        assert sorted(path.name for path in folder.iterdir()) == ["5", "7.partial-new"]

    def test_a_file_appears_whole(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        cache, replace, seen = self.make(tmp_path), Path.replace, []

        def watched(partial: Path, target: Path) -> Path:
            seen.append((target.exists(), partial.read_bytes()))
            assert get(cache, 3) is None
            return replace(partial, target)

        monkeypatch.setattr(Path, "replace", watched)
        put(cache, 3)
        assert seen == [(False, content(3))]
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["3"]

    def test_nobody_else_may_read_it(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            cache = self.make(tmp_path / "new" / "cache")
            put(cache, 0, 5000)
            shutil.rmtree(tmp_path / "new" / "cache" / identity("data")[:32])  # evicted by another worker
            put(cache, 1)
        finally:
            os.umask(before)
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [path.name for path in files] == ["1"]
        put(self.make(tmp_path / "new" / "cache", name="other"), 2)
        for path in (path for path in tmp_path.rglob("*") if path.is_file()):
            inside = [folder for folder in path.parents if tmp_path in folder.parents]
            assert any(stat.S_IMODE(folder.stat().st_mode) & 0o077 == 0 for folder in inside)


class TestTrouble:
    """Nothing that happens to the disk ends a training."""

    @pytest.fixture
    def cache(self, tmp_path: Path) -> DiskCache:
        cache = DiskCache(tmp_path / "cache", 10_000, identity("data"), "train")
        put(cache, 0)
        return cache

    def test_a_disk_that_is_nearly_full_stops_it_from_growing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = namedtuple("usage", "total used free")
        free = 60
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(1000, 1000 - free, free))
        cache = DiskCache(tmp_path, 100_000, identity("data"), "train")
        put(cache, *range(10))
        free = 40
        put(cache, *range(10, 30))
        kept = [index for index in range(30) if get(cache, index)]
        assert kept == list(range(len(kept)))
        assert 10 <= len(kept) <= 13, "it looks again after a fiftieth of its bound"
        later = DiskCache(tmp_path, 100_000, identity("data"), "train")
        put(later, 29)
        assert get(later, 29) is None, "nor does it begin on such a disk"
        assert get(later, 0) == content(0)

    def test_a_failed_write_leaves_nothing_and_stops_it_from_growing(self, cache: DiskCache, tmp_path: Path) -> None:
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))  # no file grows beyond it
        try:
            put(cache, 1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        put(cache, 2)
        assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["0"]

    def test_a_folder_that_was_removed(self, cache: DiskCache, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "cache")
        assert get(cache, 0) is None
        cache.discard(0)
        put(cache, *range(20))

    def test_a_folder_that_is_a_file_by_now(self, cache: DiskCache, tmp_path: Path) -> None:
        shutil.rmtree(tmp_path / "cache")
        (tmp_path / "cache").write_bytes(b"")
        assert get(cache, 0) is None
        cache.discard(0)
        put(cache, *range(20))

    def test_a_data_set_that_another_worker_evicts_at_the_same_time(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in "ab":
            put(DiskCache(tmp_path, LARGE, identity(name), "train"), 0, 1)
        cache, data_sets = DiskCache(tmp_path, 5000, identity("new"), "train"), DiskCache._data_sets

        def then_gone(self: DiskCache) -> list[Path]:
            found = data_sets(self)
            shutil.rmtree(tmp_path / identity("a")[:32], ignore_errors=True)
            return found

        monkeypatch.setattr(DiskCache, "_data_sets", then_gone)
        put(cache, 0, 1, 2)
        assert any(get(cache, index) is not None for index in range(3)), "it goes on with what is left"

    def test_a_disk_that_fails_to_read(self, cache: DiskCache, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object, **__: object) -> None:
            raise OSError(5, "Input/output error")

        monkeypatch.setattr(Path, "open", fail)
        assert get(cache, 0) is None


class TestReader:
    """A reader with a cache: the same slices, and the store is asked once for each."""

    @pytest.fixture(autouse=True)
    def small_shards(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(layout, "SHARD_BYTES", 4 * (CHUNK - 4))

    @pytest.fixture
    def store(self, tmp_path: Path) -> ObjectStore:
        store = ObjectStore(tmp_path / "data")
        write_dataset(store, {"train": KSPACE})
        return store

    @contextmanager
    def opened(
        self, store: ObjectStore, folder: Path, max_bytes: int = LARGE, memory_bytes: int = 0
    ) -> Iterator[SliceReader]:
        info = dataset.read_split(store, "train")
        cache = DiskCache(folder, max_bytes, info.identity, "train")
        reader = SliceReader(store, info, ReadOptions(block_bytes=2 * CHUNK, memory_bytes=memory_bytes), cache)
        try:
            yield reader
        finally:
            reader.close()

    def check(self, reader: SliceReader) -> None:
        assert np.array_equal(np.stack(reader.read(range(NUM_SLICES))), KSPACE)

    def test_the_second_reader_asks_the_store_for_no_slice(self, store: ObjectStore, tmp_path: Path) -> None:
        with self.opened(store, tmp_path / "cache") as reader:
            self.check(reader)
            assert reader.counts.bytes_read == NUM_SLICES * CHUNK
            self.check(reader)
            assert reader.counts.bytes_cached == NUM_SLICES * CHUNK
        for path in store.list("train/kspace/c"):
            store.delete(path)
        with self.opened(store, tmp_path / "cache") as reader:
            self.check(reader)
            assert (reader.counts.num_requests, reader.counts.bytes_read) == (0, 0)

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    def test_slices_of_s3_too(self, store_environment: dict[str, str], tmp_path: Path, client: Client) -> None:
        store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}", client)
        write_dataset(store, {"train": KSPACE})
        with self.opened(store, tmp_path) as reader:
            self.check(reader)
        for path in store.list("train/kspace/c"):
            store.delete(path)
        with self.opened(store, tmp_path, memory_bytes=LARGE) as reader:
            self.check(reader)
            self.check(reader)
            assert reader.counts.bytes_cached == NUM_SLICES * CHUNK, "from memory the second time"

    def test_a_full_cache_serves_what_it_has(self, store: ObjectStore, tmp_path: Path) -> None:
        with self.opened(store, tmp_path / "cache", max_bytes=5 * CHUNK) as reader:
            for _ in range(3):
                self.check(reader)
            kept = bytes_below(tmp_path / "cache")
            assert 0 < kept <= 5 * CHUNK
            assert reader.counts.bytes_cached == 2 * kept

    @pytest.mark.parametrize("damage", ["flipped", "short", "long", "empty"])
    def test_a_damaged_file_is_thrown_away_and_fetched_again(
        self, store: ObjectStore, tmp_path: Path, damage: str
    ) -> None:
        with self.opened(store, tmp_path / "cache") as reader:
            self.check(reader)
        (path,) = [path for path in (tmp_path / "cache").rglob("7") if path.is_file()]
        whole = path.read_bytes()
        flipped = whole[:50] + bytes([whole[50] ^ 1]) + whole[51:]
        path.write_bytes({"flipped": flipped, "short": whole[:-1], "long": whole + b"0", "empty": b""}[damage])
        with self.opened(store, tmp_path / "cache") as reader:
            self.check(reader)
            assert reader.counts.bytes_read == CHUNK
        assert path.read_bytes() == whole

    def test_a_data_set_that_was_converted_anew_has_slices_of_its_own(self, store: ObjectStore, tmp_path: Path) -> None:
        with self.opened(store, tmp_path / "cache") as reader:
            self.check(reader)
        writing.remove(store)
        write_dataset(store, {"train": KSPACE[::-1]})
        with self.opened(store, tmp_path / "cache") as reader:
            assert np.array_equal(np.stack(reader.read(range(NUM_SLICES))), KSPACE[::-1])
        assert len(list((tmp_path / "cache").iterdir())) == 2
