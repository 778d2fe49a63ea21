"""Simulated fMRI of a person who looks at handwritten digits: real images, a model of visual cortex for the signal.

The digits are scikit-learn's (UCI, Alpaydin): 1,797 images of 8×8. Voxels have Gaussian receptive fields whose size
grows with their distance from the centre of gaze, and a compressive response (Kay et al., J. Neurophysiol. 110:481,
2013). Each voxel has a double-gamma haemodynamic response with a delay of its own, and noise correlated in time.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.ndimage import zoom
from scipy.stats import gamma

from larmor.storage.dataset.trials import Trials
from larmor.storage.examples.heads import Head, fetch_heads
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.progress import Progress, silent

SUBJECT = "simulated"
DIGITS = Head(
    "digits",
    "scikit-learn",
    "1.7.2",
    "sdist",
    "scikit_learn-1.7.2/sklearn/datasets/data/digits.csv.gz",
    "09f66e6debdee2cd2b5ae59e0d6abbb73fc2b0e0185d2e1957e9ebb51e23aa22",
    "BSD-3-Clause",
    "the package's digits: optical recognition of handwritten digits, UCI (Alpaydin and Kaynak)",
)
_SECONDS, _NUM_VOLUMES = 2.0, 10  # of a volume; of a trial, from the onset of the stimulus on
_STIMULUS_SECONDS = 4.0


@dataclass(frozen=True)
class SimulatedBold:
    """`snr` is the deviation of a voxel's signal over trials and time, divided by that of its noise."""

    num_trials: int = 600
    num_runs: int = 12
    num_voxels: int = 600
    snr: float = 0.15
    exponent: float = 0.5
    correlation: float = 0.4  # of the noise from one volume to the next
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.snr > 0:
            raise InputError(f"snr={self.snr} leaves no signal; 0.1 to 0.2 leaves something to learn")
        if self.num_trials < 2 * self.num_runs:
            raise InputError(f"{self.num_trials} trials in {self.num_runs} runs: at least two a run are needed")


def fetch_digits(folder: Path, progress: Progress = silent) -> np.ndarray:
    """(1797, 8, 8) float32 in [0, 1]; their file is brought into `folder`. Raises as `fetch_heads` does."""
    (path,) = fetch_heads(folder, None, progress, [DIGITS])
    return (np.loadtxt(path, delimiter=",", dtype=np.float32)[:, :64] / 16).reshape(-1, 8, 8)


def simulate_trials(digits: np.ndarray, config: SimulatedBold) -> Trials:
    """Trials of different digits (n, 8, 8), as pure function of the arguments; standardised within each run.

    Raises `InputError` for more trials than digits.
    """
    if config.num_trials > len(digits):
        raise InputError(f"{config.num_trials} trials of {len(digits)} digits: each is shown once; lower the number")
    rng = np.random.default_rng([config.seed, 0x626F6C64])
    chosen = rng.permutation(len(digits))[: config.num_trials]
    images = np.clip(zoom(digits[chosen], (1, 4, 4), order=1, grid_mode=True, mode="nearest"), 0, 1)
    signal = _responses(images, config, rng)[:, None] * _haemodynamics(config.num_voxels, rng)
    noise = _noise(signal.shape, config.correlation, rng)
    bold = signal / signal.std(axis=(0, 1)) * config.snr + noise
    runs = np.arange(config.num_trials) * config.num_runs // config.num_trials
    for run in range(config.num_runs):
        part = bold[runs == run]
        bold[runs == run] = (part - part.mean(axis=(0, 1))) / part.std(axis=(0, 1))
    return Trials(images[:, None].astype(np.float32), bold.astype(np.float32), runs.astype(np.int64))


def _responses(images: np.ndarray, config: SimulatedBold, rng: np.random.Generator) -> np.ndarray:
    """(trial, voxel): the mean of the image under each receptive field, compressed."""
    height, width = images.shape[1:]
    rows, columns = np.meshgrid(np.linspace(-1, 1, height), np.linspace(-1, 1, width), indexing="ij")
    centres = rng.uniform(-1, 1, (config.num_voxels, 2))
    sizes = 0.08 + 0.15 * np.hypot(*centres.T)
    distance = (rows[..., None] - centres[:, 0]) ** 2 + (columns[..., None] - centres[:, 1]) ** 2
    fields = np.exp(-distance / (2 * sizes**2))
    return np.tensordot(images, fields / fields.sum(axis=(0, 1)), axes=2) ** config.exponent


def _haemodynamics(num_voxels: int, rng: np.random.Generator) -> np.ndarray:
    """(volume, voxel): the double-gamma response (peak after about 5 s, undershoot after 15 s) to the stimulus, delayed
    by about 1 s more or less from voxel to voxel."""
    fine = 0.1
    times = np.arange(0, _NUM_VOLUMES * _SECONDS, fine)
    delays = rng.normal(0, 1, num_voxels)
    shifted = times[:, None] - delays
    kernel = gamma.pdf(shifted, 6) - gamma.pdf(shifted, 16) / 6
    shown = (times < _STIMULUS_SECONDS).astype(np.float64)
    response = np.stack([np.convolve(shown, column)[: len(times)] for column in kernel.T], axis=1) * fine
    return response[:: int(_SECONDS / fine)]


def _noise(shape: tuple[int, ...], correlation: float, rng: np.random.Generator) -> np.ndarray:
    """(trial, volume, voxel) of deviation 1, correlated along the volumes."""
    noise = rng.standard_normal(shape)
    for volume in range(1, shape[1]):
        noise[:, volume] = correlation * noise[:, volume - 1] + (1 - correlation**2) ** 0.5 * noise[:, volume]
    return noise
