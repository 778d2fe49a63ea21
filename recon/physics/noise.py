"""Noise in the measurement: complex Gaussian noise in k-space, reproducible from (seed, epoch, slice index)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.transfer import sent
from larmor.recon.recipe.signal import SignalConfig

_STREAM = 0x6E6F6973  # of the signal's seed: no mask and no augmentation draws from it


def measurement_noise(signal: SignalConfig, samples: np.ndarray, kspace: Tensor, largest: Tensor) -> Tensor:
    """What is added to fully sampled `kspace` (batch, coil, height, width) complex64 before it is undersampled.

    Real and imaginary part of each point and coil have the standard deviation σ · `largest` (batch,), where σ is drawn
    uniformly in `signal.noise` for each of the `samples` (batch, 2), which are epoch and slice index. The transform is
    orthonormal, so noise has the same deviation in image and k-space; magnitudes of one coil are Rician. A coil that a
    slice does not have, which is 0, stays 0.
    """
    height, width = kspace.shape[-2:]
    rows = []
    for epoch, index in samples:
        random = np.random.default_rng([signal.noise_seed, _STREAM, int(epoch), int(index)])
        deviation = random.uniform(*signal.noise)
        drawn = random.standard_normal((kspace.shape[1], height, width, 2), dtype=np.float32)
        rows.append(np.float32(deviation) * drawn)
    noise = torch.from_numpy(np.stack(rows))
    present = (kspace != 0).flatten(2).any(dim=2)[..., None, None]
    return torch.view_as_complex(sent(noise, kspace.device)) * (largest.view(-1, 1, 1, 1) * present)
