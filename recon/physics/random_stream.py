"""Random numbers that depend on a key alone: on seed, stream, epoch, slice or whatever else it names."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch


def legacy_stream(key: Sequence[int]) -> np.random.RandomState:
    """NumPy's generator of old, which MONAI's transforms draw from, seeded by whole numbers as `torch_stream`."""
    return np.random.RandomState(np.random.MT19937(np.random.SeedSequence(key)))


def torch_stream(key: Sequence[int]) -> torch.Generator:
    """A generator on the CPU, seeded by whole numbers that are not negative. Keys of one sum or order differ."""
    state = np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1)
    return torch.Generator().manual_seed(int(state))
