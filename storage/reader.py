"""Slices of one split by index: from memory, from the local disk, or from the store in few requests."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from storage.cache import DiskCache
from storage.dataset import BucketInfo, SplitInfo
from storage.errors import InputError
from storage.object_store import ObjectStore
from storage.order import blocks_of
from storage.shards import ByteRange, ShardIndexes, decode_slice, plan_ranges
from storage.store_errors import again_if_damaged

Kind = Literal["kspace", "sensitivity_maps"]
_MAX_GAP = 2**18  # bytes between two wanted slices that cost less than another request


@dataclass(frozen=True)
class ReadOptions:
    """`num_threads` requests run at once; slices within `block_bytes` are read together; `memory_bytes` of
    decoded slices are kept."""

    num_threads: int = 4
    block_bytes: int = 8 * 2**20
    memory_bytes: int = 0


@dataclass
class ReadCounts:
    """Bytes that came from the store, and from the disk cache; requests to the store."""

    bytes_read: int = 0
    bytes_cached: int = 0
    num_requests: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, read: int = 0, cached: int = 0, requests: int = 0) -> None:
        with self._lock:
            self.bytes_read += read
            self.bytes_cached += cached
            self.num_requests += requests


class SliceReader:
    """k-space slices of one split, as (coil, height, width) complex64 arrays that must not be written to.

    With `kind="sensitivity_maps"` the maps that are stored beside the k-space; 1 for slices of one coil. `maps`, the
    reader of the maps that belong to this k-space, is for those who want both: a reader never looks at it.

    Unless the store's client is http, slices that were read together are views of one answer, which stays in memory
    for the last of them.

    Slices are looked for in memory, then in `cache`, then read from the store by `num_threads` threads. Both
    caches fill up and then stay as they are: each epoch reads every slice once, whatever the order.
    """

    def __init__(
        self,
        store: ObjectStore,
        info: SplitInfo,
        options: ReadOptions | None = None,
        cache: DiskCache | None = None,
        kind: Kind = "kspace",
        maps: SliceReader | None = None,
    ) -> None:
        options = options or ReadOptions()
        self.info, self.maps = info, maps
        self.counts: ReadCounts = maps.counts if maps else ReadCounts()
        self.block_of = blocks_of(self.info, options.block_bytes)
        self._store, self._kind, self._indexes = store, kind, ShardIndexes(store, self.info, kind)
        self._max_bytes = max(options.block_bytes, 2**20)
        self._pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="larmor-read")
        self._memory: dict[int, np.ndarray] = {}
        self._room, self._lock = options.memory_bytes, threading.Lock()
        self._cache = cache

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The slices in the order of `indices` (repeats allowed).

        Raises `InputError` that names the object if one is missing, damaged, or cannot be had.
        """
        wanted = np.unique(np.asarray(indices, np.int64))
        blocks = self.block_of[wanted]
        tasks = [self.fetch(wanted[blocks == block].tolist()) for block in np.unique(blocks)]
        found: dict[int, np.ndarray] = {}
        for task in tasks:
            found.update(task.result())
        return [found[int(index)] for index in indices]

    def fetch(self, slices: Sequence[int]) -> Future[dict[int, np.ndarray]]:
        """Begin to read some slices, of one block for few requests; raises what `read` raises at `result()`."""
        return self._pool.submit(self._fetch, slices)

    def close(self) -> None:
        """End the threads, those of the maps too; requests under way are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        if self.maps:
            self.maps.close()

    def _fetch(self, slices: Sequence[int]) -> dict[int, np.ndarray]:
        found: dict[int, np.ndarray] = {}
        for index in slices:
            kept = self._memory.get(index)
            if kept is None and self._kind not in self.info.bucket_of(index).checksums:
                kept = _one_coils_map(self.info.bucket_of(index))
            if kept is None and self._cache:
                kept = self._cached(index)
            if kept is not None:
                found[index] = kept
        missing = [index for index in slices if index not in found]
        for wanted in plan_ranges(missing, self._indexes, _MAX_GAP, self._max_bytes):
            found.update(self._request(wanted))
        return found

    def _cached(self, index: int) -> np.ndarray | None:
        assert self._cache
        bucket = self.info.bucket_of(index)
        chunk = self._store.memory.empty(bucket.chunk_bytes).data
        if not self._cache.get(index, chunk):
            return None
        array = decode_slice(chunk, bucket)
        if array is None:
            self._cache.discard(index)
            return None
        self.counts.add(cached=len(chunk))
        self._keep({index: array}, len(chunk))
        return array

    def _request(self, wanted: ByteRange) -> dict[int, np.ndarray]:
        chunks, arrays = again_if_damaged(lambda: self._answer(wanted))
        if self._cache:
            for index, chunk in chunks.items():
                self._cache.put(index, chunk)
        self._keep(arrays, wanted.stop - wanted.start)
        return arrays

    def _answer(self, wanted: ByteRange) -> tuple[dict[int, memoryview], dict[int, np.ndarray]]:
        """The slices of one request, encoded and decoded."""
        place = f"{self._store.url}/{wanted.path}"
        try:
            edges = sorted({place for _, *both in wanted.slices for place in both})
            parts = dict(zip(edges, self._store.read_parts(wanted.path, edges), strict=False))
        except FileNotFoundError as error:
            raise InputError(f"{place}: the shard is missing; convert the data again") from error
        self.counts.add(read=sum(map(len, parts.values())), requests=1)
        chunks, arrays = {}, {}
        for index, start, _ in wanted.slices:
            chunks[index] = parts[start]
            array = decode_slice(chunks[index], self.info.bucket_of(index))
            if array is None:
                raise InputError(
                    f"{place}: slice {index} is damaged; `larmor verify` shows what else is, convert the data again"
                )
            arrays[index] = array
        return chunks, arrays

    def _keep(self, arrays: dict[int, np.ndarray], num_bytes: int) -> None:
        """Keep what came in one answer of `num_bytes`: all or nothing, since one slice may hold the whole."""
        with self._lock:
            if num_bytes <= self._room and self._memory.keys().isdisjoint(arrays):
                self._memory.update(arrays)
                self._room -= num_bytes


def check_maps(store: ObjectStore, info: SplitInfo) -> None:
    """Raises `InputError` if slices of several coils have no sensitivity maps beside them."""
    for bucket in info.buckets:
        if bucket.shape[0] > 1 and "sensitivity_maps" not in bucket.checksums:
            raise InputError(
                f"{store.url}: its split '{info.name}' has slices of {bucket.shape[0]} coils without sensitivity maps, "
                "which signal.coils=sense needs; convert again with --sensitivity-maps, or set signal.coils=rss"
            )


def _one_coils_map(bucket: BucketInfo) -> np.ndarray:
    """A view of a single number: what is not stored takes no memory either."""
    assert bucket.shape[0] == 1, "maps of several coils are stored"
    return np.broadcast_to(np.complex64(1), bucket.shape)
