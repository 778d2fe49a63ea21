"""Slices of sharded k-space read straight from the shard objects, with coalesced range requests.

zarr-python reads the chunks of a shard one after another and fetches the shard's index at every read; here
the index is fetched once and neighbouring slices travel in one request. Layout of a shard: Zarr v3
`sharding_indexed`, index at the end: (offset, length) little-endian uint64 per chunk, then a CRC-32C.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import google_crc32c
import numpy as np

from storage.dataset import SplitInfo, read_split
from storage.errors import InputError
from storage.object_store import ObjectStore

_CRC_BYTES = 4
_MISSING = np.iinfo(np.uint64).max


@dataclass(frozen=True)
class ByteRange:
    """One request: the bytes [start, stop) of a shard, and the slices that lie in them."""

    shard: int
    start: int
    stop: int
    slices: tuple[int, ...]


def plan_ranges(
    wanted: Iterable[int], shard_slices: int, locate: ShardIndexes, max_gap: int, max_bytes: int
) -> list[ByteRange]:
    """Group the wanted slices into few requests: neighbours at most `max_gap` bytes apart share one."""
    places = sorted((index // shard_slices, *locate(index), index) for index in set(wanted))
    ranges: list[ByteRange] = []
    for shard, start, stop, index in places:
        last = ranges[-1] if ranges else None
        if last and last.shard == shard and start - last.stop <= max_gap and stop - last.start <= max_bytes:
            ranges[-1] = ByteRange(shard, last.start, max(last.stop, stop), (*last.slices, index))
        else:
            ranges.append(ByteRange(shard, start, stop, (index,)))
    return ranges


class ShardIndexes:
    """Where each slice lies in its shard; every shard's index is fetched once. Safe to share by threads."""

    def __init__(self, store: ObjectStore, split: SplitInfo) -> None:
        self._store, self._split = store, split
        self._tables: dict[int, np.ndarray] = {}
        self._lock = threading.Lock()

    def shard_path(self, shard: int) -> str:
        return f"{self._split.name}/kspace/c/{shard}/0/0/0"

    def __call__(self, index: int) -> tuple[int, int]:
        """Start and stop of the encoded slice `index`, in bytes of its shard."""
        shard, row = divmod(index, self._split.shard_slices)
        with self._lock:
            if shard not in self._tables:
                self._tables[shard] = self._fetch(shard)
        start, length = (int(value) for value in self._tables[shard][row])
        if start == _MISSING:
            raise InputError(f"{self._store.url}/{self.shard_path(shard)}: slice {index} is not in its shard")
        return start, start + length

    def missing(self, shard: int) -> InputError:
        return InputError(f"{self._store.url}/{self.shard_path(shard)}: the shard is missing; convert the data again")

    def _fetch(self, shard: int) -> np.ndarray:
        path, num_bytes = self.shard_path(shard), 16 * self._split.shard_slices
        try:
            raw = self._store.read(path, start=-(num_bytes + _CRC_BYTES))
        except FileNotFoundError as error:
            raise self.missing(shard) from error
        if len(raw) != num_bytes + _CRC_BYTES or not _crc_matches(raw):
            raise InputError(f"{self._store.url}/{path}: the shard's index is damaged; convert the data again")
        return np.frombuffer(raw, "<u8", count=2 * self._split.shard_slices).reshape(-1, 2)


def _crc_matches(raw: bytes) -> bool:
    return google_crc32c.value(raw[:-_CRC_BYTES]) == int.from_bytes(raw[-_CRC_BYTES:], "little")


class SliceReader:
    """k-space slices of one split by index, as (coil, height, width) complex64 arrays.

    Requests run in `num_threads` threads; decoded slices are kept in memory up to `cache_bytes`, least
    recently used out first. The arrays are shared with the cache and must not be written to.
    """

    def __init__(self, store: ObjectStore, split: str, num_threads: int = 4, cache_bytes: int = 0) -> None:
        self.info = read_split(store, split)
        self.bytes_read, self.seconds_reading = 0, 0.0
        self._store, self._locate = store, ShardIndexes(store, self.info)
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="larmor-read")
        self._cache: OrderedDict[int, np.ndarray] = OrderedDict()
        self._lock = threading.Lock()
        self._capacity = cache_bytes // (8 * int(np.prod(self.info.shape[1:])))

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The slices in the order of `indices` (repeats allowed).

        Raises `InputError` that names the shard if one is missing or damaged.
        """
        with self._lock:
            found = {index: self._cache[index] for index in set(indices) if index in self._cache}
            for index in found:
                self._cache.move_to_end(index)
        missing = [index for index in indices if index not in found]
        if missing:
            ranges = plan_ranges(missing, self.info.shard_slices, self._locate, max_gap=2**18, max_bytes=2**24)
            for decoded in self._pool.map(self._fetch, ranges):
                found.update(decoded)
        with self._lock:
            for index in missing[: self._capacity]:
                self._cache[index] = found[index]
            while len(self._cache) > self._capacity:
                self._cache.popitem(last=False)
        return [found[index] for index in indices]

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _fetch(self, wanted: ByteRange) -> dict[int, np.ndarray]:
        path = self._locate.shard_path(wanted.shard)
        began = time.perf_counter()
        try:
            raw = memoryview(self._store.read(path, wanted.start, wanted.stop))
        except FileNotFoundError as error:
            raise self._locate.missing(wanted.shard) from error
        with self._lock:
            self.bytes_read += len(raw)
            self.seconds_reading += time.perf_counter() - began
        decoded = {}
        for index in wanted.slices:
            start, stop = (place - wanted.start for place in self._locate(index))
            chunk = bytes(raw[start:stop])
            expected = 8 * int(np.prod(self.info.shape[1:])) + _CRC_BYTES
            if len(chunk) != expected or not _crc_matches(chunk):
                raise InputError(f"{self._store.url}/{path}: slice {index} is damaged; convert the data again")
            array = np.frombuffer(chunk, "<c8", count=(expected - _CRC_BYTES) // 8)
            decoded[index] = array.reshape(self.info.shape[1:])
        return decoded
