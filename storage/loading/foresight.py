"""What a rank would ask of the store, and how much memory its batches take: the loader's own plan, nothing is read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice

import numpy as np

from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.dataset.layout import Bucket
from larmor.storage.loading.config import DataConfig, open_loader
from larmor.storage.loading.loader import Batch, Share
from larmor.storage.loading.reader import Kind, ReadOptions, SliceReader
from larmor.storage.loading.shards import ByteRange, ShardIndexes
from larmor.storage.objects.object_store import ObjectStore


@dataclass(frozen=True)
class Foreseen:
    """What one rank does for some batches without any cache: its requests of slices, in the order in which they are
    made, how many of them were made for each batch, and its samples (n, 2), epoch and number.

    `shards` are those whose index it needs, one small request each. `batch_bytes` is the most memory that its batches
    take at a time: those that are filled, and the one that is trained on.
    """

    requests: tuple[ByteRange, ...]
    requests_of_batch: tuple[int, ...]
    samples: np.ndarray
    batch_bytes: int

    @property
    def request_bytes(self) -> np.ndarray:
        """(n,) int64: the size of each request."""
        return np.array([item.stop - item.start for item in self.requests], np.int64)

    @property
    def shards(self) -> frozenset[str]:
        return frozenset(item.path for item in self.requests)


class PlannedReader(SliceReader):
    """Plans as a reader does, keeps the requests and makes none. Slices lie in their shards as a conversion puts them:
    one after another."""

    def __init__(
        self,
        info: SplitInfo,
        options: ReadOptions,
        kind: Kind = "kspace",
        maps: SliceReader | None = None,
        guide: SliceReader | None = None,
    ) -> None:
        store = ObjectStore("memory://planned")
        indexes = _RegularIndexes(store, info, kind)
        super().__init__(store, info, options, kind=kind, maps=maps, guide=guide, indexes=indexes)
        self.planned: list[ByteRange] = []

    def fetch(self, into: Mapping[int, np.ndarray]) -> Future[None]:
        self.planned += self.plan(into)
        done: Future[None] = Future()
        done.set_result(None)
        return done


class _RegularIndexes(ShardIndexes):
    def _table(self, bucket: Bucket, shard: int, path: str) -> np.ndarray:
        starts = bucket.chunk_bytes * np.arange(bucket.shard_slices, dtype=np.uint64)
        return np.stack([starts, np.full_like(starts, bucket.chunk_bytes)], axis=1)


def foresee(
    config: DataConfig,
    info: SplitInfo,
    share: Share,
    seed: int,
    batches: range,
    with_maps: bool = False,
    with_guide: bool = False,
) -> Foreseen:
    """What the rank of `share` does for the global batches `batches` of a split, as the loader plans it.

    Raises `InputError` as `open_loader`.
    """
    options = ReadOptions(config.read_threads, config.block_bytes)
    maps = PlannedReader(info, options, "sensitivity_maps") if with_maps else None
    guide = PlannedReader(info, options, "guide") if with_guide else None
    reader = PlannedReader(info, options, maps=maps, guide=guide)
    readers = [each for each in (reader, maps, guide) if each]
    held = most = 0
    made: list[int] = []
    samples = [np.empty((0, 2), np.int64)]

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        nonlocal held, most
        held += 8 * math.prod(shape)
        most = max(most, held)
        return np.broadcast_to(np.zeros((), np.complex64), shape)  # of any shape, and no memory

    def requested() -> int:
        return sum(len(each.planned) for each in readers)

    loader = open_loader(config, reader, share, seed, allocate)
    before: Batch | None = None
    try:
        for batch in islice(loader.batches(batches.start, batches.stop), len(batches) * share.num_micro_batches):
            held -= _bytes_of(before)
            before = batch
            samples.append(batch.samples)
            made.append(requested() - sum(made))
    finally:
        reader.close()
    return Foreseen(
        tuple(item for each in readers for item in each.planned), tuple(made), np.concatenate(samples), most
    )


def _bytes_of(batch: Batch | None) -> int:
    groups = batch.groups if batch else ()
    return sum(array.nbytes for group in groups for array in group.arrays)
