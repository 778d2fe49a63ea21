"""Batches of k-space for one rank, read ahead in threads."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Annotated

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from storage.object_store import ObjectStore
from storage.order import SampleOrder, rank_part
from storage.shards import SliceReader

# the smallest image that every metric can rate: SSIM looks through a window of 7 pixels
CropSize = Annotated[int, Field(ge=8)]


class DataConfig(BaseModel):
    """Where the k-space lies and how it is read."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    url: str = Field("s3://larmor/heads", description="data set made by `larmor convert`")
    crop: tuple[CropSize, CropSize] = Field((256, 256), description="height and width of the centre crop of the image")
    train_split: str = "train"
    validation_split: str = "validation"
    shuffle_shards: int = Field(8, ge=1, description="shards that are shuffled together")
    read_threads: int = Field(4, ge=1, le=64)
    read_ahead: int = Field(4, ge=1, le=64, description="micro-batches prepared in advance")
    cache_bytes: int = Field(256 * 2**20, ge=0, description="decoded slices kept in memory, per worker")


@dataclass(frozen=True)
class Batch:
    """`kspace` (batch, coil, height, width) complex64; `samples` (batch, 2): epoch and slice index."""

    kspace: np.ndarray
    samples: np.ndarray


@dataclass(frozen=True)
class Share:
    """Which part of a global batch a rank trains on, and in how many micro-batches."""

    rank: int
    world_size: int
    global_batch_size: int
    num_micro_batches: int


class Loader:
    """Endless micro-batches of one rank, from global batch `first_batch` on.

    The state is the number of global batches consumed; nothing else is needed to go on exactly.
    """

    def __init__(self, reader: SliceReader, order: SampleOrder, share: Share, read_ahead: int) -> None:
        self.seconds_waiting = 0.0
        self._reader, self._order, self._share = reader, order, share
        self._read_ahead = read_ahead

    def batches(self, first_batch: int) -> Generator[Batch, None, None]:
        """Micro-batches in order; close the generator to stop reading ahead."""
        requests = self._requests(first_batch)
        with ThreadPoolExecutor(1, thread_name_prefix="larmor-batch") as pool:
            ahead: deque[Future[Batch]] = deque()
            try:
                while True:
                    while len(ahead) < self._read_ahead:
                        ahead.append(pool.submit(self._load, next(requests)))
                    began = time.perf_counter()
                    batch = ahead.popleft().result()
                    self.seconds_waiting += time.perf_counter() - began
                    yield batch
            finally:
                for future in ahead:
                    future.cancel()

    def _requests(self, number: int) -> Iterator[np.ndarray]:
        share = self._share
        while True:
            mine = rank_part(self._order.global_batch(number, share.global_batch_size), share.rank, share.world_size)
            yield from np.split(mine, share.num_micro_batches)
            number += 1

    def _load(self, samples: np.ndarray) -> Batch:
        return Batch(np.stack(self._reader.read([int(index) for index in samples[:, 1]])), samples)


def open_reader(config: DataConfig, split: str) -> SliceReader:
    """A reader of one split of `config.url`."""
    return SliceReader(ObjectStore(config.url), split, config.read_threads, config.cache_bytes)
