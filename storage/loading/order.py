"""The order of samples: a pure function of (data set, seed, epoch, position), the same for every world size.

Samples form one endless stream, the epochs' permutations one after another. Global batch number n takes the
samples [n·B, (n+1)·B) of it, so every slice is seen once per epoch, all ranks make equally many steps, and
the state of a loader is one integer.

What is read together is shuffled as a block: neighbouring slices of one shard, a few megabytes, one request.
An epoch visits the blocks in random order and spreads the slices of each over a window of the stream, so a
reader holds only the blocks of the current windows (about `pool_blocks`), whatever the size of the data set.
The stream is interleaved from `lanes`: consecutive samples come from different lanes, and a rank that takes
every W-th sample reads the blocks of its own lanes whole, not a part of every block. The lanes begin at
different places of their first blocks, so that their requests do not all come at once.
"""

from __future__ import annotations

import math
from collections import OrderedDict

import numpy as np

from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.dataset.layout import part_slices

_FEW_LANES = 16
_EPOCHS_KEPT = 3
_STREAM = 0x0EDE2  # keeps these draws apart from those of masks with the same seed


class SampleOrder:
    """Shuffled slices of a split.

    `block_of` (num_samples,) gives the block of each slice (see `blocks_of`). Over all lanes about `pool_blocks`
    are mixed at a time where there are many more, and never more than 2 · max(pool_blocks, lanes). With one
    lane, a pool of all blocks gives a uniform permutation.
    """

    def __init__(self, block_of: np.ndarray, seed: int, pool_blocks: int, lanes: int = 1) -> None:
        self.num_samples = len(block_of)
        self.num_blocks = int(block_of.max()) + 1
        self.block_of = block_of
        self._seed, self._pool, self._lanes = seed, pool_blocks, lanes
        self._epochs: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation (num_samples,) of one epoch."""
        return self._epoch(epoch)[0]

    def pieces(self, epoch: int) -> np.ndarray:
        """(num_samples,) int64: for each place of the epoch what to read at once, a block or a lane's part of one."""
        return self._epoch(epoch)[1]

    def samples(self, places: np.ndarray) -> np.ndarray:
        """(n, 2) int64: epoch and slice index at the given places of the endless stream."""
        epochs = places // self.num_samples
        indices = np.empty_like(epochs)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = self.epoch(int(epoch))[places[chosen] % self.num_samples]
        return np.stack([epochs, indices], axis=1)

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        if epoch not in self._epochs:
            self._epochs[epoch] = self._permutation(epoch)
            while len(self._epochs) > _EPOCHS_KEPT:
                self._epochs.popitem(last=False)
        return self._epochs[epoch]

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        rng = np.random.default_rng([self._seed, _STREAM, epoch])
        place_of_block = rng.permutation(self.num_blocks)
        stream = np.argsort(place_of_block[self.block_of], kind="stable")
        window = max(1.0, self._pool / self._lanes)
        block_slices = -(-self.num_samples // self.num_blocks)
        permutation, pieces = np.empty_like(stream), np.empty_like(stream)
        first = num_pieces = 0
        for lane in range(self._lanes):
            size = len(range(lane, self.num_samples, self._lanes))
            slices = np.roll(stream[first : first + size], -(lane * block_slices // self._lanes))
            piece = _runs(self.block_of[slices])
            mixed = _mix(piece, window, rng)
            permutation[lane :: self._lanes] = slices[mixed]
            pieces[lane :: self._lanes] = piece[mixed] + num_pieces
            first, num_pieces = first + size, num_pieces + size  # a lane has at most as many pieces as slices
        for array in (permutation, pieces):
            array.setflags(write=False)
        return permutation, pieces


class StoredOrder(SampleOrder):
    """The slices of a split as they are stored, in every epoch alike; blocks are read whole where one rank has them."""

    def __init__(self, block_of: np.ndarray) -> None:
        super().__init__(block_of, seed=0, pool_blocks=1)

    def _permutation(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(self.num_samples), _runs(self.block_of)


def _runs(values: np.ndarray) -> np.ndarray:
    """The number of each run of equal values: 0, 0, 1, 1, 1, 2, …"""
    return np.cumsum(np.concatenate([[False], values[1:] != values[:-1]])[: len(values)])


def _mix(piece: np.ndarray, window: float, rng: np.random.Generator) -> np.ndarray:
    """An order in which each piece is spread over a window of `window` pieces, which begin evenly along the lane."""
    count = int(piece[-1]) + 1 if len(piece) else 1
    spacing = max(0.0, count - window) / max(count - 1, 1)
    return np.argsort(piece * spacing + window * rng.random(len(piece)), kind="stable")


def num_lanes(global_batch_size: int, batch_blocks: int = 0) -> int:
    """Lanes for a batch size: the same for every world size, which divides the batch, and mostly the lanes too.

    A rank reads whole blocks as long as no other one shares its lanes, and every lane keeps a block open. So there are
    up to 16, and of a batch as large as more blocks than that (`batch_blocks`) as many as it has: what is open then is
    no more than a batch.
    """
    few = math.gcd(global_batch_size, _FEW_LANES)
    return max(lanes for lanes in range(few, max(few, batch_blocks) + 1, few) if global_batch_size % lanes == 0)


def blocks_of(split: SplitInfo, block_bytes: int) -> np.ndarray:
    """(num_slices,) int64: the block of each slice, neighbouring rows of one shard of at most `block_bytes`.

    Blocks are numbered from 0 in stored order; a block holds at least one slice, and whole parts of its shard if it is
    larger than one: a request that cuts a part may cost the store all of it.
    """
    keys = np.zeros((split.num_slices, 3), np.int64)
    keys[:, 0] = split.bucket
    for bucket in split.buckets:
        chosen = split.bucket == bucket.number
        rows = split.row[chosen].astype(np.int64)
        block_slices, part = max(1, block_bytes // bucket.chunk_bytes), part_slices(bucket.chunk_bytes)
        if block_slices > part:
            block_slices -= block_slices % part
        keys[chosen, 1] = rows // bucket.shard_slices
        keys[chosen, 2] = rows % bucket.shard_slices // block_slices
    return np.unique(keys, axis=0, return_inverse=True)[1].reshape(-1).astype(np.int64)
