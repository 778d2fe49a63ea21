"""Reading slices: the same bytes as zarr reads, in few requests, and no damage goes unseen."""

from __future__ import annotations

import gc
import threading
import uuid
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import crc32c
import numpy as np
import pytest
import zarr
from zarr.buffer import cpu
from zarr.storage import MemoryStore

from larmor.storage.dataset import dataset, layout, writing
from larmor.storage.dataset.layout import SplitLayout
from larmor.storage.loading.cache import DiskCache
from larmor.storage.loading.reader import ReadOptions, SliceReader
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import Client, ObjectStore
from tests.faulty_proxy import FaultyProxy, Kind
from tests.helpers import SHAPE, flip_byte, random_kspace, stored_volume, write_dataset, write_layout

CHUNK = 8 * int(np.prod(SHAPE)) + 4
NUM_SLICES = 18  # four shards of four slices, and one of two
KSPACE = random_kspace(NUM_SLICES)
SHARD = "train/kspace/c/1/0/0/0"  # slices 4 to 7


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "SHARD_BYTES", 4 * 8 * int(np.prod(SHAPE)))
    monkeypatch.setenv("LARMOR_STORE_PATIENCE", "2")


@pytest.fixture(params=["local", "s3fs", "http"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """A data set, on disk and in S3 for each client."""
    if request.param == "local":
        store = ObjectStore(tmp_path / "data")
    else:
        request.getfixturevalue("store_environment")
        store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}", request.param)
    write_dataset(store, {"train": KSPACE})
    return store


@pytest.fixture
def local(tmp_path: Path) -> ObjectStore:
    store = ObjectStore(tmp_path / "local")
    write_dataset(store, {"train": KSPACE})
    return store


@contextmanager
def opened(store: ObjectStore, options: ReadOptions | None = None) -> Iterator[SliceReader]:
    reader = SliceReader(store, dataset.read_split(store, "train"), options)
    try:
        yield reader
    finally:
        reader.close()


def count_requests(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int | None, int | None]]:
    """The requests that go to the store from now on."""
    requests, read, read_into = [], store.read, store.read_into

    def counted(path: str, start: int | None = None, stop: int | None = None) -> bytes:
        requests.append((path, start, stop))
        return read(path, start, stop)

    def counted_into(path: str, start: int, parts: Sequence[memoryview]) -> int:
        requests.append((path, start, start + sum(map(len, parts))))
        return read_into(path, start, parts)

    monkeypatch.setattr(store, "read", counted)
    monkeypatch.setattr(store, "read_into", counted_into)
    return requests


def test_slices_are_bit_identical_to_what_zarr_reads(store: ObjectStore) -> None:
    memory = MemoryStore({path: cpu.Buffer.from_bytes(store.read(path)) for path in store.list()})
    group: Any = zarr.open_group(memory, mode="r")
    expected = group["train/kspace"][:]
    assert expected.shape == (NUM_SLICES, *SHAPE)
    order = np.random.default_rng(0).permutation(NUM_SLICES).tolist()
    for num_threads, block_bytes in ((1, 1), (4, 3 * CHUNK), (4, 10**6)):
        with opened(store, ReadOptions(num_threads, block_bytes)) as reader:
            found = reader.read(order)
        for index, values in zip(order, found, strict=True):
            assert values.dtype == np.complex64
            assert values.tobytes() == expected[index].tobytes()
            assert not values.flags.writeable, "slices may be shared"


def test_slices_of_several_shapes_come_together(tmp_path: Path) -> None:
    shapes = [(1, 16, 12), (2, 8, 10), (1, 16, 12), (3, 5, 7)]
    volumes = tuple(stored_volume(f"v{n}", f"v{n}", shape, 5) for n, shape in enumerate(shapes))
    kspace = [random_kspace(5, shape, seed) for seed, shape in enumerate(shapes)]
    store = ObjectStore(tmp_path)
    writing.publish(store, {"train": write_layout(store, SplitLayout("train", volumes), kspace)}, [])
    order = np.random.default_rng(1).permutation(20).tolist()
    with opened(store, ReadOptions(block_bytes=3000)) as reader:
        for index, values in zip(order, reader.read(order), strict=True):
            assert np.array_equal(values, kspace[index // 5][index % 5])


def test_slices_of_zeros_are_slices_too(tmp_path: Path) -> None:
    kspace = KSPACE.copy()
    kspace[[0, 5]] = 0
    kspace[8:12] = 0  # a whole shard
    kspace[NUM_SLICES - 1] = 0
    store = ObjectStore(tmp_path / "zeros")
    write_dataset(store, {"train": kspace})
    with opened(store) as reader:
        assert np.array_equal(np.stack(reader.read(range(NUM_SLICES))), kspace)
    group: Any = zarr.open_group(store.url, mode="r")
    assert np.array_equal(group["train/kspace"][:], kspace)
    last = max(path for path in store.list() if path.startswith("train/kspace/c/"))
    assert store.size(last) == 2 * CHUNK + 4 * 16 + 4, "the last shard holds no slices beyond the end"


def test_repeats_are_read_once_and_returned_each(store: ObjectStore) -> None:
    with opened(store, ReadOptions(block_bytes=1)) as reader:
        found = reader.read([7, 2, 7, 7])
        assert np.array_equal(np.stack(found), KSPACE[[7, 2, 7, 7]])
        assert (reader.counts.bytes_read, reader.counts.num_requests) == (2 * CHUNK, 2)


def test_neighbours_travel_in_one_request(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(local) as reader:
        requests = count_requests(local, monkeypatch)
        reader.read([2, 0, 1, 3])
        assert requests == [("train/kspace/c/0/0/0/0", -68, None), ("train/kspace/c/0/0/0/0", 0, 4 * CHUNK)]
        reader.read([0, 3, 4])
        assert len(requests) == 5, "the index of the first shard is known"
        assert reader.counts.num_requests == 3
        assert reader.counts.bytes_read == 9 * CHUNK, "what lies between two slices comes along"


@pytest.mark.parametrize("client", ["s3fs", "http"])
def test_a_block_is_one_request_to_the_server(faulty_proxy: FaultyProxy, client: Client) -> None:
    store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}", client)
    write_dataset(store, {"train": KSPACE})
    with opened(store, ReadOptions(block_bytes=2 * CHUNK)) as reader:
        reader.read([0, 4, 8, 12, 16])  # all indexes are known from now on
        before = len(faulty_proxy.log)
        reader.read(range(NUM_SLICES))
        requests = faulty_proxy.log[before:]
    assert {request.method for request in requests} == {"GET"}
    ranges = [f"bytes={first}-{first + 2 * CHUNK - 1}" for first in (0, 2 * CHUNK)]
    assert sorted(str(request.range) for request in requests) == sorted(4 * ranges + ranges[:1])


def test_many_callers_read_at_once(store: ObjectStore) -> None:
    orders = [np.random.default_rng(seed).integers(0, NUM_SLICES, 40).tolist() for seed in range(8)]
    with (
        opened(store, ReadOptions(block_bytes=2 * CHUNK, memory_bytes=5 * CHUNK)) as reader,
        ThreadPoolExecutor(8) as pool,
    ):
        for order, found in zip(orders, pool.map(reader.read, orders), strict=True):
            assert np.array_equal(np.stack(found), KSPACE[order])


class TestMemory:
    VALUES = CHUNK - 4

    def kept(self, reader: SliceReader) -> set[int]:
        """Which slices stay in memory after all were read one by one: those that cost no request any more."""
        reader.read(range(NUM_SLICES))
        found = set()
        for index in range(NUM_SLICES):
            before = reader.counts.num_requests
            assert np.array_equal(reader.read([index])[0], KSPACE[index])
            found |= {index} if reader.counts.num_requests == before else set()
        return found

    @pytest.mark.parametrize("room", [0, VALUES - 1, VALUES, 3 * VALUES + 7, 100 * VALUES])
    def test_it_fills_up_and_stays_as_it_is(self, local: ObjectStore, room: int) -> None:
        with opened(local, ReadOptions(num_threads=1, memory_bytes=room)) as reader:
            assert self.kept(reader) == set(range(min(room // self.VALUES, NUM_SLICES)))

    def test_it_is_not_the_callers(self, local: ObjectStore) -> None:
        """Who reads into arrays of his own may write to them."""
        with opened(local, ReadOptions(memory_bytes=10 * CHUNK)) as reader:
            own = np.empty(SHAPE, np.complex64)
            for _ in range(3):
                reader.fetch({3: own}).result()
                assert np.array_equal(own, KSPACE[3])
                own[...] = 0
            assert reader.counts.num_requests == 1

    @pytest.mark.parametrize("room", [0, 10 * CHUNK])
    def test_a_slice_lives_no_longer_than_its_user(self, store: ObjectStore, room: int) -> None:
        with opened(store, ReadOptions(memory_bytes=room)) as reader:
            values = weakref.ref(reader.read([3])[0])
            gc.collect()
            assert values() is None


def test_only_the_arrays_that_were_given_are_written_to(store: ObjectStore) -> None:
    """Slices with others between them, of which one travels along, into every second row."""
    rows = np.full((6, *SHAPE), 7, np.complex64)
    with opened(store) as reader:
        reader.fetch({0: rows[4], 2: rows[0], 3: rows[2]}).result()
        assert reader.counts.num_requests == 1
    assert np.array_equal(rows[[4, 0, 2]], KSPACE[[0, 2, 3]])
    assert (rows[1::2] == 7).all()


class TestDamage:
    """Shard 1 holds the slices 4 to 7; its path is part of every message."""

    def check(self, store: ObjectStore, index: int, reason: str) -> None:
        with opened(store) as reader:
            with pytest.raises(InputError, match=f"{store.url}/{SHARD}: {reason}.*convert the data again"):
                reader.read([0, index])
            assert np.array_equal(np.stack(reader.read([0, 8, 17])), KSPACE[[0, 8, 17]]), "other shards are well"

    @pytest.mark.parametrize("place", [0, CHUNK // 2, CHUNK - 1])
    @pytest.mark.parametrize("row", [0, 3])
    def test_a_flipped_byte_of_a_slice(self, local: ObjectStore, row: int, place: int) -> None:
        flip_byte(local, SHARD, row * CHUNK + place)
        self.check(local, 4 + row, f"slice {4 + row} is damaged; `larmor verify` lists all damage")
        others = [index for index in range(NUM_SLICES) if index != 4 + row]
        with opened(local, ReadOptions(block_bytes=1)) as reader:
            assert np.array_equal(np.stack(reader.read(others)), KSPACE[others])

    @pytest.mark.parametrize("place", [-1, -4, -5, -68])
    def test_a_flipped_byte_of_the_index(self, local: ObjectStore, place: int) -> None:
        flip_byte(local, SHARD, place)
        self.check(local, 5, "the shard's index is damaged")

    @pytest.mark.parametrize("left", [0, 10, CHUNK, 4 * CHUNK + 67])
    def test_a_shard_cut_short(self, local: ObjectStore, left: int) -> None:
        local.write(SHARD, local.read(SHARD)[:left])
        self.check(local, 5, "the shard's index is damaged")

    @pytest.mark.parametrize("left", [0, 10, CHUNK, CHUNK + 100])
    def test_a_shard_that_gets_short_while_it_is_read(self, local: ObjectStore, left: int) -> None:
        with opened(local) as reader:
            reader.read([4])
            local.write(SHARD, local.read(SHARD)[:left])
            with pytest.raises(InputError, match=f"{SHARD}: slice 5 is damaged"):
                reader.read([5])

    def test_a_missing_shard(self, local: ObjectStore) -> None:
        local.delete(SHARD)
        self.check(local, 5, "the shard is missing")

    def test_a_shard_that_goes_missing_while_it_is_read(self, local: ObjectStore) -> None:
        with opened(local) as reader:
            reader.read([4])
            local.delete(SHARD)
            with pytest.raises(InputError, match=f"{SHARD}: the shard is missing"):
                reader.read([5])

    def test_a_shard_with_the_slices_of_another(self, local: ObjectStore) -> None:
        """Every slice is whole, but in another's place."""
        local.write(SHARD, local.read("train/kspace/c/0/0/0/0"))
        self.check(local, 4, "slice 4 does not belong to the data set")

    @pytest.mark.parametrize("client", ["s3fs", "http"])
    def test_both_clients_see_it(self, store_environment: dict[str, str], client: Client) -> None:
        store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}", client)
        write_dataset(store, {"train": KSPACE})
        whole = store.read(SHARD)
        flip_byte(store, SHARD, 5)
        self.check(store, 4, "slice 4 is damaged")
        for left in (0, 10, len(whole) - 1):
            store.write(SHARD, whole[:left])
            self.check(store, 5, "the shard's index is damaged")
        store.delete(SHARD)
        self.check(store, 5, "the shard is missing")
        store.write(SHARD, whole)
        for left in (0, CHUNK, CHUNK + 100):
            with opened(store) as reader:
                reader.read([4])
                store.write(SHARD, whole[:left])
                with pytest.raises(InputError, match=f"{SHARD}: slice 5 is damaged"):
                    reader.read([5])
            store.write(SHARD, whole)


class TestOnTheWay:
    """What is damaged on its way only, in the answer about a slice whose shard's index is known, or not."""

    @pytest.fixture(params=["s3fs", "http"])
    def remote(self, request: pytest.FixtureRequest, faulty_proxy: FaultyProxy) -> ObjectStore:
        store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}", request.param)
        write_dataset(store, {"train": KSPACE})
        return store

    def test_it_is_read_again(self, remote: ObjectStore, faulty_proxy: FaultyProxy) -> None:
        kinds: tuple[Kind, ...] = ("flip", "truncate", "reset", "close", "status")
        for kind in kinds:
            for index_known in (False, True):
                with opened(remote) as reader:
                    if index_known:
                        reader.read([4])
                    faulty_proxy.plan(kind, matches=SHARD, limit=1)
                    assert np.array_equal(reader.read([5])[0], KSPACE[5])
                    faulty_proxy.clear()
        assert faulty_proxy.counts == dict.fromkeys(kinds, 2)

    def test_what_keeps_arriving_damaged_is_refused(self, remote: ObjectStore, faulty_proxy: FaultyProxy) -> None:
        with opened(remote) as reader:
            reader.read([4])
            faulty_proxy.plan("flip", matches=SHARD)
            with pytest.raises(InputError, match=f"{SHARD}: slice 5 is damaged"):
                reader.read([5])
        assert faulty_proxy.counts == {"flip": 5}

    def test_a_store_that_stays_away_is_named(self, remote: ObjectStore, faulty_proxy: FaultyProxy) -> None:
        with opened(remote) as reader:
            reader.read([4])
            faulty_proxy.plan("status", status=503, methods=None)
            with pytest.raises(InputError, match=rf"{SHARD}.*503|{SHARD}: the store fails"):
                reader.read([5])
            faulty_proxy.clear()
            assert np.array_equal(reader.read([5])[0], KSPACE[5]), "a failure is not remembered"


def test_closing_ends_the_threads(store: ObjectStore) -> None:
    before = set(threading.enumerate())
    with opened(store, ReadOptions(num_threads=4, block_bytes=1)) as reader:
        reader.read(range(NUM_SLICES))
        assert len([thread for thread in threading.enumerate() if thread.name.startswith("larmor-read")]) == 4
    # s3fs has one thread for its event loop, shared by everything in the process
    assert {thread.name for thread in set(threading.enumerate()) - before} <= {"fsspecIO"}


def test_closing_with_requests_under_way_ends_them(local: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    release, read = threading.Event(), local.read_into

    def slow(path: str, start: int, parts: Sequence[memoryview]) -> int:
        release.wait(30)
        return read(path, start, parts)

    reader = SliceReader(local, dataset.read_split(local, "train"), ReadOptions(num_threads=1, block_bytes=1))
    monkeypatch.setattr(local, "read_into", slow)
    futures = [reader.fetch({index: np.empty(SHAPE, np.complex64)}) for index in range(4)]
    threading.Timer(0.2, release.set).start()
    reader.close()
    assert all(future.done() for future in futures)
    assert sum(future.cancelled() for future in futures) >= 3, "what had not begun was not read"


def test_a_running_reader_gives_nothing_of_a_data_set_that_took_the_place_of_its_own(store: ObjectStore) -> None:
    """The names and sizes of the objects are the same, and so are all checksums that an object carries of itself."""
    with opened(store, ReadOptions(block_bytes=1)) as reader:
        assert np.array_equal(reader.read([5])[0], KSPACE[5])
        writing.remove(store)
        write_dataset(store, {"train": random_kspace(NUM_SLICES, seed=1)})
        for index in range(NUM_SLICES):
            with pytest.raises(InputError, match=r"train/kspace/c/.*another one has taken its place.*--overwrite"):
                reader.read([index])


def test_the_cache_gives_nothing_of_another_data_set(store: ObjectStore, tmp_path: Path) -> None:
    info = dataset.read_split(store, "train")
    cache = DiskCache(tmp_path / "cache", 10**7, info.identity, "train")
    other = random_kspace(1, seed=1)
    cache.put(3, (memoryview(other.tobytes()), memoryview(crc32c.crc32c(other.tobytes()).to_bytes(4, "little"))))
    reader = SliceReader(store, info, cache=cache)
    assert np.array_equal(reader.read([3])[0], KSPACE[3])
    reader.close()


def test_a_split_is_of_one_data_set(local: ObjectStore) -> None:
    """Replaced between the reading of the root document and that of the columns."""
    root = local.read("zarr.json")
    writing.remove(local)
    write_dataset(local, {"train": random_kspace(NUM_SLICES, seed=1)})
    local.write("zarr.json", root)
    with pytest.raises(InputError, match="columns do not match the root document"):
        dataset.read_split(local, "train")
