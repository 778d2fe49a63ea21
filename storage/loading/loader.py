"""Batches of k-space for one rank, read ahead in threads."""

from __future__ import annotations

import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from itertools import islice

import numpy as np

from larmor.storage.loading.buffers import Recycler
from larmor.storage.loading.order import SampleOrder
from larmor.storage.loading.reader import SliceReader
from larmor.storage.loading.stacks import members

Allocate = Callable[[tuple[int, ...]], np.ndarray]
_IDLE_BYTES = 64 * 2**20
_LEAST_AHEAD = 2  # micro-batches


@dataclass(frozen=True)
class SliceGroup:
    """Slices of one shape: `kspace` (n, coil, height, width) complex64; `rows` (n,) are their places in the batch.

    `maps` are the sensitivity maps, and `guide` the second contrast, as `kspace`, if they were asked for.
    """

    kspace: np.ndarray
    rows: np.ndarray
    maps: np.ndarray | None = None
    guide: np.ndarray | None = None

    @property
    def arrays(self) -> tuple[np.ndarray, ...]:
        """Those that are there, in the order of a reader and its `companions`."""
        return tuple(array for array in (self.kspace, self.maps, self.guide) if array is not None)


@dataclass(frozen=True)
class Batch:
    """A group for each shape among the samples; `samples` (batch, 2): epoch and slice index."""

    groups: tuple[SliceGroup, ...]
    samples: np.ndarray

    @staticmethod
    def of(
        kspace: np.ndarray, samples: np.ndarray, maps: np.ndarray | None = None, guide: np.ndarray | None = None
    ) -> Batch:
        """A batch of equally shaped slices (batch, coil, height, width)."""
        return Batch((SliceGroup(kspace, np.arange(len(kspace)), maps, guide),), samples)

    @staticmethod
    def empty(
        shapes: Sequence[tuple[int, ...]],
        samples: np.ndarray,
        allocate: Allocate | None = None,
        with_maps: bool = False,
        with_guide: bool = False,
    ) -> Batch:
        """Room for slices of these shapes (coil, height, width), for their maps and their guides; equal shapes share
        one array.

        `allocate` makes the complex64 arrays, in page-locked memory for a GPU, say.
        """

        def room(shape: tuple[int, ...]) -> np.ndarray:
            return allocate(shape) if allocate else np.empty(shape, np.complex64)

        members: dict[tuple[int, ...], list[int]] = {}
        for row, shape in enumerate(shapes):
            members.setdefault(shape, []).append(row)
        sizes = {shape: (len(rows), *shape) for shape, rows in members.items()}
        groups = (
            SliceGroup(
                room(sizes[shape]),
                np.array(rows),
                room(sizes[shape]) if with_maps else None,
                room(sizes[shape]) if with_guide else None,
            )
            for shape, rows in members.items()
        )
        return Batch(tuple(groups), samples)

    def places(self) -> list[tuple[np.ndarray, ...]]:
        """Of each sample a view of its k-space and, where there are such, of its maps and its guide."""
        found: dict[int, tuple[np.ndarray, ...]] = {}
        for group in self.groups:
            found.update(zip(group.rows.tolist(), zip(*group.arrays, strict=True), strict=True))
        return [found[row] for row in range(len(self.samples))]

    @staticmethod
    def gather(
        slices: Sequence[np.ndarray],
        samples: np.ndarray,
        allocate: Allocate | None = None,
        maps: Sequence[np.ndarray] | None = None,
        guide: Sequence[np.ndarray] | None = None,
    ) -> Batch:
        """Copy slices of any shapes together, with their maps and their guides (see `empty`)."""
        shapes = [item.shape for item in slices]
        batch = Batch.empty(shapes, samples, allocate, maps is not None, guide is not None)
        sources = [source for source in (slices, maps, guide) if source is not None]
        for places, arrays in zip(batch.places(), zip(*sources, strict=True), strict=True):
            for place, array in zip(places, arrays, strict=True):
                place[...] = array
        return batch

    @staticmethod
    def read(reader: SliceReader, samples: np.ndarray) -> Batch:
        """The slices of `samples` (batch, 2), read now, with what the reader has readers of beside them."""
        indices = samples[:, 1].tolist()
        maps, guide = (one.read(indices) if one else None for one in (reader.maps, reader.guide))
        return Batch.gather(reader.read(indices), samples, maps=maps, guide=guide)


@dataclass(frozen=True)
class Share:
    """Which part of a global batch, of slices or of stacks, a rank trains on, and in how many micro-batches."""

    rank: int
    world_size: int
    global_batch_size: int
    num_micro_batches: int

    @property
    def micro_batch_size(self) -> int:
        return self.global_batch_size // self.world_size // self.num_micro_batches


class Loader:
    """Endless micro-batches of one rank, from global batch `first_batch` on.

    The state is the number of global batches consumed; nothing else is needed to resume exactly, at any
    world size that divides the batch and with any number of threads.

    Slices are received where they belong in their batches. Memory: the batches that this rank's part of the order's
    windows reaches, and `read_ahead_bytes`.

    With `starts` the order is one of stacks: number n of it is the stack of `stack` slices from `starts[n]` on, which
    is read in one request, and whose slices follow each other in a batch.
    """

    def __init__(
        self,
        reader: SliceReader,
        order: SampleOrder,
        share: Share,
        read_ahead_bytes: int = 64 * 2**20,
        allocate: Allocate | None = None,
        starts: np.ndarray | None = None,
        stack: int = 1,
    ) -> None:
        self.seconds_waiting = 0.0
        self._starts, self._stack = starts, stack
        self.counts = reader.counts
        self._reader, self._order, self._share = reader, order, share
        self._memory = Recycler(_IDLE_BYTES)
        self._allocate = allocate or self._recycled
        largest = (1 + len(reader.companions)) * max(bucket.chunk_bytes for bucket in reader.info.buckets)
        ahead = -(-read_ahead_bytes // (largest * share.micro_batch_size * stack))
        epoch = -(-order.num_samples // (share.world_size * share.micro_batch_size))  # of few slices many fit
        self._num_ahead = max(_LEAST_AHEAD, min(ahead, epoch))

    def batches(self, first_batch: int, end: int | None = None) -> Generator[Batch, None, None]:
        """Micro-batches in order, up to global batch `end` if it is given; close the generator to stop reading ahead.

        Raises `InputError` that names the object if a slice cannot be had.
        """
        share = self._share
        count = None
        if end is not None:
            count = max(0, end - first_batch) * share.num_micro_batches * share.micro_batch_size
        return self._read_ahead(first_batch * share.global_batch_size + share.rank, count)

    def epoch(self, epoch: int, num_samples: int | None = None) -> Generator[Batch, None, None]:
        """Micro-batches of this rank's part of one epoch, or of its first `num_samples`; the last one may be smaller.

        All ranks together have every sample once; some may have one more than others. Raises as `batches`.
        """
        whole, share = self._order.num_samples, self._share
        places = range(share.rank, whole if num_samples is None else num_samples, share.world_size)
        return self._read_ahead(epoch * whole + share.rank, len(places))

    def _read_ahead(self, start: int, count: int | None) -> Generator[Batch, None, None]:
        """The rank's next `count` samples from the place `start` of the endless stream on; None: without end."""
        plan = self._begun(start, count)
        requested: deque[_MicroBatch] = deque()
        try:
            while True:
                requested.extend(islice(plan, self._num_ahead - len(requested)))
                if not requested:
                    return
                began = time.perf_counter()
                for source in requested[0].sources:
                    source.result()
                self.seconds_waiting += time.perf_counter() - began
                yield requested.popleft().batch
        finally:
            for source in (source for item in requested for source in item.sources):
                source.cancel()

    def _begun(self, start: int, count: int | None) -> Iterator[_MicroBatch]:
        """The rank's micro-batches from the place `start` of the endless stream on, all of their slices requested;
        with `count` those of so many samples.

        The rank's samples are every `world_size`-th of the stream, so that it stays on its lanes. At a piece's first
        slice, all of it that the rank's epoch still needs is read, into this batch and later ones.
        """
        order, stride, size = self._order, self._share.world_size, self._share.micro_batch_size
        source = self._reader
        readers = (source, *source.companions)
        begun: dict[int, _MicroBatch] = {}

        def places_of(number: int) -> np.ndarray:
            end = (number + 1) * size if count is None else min((number + 1) * size, count)
            return start + stride * np.arange(number * size, end, dtype=np.int64)

        def micro_batch(number: int) -> _MicroBatch:
            if number not in begun:
                samples = self._slices(order.samples(places_of(number)))
                shapes = [self._reader.info.bucket_of(index).shape for index in samples[:, 1]]
                beside = (source.maps is not None, source.guide is not None)
                begun[number] = _MicroBatch(Batch.empty(shapes, samples, self._allocate, *beside))
            return begun[number]

        epoch = -1
        wanted: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for number in range(-(-count // size)) if count is not None else itertools.count():
            for place in places_of(number).tolist():
                if place // order.num_samples != epoch:
                    epoch, first = divmod(place, order.num_samples)
                    last = None if count is None else start + stride * count - epoch * order.num_samples
                    wanted = _by_piece(order, epoch, slice(first, last, stride))
                piece = int(order.pieces(epoch)[place % order.num_samples])
                if piece not in wanted:  # requested with an earlier slice of it
                    continue
                slices, at = wanted.pop(piece)
                numbers, rows = np.divmod((epoch * order.num_samples + at - start) // stride, size)
                for request in self._requests(slices, numbers, rows):
                    into: list[dict[int, np.ndarray]] = [{} for _ in readers]
                    for index, batch, row in request:
                        for targets, array in zip(into, micro_batch(batch).places[row], strict=True):
                            targets[index] = array
                    sources = [reader.fetch(targets) for reader, targets in zip(readers, into, strict=True)]
                    for batch in {batch: None for _, batch, _ in request}:
                        begun[batch].sources += sources
            yield begun.pop(number)

    def _slices(self, samples: np.ndarray) -> np.ndarray:
        """Epoch and slice index of each image, for samples of the order."""
        if self._starts is None:
            return samples
        return members(np.stack([samples[:, 0], self._starts[samples[:, 1]]], axis=1), self._stack)

    def _requests(self, found: np.ndarray, numbers: np.ndarray, rows: np.ndarray) -> list[list[tuple[int, int, int]]]:
        """What is read together, as (slice index, micro-batch, row): the slices of a piece, or each of its stacks,
        which may overlap."""
        each = zip(found.tolist(), numbers.tolist(), rows.tolist(), strict=True)
        if self._starts is None:
            return [list(each)]
        first, size = self._starts, self._stack
        return [
            [(int(first[stack]) + place, batch, row * size + place) for place in range(size)]
            for stack, batch, row in each
        ]

    def _recycled(self, shape: tuple[int, ...]) -> np.ndarray:
        return self._memory.empty(8 * math.prod(shape)).view(np.complex64).reshape(shape)


class _MicroBatch:
    """A batch that is being filled: whole when all of `sources` have a result."""

    def __init__(self, batch: Batch) -> None:
        self.batch, self.places = batch, batch.places()
        self.sources: list[Future[None]] = []


def _by_piece(order: SampleOrder, epoch: int, part: slice) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """The slices of each piece, ascending, among some places of an epoch; and these places."""
    at = np.arange(order.num_samples)[part]
    slices, pieces = order.epoch(epoch)[part], order.pieces(epoch)[part]
    ordered = np.lexsort((slices, pieces))
    names, first = np.unique(pieces[ordered], return_index=True)
    parts = zip(np.split(slices[ordered], first[1:]), np.split(at[ordered], first[1:]), strict=True)
    return dict(zip(names.tolist(), parts, strict=True))
