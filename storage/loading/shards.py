"""Where slices lie in their shards, and how few requests bring them.

zarr-python reads the chunks of a shard one after another and fetches the shard's index at every read; here
the index is fetched once and neighbouring slices travel in one request. Layout of a shard: Zarr v3
`sharding_indexed`, index at the end: (offset, length) little-endian uint64 per chunk, then a CRC-32C.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import crc32c
import numpy as np

from larmor.storage.dataset.dataset import SplitInfo, shard_path
from larmor.storage.dataset.layout import CRC_BYTES, Bucket
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import again_if_damaged

_RESIDUE = 0x48674BC7
MISSING = np.iinfo(np.uint64).max  # what a shard's index says of a slice that is not in it


@dataclass(frozen=True)
class ByteRange:
    """One request: the bytes [start, stop) of the object `path`, and the slices in them as (index, start, stop)."""

    path: str
    start: int
    stop: int
    slices: tuple[tuple[int, int, int], ...]


def plan_ranges(wanted: Iterable[int], indexes: ShardIndexes, max_gap: int, max_bytes: int) -> list[ByteRange]:
    """Group the wanted slices into few requests: neighbours at most `max_gap` bytes apart share one, in order."""
    ranges: list[ByteRange] = []
    for path, start, stop, index in sorted((*indexes.locate(index), index) for index in set(wanted)):
        last = ranges[-1] if ranges else None
        if last and last.path == path and 0 <= start - last.stop <= max_gap and stop - last.start <= max_bytes:
            slices = (*last.slices, (index, start, stop))
            ranges[-1] = ByteRange(path, last.start, stop, slices)
        else:
            ranges.append(ByteRange(path, start, stop, ((index, start, stop),)))
    return ranges


class ShardIndexes:
    """Where each slice of a split lies; every shard's index is fetched once. Safe to share by threads."""

    def __init__(self, store: ObjectStore, split: SplitInfo, kind: str = "kspace") -> None:
        self._store, self._split, self._kind = store, split, kind
        self._tables: dict[tuple[int, int], np.ndarray] = {}
        self._lock = threading.Lock()

    def locate(self, index: int) -> tuple[str, int, int]:
        """The shard's path, and start and stop of the encoded slice `index` in it, in bytes.

        Raises `InputError` that names the shard if it is missing or its index is damaged.
        """
        bucket = self._split.bucket_of(index)
        shard, row = divmod(int(self._split.row[index]), bucket.shard_slices)
        path = shard_path(self._split.name, self._kind, bucket.number, shard)
        start, length = (int(value) for value in self._table(bucket, shard, path)[row])
        if start == MISSING or length != bucket.chunk_bytes:
            raise InputError(f"{self._store.url}/{path}: slice {index} is not in its shard; convert the data again")
        return path, start, start + length

    def _table(self, bucket: Bucket, shard: int, path: str) -> np.ndarray:
        key = (bucket.number, shard)
        table = self._tables.get(key)
        if table is None:  # two threads may both fetch it: harmless, and none waits for the other's shard
            table = read_shard_index(self._store, path, bucket.shard_slices)
            with self._lock:
                self._tables[key] = table
        return table


def read_shard_index(store: ObjectStore, path: str, shard_slices: int) -> np.ndarray:
    """(shard_slices, 2) uint64: offset and length of each chunk. Raises `InputError` naming the object."""
    num_bytes = 16 * shard_slices + CRC_BYTES

    def read() -> np.ndarray:
        try:
            raw = store.read(path, start=-num_bytes)
        except FileNotFoundError as error:
            raise InputError(f"{store.url}/{path}: the shard is missing; convert the data again") from error
        if len(raw) != num_bytes or not crc_matches(raw):
            raise InputError(f"{store.url}/{path}: the shard's index is damaged; convert the data again")
        return np.frombuffer(raw, "<u8", count=2 * shard_slices).reshape(-1, 2)

    return again_if_damaged(read)


def crc_matches(*parts: Any) -> bool:
    """Whether the last four bytes of all are the CRC-32C of what precedes them: the CRC over all is a constant then."""
    found = 0
    for part in parts:
        found = crc32c.crc32c(part, found)
    return bool(found == _RESIDUE)


def decode_slice(chunk: memoryview, bucket: Bucket) -> np.ndarray | None:
    """An encoded slice as (coil, height, width) complex64, a view of `chunk`; None if it is damaged."""
    if len(chunk) != bucket.chunk_bytes or not crc_matches(chunk):
        return None
    return np.frombuffer(chunk.toreadonly(), "<c8", count=(len(chunk) - CRC_BYTES) // 8).reshape(bucket.shape)
