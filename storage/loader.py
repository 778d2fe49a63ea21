"""Batches of k-space for one rank, read ahead in threads."""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice

import numpy as np

from storage.buffers import Recycler
from storage.order import SampleOrder
from storage.reader import SliceReader

Allocate = Callable[[tuple[int, ...]], np.ndarray]
_IDLE_BYTES = 64 * 2**20
_ASSEMBLED = 2  # micro-batches copied together before they are asked for


@dataclass(frozen=True)
class SliceGroup:
    """Slices of one shape: `kspace` (n, coil, height, width) complex64; `rows` (n,) are their places in the batch.

    `maps` are the sensitivity maps, as `kspace`, if they were asked for.
    """

    kspace: np.ndarray
    rows: np.ndarray
    maps: np.ndarray | None = None


@dataclass(frozen=True)
class Batch:
    """A group for each shape among the samples; `samples` (batch, 2): epoch and slice index."""

    groups: tuple[SliceGroup, ...]
    samples: np.ndarray

    @staticmethod
    def of(kspace: np.ndarray, samples: np.ndarray, maps: np.ndarray | None = None) -> Batch:
        """A batch of equally shaped slices (batch, coil, height, width)."""
        return Batch((SliceGroup(kspace, np.arange(len(kspace)), maps),), samples)

    @staticmethod
    def gather(
        slices: Sequence[np.ndarray],
        samples: np.ndarray,
        allocate: Allocate | None = None,
        maps: Sequence[np.ndarray] | None = None,
    ) -> Batch:
        """Copy slices (coil, height, width) of any shapes together, equal shapes into one array; their maps likewise.

        `allocate` makes the complex64 arrays, in page-locked memory for a GPU, say.
        """

        def together(items: Sequence[np.ndarray], rows: Sequence[int]) -> np.ndarray:
            size = (len(rows), *items[rows[0]].shape)
            array = allocate(size) if allocate else np.empty(size, np.complex64)
            return np.stack([items[row] for row in rows], out=array)

        members: dict[tuple[int, ...], list[int]] = {}
        for row, item in enumerate(slices):
            members.setdefault(item.shape, []).append(row)
        groups = (
            SliceGroup(together(slices, rows), np.array(rows), together(maps, rows) if maps else None)
            for rows in members.values()
        )
        return Batch(tuple(groups), samples)

    @staticmethod
    def read(reader: SliceReader, samples: np.ndarray) -> Batch:
        """The slices of `samples` (batch, 2), read now, with their maps if the reader has a reader of them."""
        indices = samples[:, 1].tolist()
        return Batch.gather(reader.read(indices), samples, maps=reader.maps.read(indices) if reader.maps else None)


@dataclass(frozen=True)
class Share:
    """Which part of a global batch a rank trains on, and in how many micro-batches."""

    rank: int
    world_size: int
    global_batch_size: int
    num_micro_batches: int

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.world_size // self.num_micro_batches


class Loader:
    """Endless micro-batches of one rank, from global batch `first_batch` on.

    The state is the number of global batches consumed; nothing else is needed to go on exactly, at any
    world size that divides the batch and with any number of threads.

    Memory: the blocks of the order's windows that this rank reads, `read_ahead_bytes`, and a few micro-batches.
    """

    def __init__(
        self,
        reader: SliceReader,
        order: SampleOrder,
        share: Share,
        read_ahead_bytes: int = 64 * 2**20,
        allocate: Allocate | None = None,
    ) -> None:
        self.seconds_waiting = 0.0
        self.counts = reader.counts
        self._reader, self._order, self._share = reader, order, share
        self._memory = Recycler(_IDLE_BYTES)
        self._allocate = allocate or self._recycled
        largest = (2 if reader.maps else 1) * max(bucket.chunk_bytes for bucket in reader.info.buckets)
        ahead = -(-read_ahead_bytes // (largest * share.micro_batch_size))
        epoch = -(-order.num_samples // (share.world_size * share.micro_batch_size))  # of few slices many fit
        self._num_ahead = max(_ASSEMBLED, min(ahead, epoch))

    def batches(self, first_batch: int, end: int | None = None) -> Generator[Batch, None, None]:
        """Micro-batches in order, up to global batch `end` if it is given; close the generator to stop reading ahead.

        Raises `InputError` that names the object if a slice cannot be had.
        """
        share = self._share
        count = None if end is None else max(0, end - first_batch) * share.num_micro_batches
        plan = islice(_requests(self._reader, self._order, share, first_batch), count)
        requested: deque[_MicroBatch] = deque()
        assembled: deque[Future[Batch]] = deque()
        with ThreadPoolExecutor(1, thread_name_prefix="larmor-batch") as pool:
            try:
                while True:
                    requested.extend(islice(plan, max(0, self._num_ahead - len(requested) - len(assembled))))
                    while requested and len(assembled) < _ASSEMBLED:
                        assembled.append(pool.submit(self._assemble, requested.popleft()))
                    if not assembled:
                        return
                    began = time.perf_counter()
                    batch = assembled.popleft().result()
                    self.seconds_waiting += time.perf_counter() - began
                    yield batch
            finally:
                for batch_under_way in assembled:
                    batch_under_way.cancel()
                for source in (source for item in requested for sources in item.sources for source in sources):
                    source.cancel()

    def _assemble(self, micro_batch: _MicroBatch) -> Batch:
        # popped, so that a slice is held only until the batch that uses it
        slices, *maps = [
            [source.result().pop(int(index)) for source, index in zip(sources, micro_batch.samples[:, 1], strict=True)]
            for sources in zip(*micro_batch.sources, strict=True)
        ]
        return Batch.gather(slices, micro_batch.samples, self._allocate, maps[0] if maps else None)

    def _recycled(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._memory.empty(8 * math.prod(shape)).view(np.complex64).reshape(shape)


_Requests = tuple[Future[dict[int, np.ndarray]], ...]


@dataclass(frozen=True)
class _MicroBatch:
    """`samples` (n, 2), and for each the requests that bring its k-space and, if there are any, its maps."""

    samples: np.ndarray
    sources: Sequence[_Requests]


def _requests(reader: SliceReader, order: SampleOrder, share: Share, first_batch: int) -> Iterator[_MicroBatch]:
    """The micro-batches of one rank. At a piece's first slice, all of it that the rank's epoch still needs is read.

    A rank's samples are every `world_size`-th of the endless stream (see `rank_part`).
    """
    place = first_batch * share.global_batch_size + share.rank
    steps = share.world_size * np.arange(share.micro_batch_size, dtype=np.int64)
    epoch = -1
    wanted: dict[int, list[int]] = {}  # the slices of each piece that this epoch of the rank still needs
    reading: dict[int, _Requests] = {}
    readers = (reader, reader.maps) if reader.maps else (reader,)
    while True:
        places = place + steps
        samples = order.samples(places)
        sources = []
        for here, (sample_epoch, _) in zip(places.tolist(), samples.tolist(), strict=True):
            if sample_epoch != epoch:
                epoch, reading = sample_epoch, {}
                wanted = _by_piece(order, epoch, slice(here % order.num_samples, None, share.world_size))
            piece = int(order.pieces(epoch)[here % order.num_samples])
            if piece not in reading:
                slices = wanted.pop(piece)
                reading[piece] = tuple(each.fetch(slices) for each in readers)
            sources.append(reading[piece])
        yield _MicroBatch(samples, sources)
        place += share.world_size * share.micro_batch_size


def _by_piece(order: SampleOrder, epoch: int, places: slice) -> dict[int, list[int]]:
    """The slices of each piece, ascending, among the given places of an epoch."""
    slices, pieces = order.epoch(epoch)[places], order.pieces(epoch)[places]
    ordered = np.lexsort((slices, pieces))
    names, first = np.unique(pieces[ordered], return_index=True)
    parts = np.split(slices[ordered], first[1:])
    return {int(name): part.tolist() for name, part in zip(names, parts, strict=True)}
