"""Slices of one split by index: from memory, from the local disk, or from the store in few requests."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Literal

import numpy as np

from larmor.storage.dataset.dataset import SplitInfo, stated_crc
from larmor.storage.dataset.layout import CRC_BYTES
from larmor.storage.loading.cache import DiskCache
from larmor.storage.loading.order import blocks_of
from larmor.storage.loading.shards import ByteRange, ShardIndexes, crc_matches, plan_ranges
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import again_if_damaged

Kind = Literal["kspace", "sensitivity_maps", "guide"]
Chunk = tuple[memoryview, memoryview]
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
    """k-space slices of one split, (coil, height, width) complex64, read to where the caller wants them.

    With `kind="sensitivity_maps"` the maps that are stored beside the k-space; 1 for slices of one coil. `maps` and
    `guide`, the readers of the maps and the second contrast that belong to this k-space, are for those who want both:
    a reader never looks at them.

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
        guide: SliceReader | None = None,
        indexes: ShardIndexes | None = None,
    ) -> None:
        options = options or ReadOptions()
        self.info, self.maps, self.guide = info, maps, guide
        self.counts: ReadCounts = maps.counts if maps else ReadCounts()
        if guide:
            guide.counts = self.counts
        self.block_of = blocks_of(self.info, options.block_bytes)
        self._store, self._kind = store, kind
        self._indexes = indexes or ShardIndexes(store, self.info, kind)
        self._max_bytes = max(options.block_bytes, 2**20)
        self._pool = ThreadPoolExecutor(options.num_threads, thread_name_prefix="larmor-read")
        self._memory: dict[int, np.ndarray] = {}
        self._room, self._lock = options.memory_bytes, threading.Lock()
        self._cache = cache

    @property
    def companions(self) -> tuple[SliceReader, ...]:
        """The readers of what lies beside this k-space, in the order of `Batch.places`."""
        return tuple(reader for reader in (self.maps, self.guide) if reader)

    def read(self, indices: Sequence[int]) -> list[np.ndarray]:
        """The slices in the order of `indices`; repeats are allowed, and give one array, which cannot be written to.

        Raises `InputError` that names the object if one is missing, damaged, or cannot be had.
        """
        found = {int(index): np.empty(self.info.bucket_of(index).shape, np.complex64) for index in np.unique(indices)}
        blocks: dict[int, dict[int, np.ndarray]] = {}
        for index, array in found.items():
            blocks.setdefault(int(self.block_of[index]), {})[index] = array
        for task in [self.fetch(block) for block in blocks.values()]:
            task.result()
        for array in found.values():
            array.setflags(write=False)
        return [found[int(index)] for index in indices]

    def fetch(self, into: Mapping[int, np.ndarray]) -> Future[None]:
        """Begin to read slices, of one block for few requests, each into its array (contiguous complex64).

        The arrays are whole at `result()`, which raises what `read` raises.
        """
        return self._pool.submit(self._fetch, into)

    def plan(self, indices: Iterable[int]) -> list[ByteRange]:
        """The requests that bring these slices from the store."""
        return plan_ranges(indices, self._indexes, _MAX_GAP, self._max_bytes)

    def close(self) -> None:
        """End the threads, those of maps and guide too; requests under way are waited for."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for reader in self.companions:
            reader.close()

    def _fetch(self, into: Mapping[int, np.ndarray]) -> None:
        missing = [index for index, array in into.items() if not self._from_memory(index, array)]
        if self._cache:
            missing = [index for index in missing if not self._from_cache(index, into[index])]
        for wanted in self.plan(missing):
            chunks = again_if_damaged(partial(self._receive, wanted, into))
            for index, chunk in chunks.items():
                if self._cache:
                    self._cache.put(index, chunk)
                self._keep(index, into[index])

    def _from_memory(self, index: int, array: np.ndarray) -> bool:
        kept = self._memory.get(index)
        if kept is None and self._kind not in self.info.bucket_of(index).checksums:
            assert array.shape[0] == 1, "maps of several coils are stored"
            array[...] = 1
            return True
        if kept is not None:
            array[...] = kept
        return kept is not None

    def _from_cache(self, index: int, array: np.ndarray) -> bool:
        assert self._cache
        chunk = _chunk(array)
        if not self._cache.get(index, chunk):
            return False
        if not crc_matches(*chunk) or not self._is_the_one(index, chunk):
            self._cache.discard(index)
            return False
        self.counts.add(cached=sum(map(len, chunk)))
        self._keep(index, array)
        return True

    def _receive(self, wanted: ByteRange, into: Mapping[int, np.ndarray]) -> dict[int, Chunk]:
        """The slices of one request, in their arrays; each with its CRC."""
        chunks = {index: _chunk(into[index]) for index, _, _ in wanted.slices}
        parts, end = [], wanted.start
        for index, start, stop in wanted.slices:
            if start > end:
                parts.append(memoryview(bytearray(start - end)))
            parts += chunks[index]
            end = stop
        place = f"{self._store.url}/{wanted.path}"
        try:
            received = self._store.read_into(wanted.path, wanted.start, parts)
        except FileNotFoundError as error:
            raise InputError(f"{place}: the shard is missing; convert the data again") from error
        self.counts.add(read=received, requests=1)
        for index, _, stop in wanted.slices:
            if stop > wanted.start + received or not crc_matches(*chunks[index]):
                raise InputError(
                    f"{place}: slice {index} is damaged; `larmor verify` lists all damage; convert the data again"
                )
            if not self._is_the_one(index, chunks[index]):
                raise InputError(
                    f"{place}: slice {index} does not belong to the data set that was opened: another one has taken "
                    "its "
                    "place since (`larmor convert --overwrite`), or the shard was changed; start a new run with the "
                    "current data set, or convert the data again"
                )
        return chunks

    def _is_the_one(self, index: int, chunk: Chunk) -> bool:
        """Whether a whole slice is that of this data set: another one may lie under the same name by now."""
        return bytes(chunk[1]) == stated_crc(self.info, self._kind, index)

    def _keep(self, index: int, array: np.ndarray) -> None:
        with self._lock:
            if array.nbytes <= self._room and index not in self._memory:
                self._memory[index] = array.copy()
                self._room -= array.nbytes


def _chunk(array: np.ndarray) -> Chunk:
    """Where an encoded slice goes: its values into `array`, and their CRC-32C."""
    assert array.flags.c_contiguous, "the bytes are received in this order"
    return array.reshape(-1).view(np.uint8).data, memoryview(bytearray(CRC_BYTES))


def check_guide(store: ObjectStore, info: SplitInfo) -> None:
    """Raises `InputError` if the slices have no second contrast beside them."""
    if not info.has_guide:
        raise InputError(
            f"{store.url}: its split '{info.name}' has no guide, a second contrast of each scan, which "
            "signal.guide=true needs; convert again with --guide, or set signal.guide=false"
        )


def check_maps(store: ObjectStore, info: SplitInfo) -> None:
    """Raises `InputError` if slices of several coils have no sensitivity maps beside them."""
    for bucket in info.buckets:
        if bucket.shape[0] > 1 and "sensitivity_maps" not in bucket.checksums:
            raise InputError(
                f"{store.url}: its split '{info.name}' has slices of {bucket.shape[0]} coils without sensitivity maps, "
                "which signal.coils=sense needs; convert again with --sensitivity-maps, or set signal.coils=rss"
            )
