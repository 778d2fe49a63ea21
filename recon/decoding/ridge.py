"""What decoding has to beat: the mean of the stimuli, and ridge regression from voxels and volumes to pixels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from larmor.storage.dataset.trials import Trials

PENALTIES = tuple(10.0**power for power in range(-4, 3))  # of the mean of the kernel's diagonal

Rate = Callable[[np.ndarray, np.ndarray], float]  # stimuli, images → the higher the better


def mean_image(train: Trials, num_trials: int) -> np.ndarray:
    """(num_trials, 1, size, size): the mean of the stimuli that train."""
    return np.repeat(train.stimulus.mean(axis=0, keepdims=True), num_trials, axis=0)


def ridge(train: Trials, bold: np.ndarray, penalty: float) -> np.ndarray:
    """Images (n, 1, size, size) in [0, 1] of trials (n, volume, voxel): W = Xᵀ (X Xᵀ + λ I)⁻¹ Y, of stimuli without
    their mean; λ is `penalty` times the mean of the diagonal of X Xᵀ."""
    inputs, others = (part.reshape(len(part), -1).astype(np.float64) for part in (train.bold, bold))
    mean = train.stimulus.mean(axis=0)
    kernel = inputs @ inputs.T
    loaded = kernel + penalty * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    weights = np.linalg.solve(loaded, (train.stimulus - mean).reshape(len(inputs), -1))
    found = (others @ inputs.T @ weights).reshape(-1, *mean.shape) + mean
    return np.clip(found, 0, 1).astype(np.float32)


def best_ridge(train: Trials, validation: Trials, bold: np.ndarray, rate: Rate) -> np.ndarray:
    """`ridge` with the best penalty of `PENALTIES` on the validation trials, as a network's checkpoint is chosen."""
    values = [rate(validation.stimulus, ridge(train, validation.bold, penalty)) for penalty in PENALTIES]
    return ridge(train, bold, PENALTIES[int(np.argmax(values))])
