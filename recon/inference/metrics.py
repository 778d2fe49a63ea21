"""What the metrics of `metric.py` are of one slice and of one volume.

paper    per slice, target in [0, 1], data range 1
fastmri  per volume: data range = maximum of the target volume; NMSE without root; SSIM window 7, mean over slices
"""

from __future__ import annotations

import math

import numpy as np
from skimage.metrics import structural_similarity

from larmor.recon.inference.texture import edges, gmsd, relative_norm

SSIM_WINDOW = 7
LARGEST_PSNR = 20 * 23 * math.log10(2)  # dB of float32's rounding: images that are nearer to each other are equal


def slice_metrics(target: np.ndarray, reconstruction: np.ndarray, data_range: float = 1.0) -> dict[str, float]:
    """Every metric of one image (height, width). PSNR ends at `LARGEST_PSNR`; what is relative to a target without
    power, or without edges, is infinite. Where an image holds NaN, every figure that it enters is NaN. SSIM is as
    scikit-image and fastMRI compute it.
    """
    target = target.astype(np.float64)
    reconstruction = reconstruction.astype(np.float64)
    mse = float(np.mean((target - reconstruction) ** 2))
    ssim = structural_similarity(target, reconstruction, data_range=data_range, win_size=SSIM_WINDOW)
    return {
        "psnr": psnr_of(mse, data_range),
        "ssim": float(ssim),
        "mse": mse,
        "rmse": mse**0.5,
        "nmse": relative_norm(target - reconstruction, target) ** 2,
        "hfen": relative_norm(edges(target - reconstruction), edges(target)),
        "gmsd": gmsd(target, reconstruction, data_range),
    }


def volume_metrics(target: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """The `fastmri` preset for one volume (slice, height, width): SSIM and GMSD are means over slices, norms are the
    whole volume's.
    """
    data_range = float(target.max())
    error = target.astype(np.float64) - reconstruction
    mse = float(np.mean(error**2))
    rated = [slice_metrics(t, r, data_range) for t, r in zip(target, reconstruction, strict=True)]
    return {
        "psnr": psnr_of(mse, data_range),
        "ssim": float(np.mean([row["ssim"] for row in rated])),
        "mse": mse,
        "rmse": mse**0.5,
        "nmse": relative_norm(error, target) ** 2,
        "hfen": relative_norm(edges(error), edges(target)),
        "gmsd": float(np.mean([row["gmsd"] for row in rated])),
    }


def psnr_of(mse: float, data_range: float = 1.0) -> float:
    """PSNR in dB of a mean squared error, at most `LARGEST_PSNR`. NaN stays NaN: comparisons would make it the best."""
    if math.isnan(mse):
        return mse
    return min(LARGEST_PSNR, 10 * math.log10(data_range**2 / mse)) if mse > 0 else LARGEST_PSNR
