"""The order of samples: a pure function of (sizes, seed, epoch, position), the same for every world size.

Samples form one endless stream, the epochs' permutations one after another. Global batch number n takes the
samples [n·B, (n+1)·B) of it, so every slice is seen once per epoch, all ranks make equally many steps, and
the state of a loader is one integer.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class SampleOrder:
    """Shuffled slices of a split: shards in random order, mixed in pools of `pool_shards` shards.

    A pool bounds what a reader must hold at once; a pool of all shards gives a uniform permutation.
    """

    num_samples: int
    seed: int
    shard_slices: int
    pool_shards: int

    def epoch(self, epoch: int) -> np.ndarray:
        """The permutation (num_samples,) of one epoch."""
        return _permutation(self, epoch)

    def global_batch(self, number: int, batch_size: int) -> np.ndarray:
        """(batch_size, 2) int64: epoch and slice index of each sample of global batch `number`."""
        places = np.arange(number * batch_size, (number + 1) * batch_size, dtype=np.int64)
        epochs = places // self.num_samples
        indices = np.empty_like(epochs)
        for epoch in np.unique(epochs):
            chosen = epochs == epoch
            indices[chosen] = self.epoch(int(epoch))[places[chosen] % self.num_samples]
        return np.stack([epochs, indices], axis=1)


def rank_part(batch: np.ndarray, rank: int, world_size: int) -> np.ndarray:
    """The rows of a global batch that one rank reads; the ranks' parts in order are the whole batch."""
    assert len(batch) % world_size == 0
    size = len(batch) // world_size
    return batch[rank * size : (rank + 1) * size]


@lru_cache(maxsize=4)
def _permutation(order: SampleOrder, epoch: int) -> np.ndarray:
    rng = np.random.default_rng([order.seed, epoch])
    num_shards = -(-order.num_samples // order.shard_slices)
    shards = rng.permutation(num_shards)
    parts = []
    for first in range(0, num_shards, order.pool_shards):
        pool = [
            np.arange(shard * order.shard_slices, min((shard + 1) * order.shard_slices, order.num_samples))
            for shard in shards[first : first + order.pool_shards]
        ]
        parts.append(rng.permutation(np.concatenate(pool)))
    permutation = np.concatenate(parts)
    permutation.setflags(write=False)
    return permutation
