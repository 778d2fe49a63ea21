"""Which trials a batch has: a pure function."""

from __future__ import annotations

import numpy as np

_STREAM = 0x7472  # of the recipe's seed: nothing else draws from it


def batch_of_trials(num_trials: int, seed: int, number: int, size: int) -> np.ndarray:
    """(size,) indices of the trials of global batch `number`: every epoch has each trial once, in its own order."""
    places = range(number * size, (number + 1) * size)
    orders = {
        epoch: np.random.default_rng([seed, _STREAM, epoch]).permutation(num_trials)
        for epoch in {place // num_trials for place in places}
    }
    return np.array([orders[place // num_trials][place % num_trials] for place in places])
