"""Image quality, each figure with its definition.

Two presets, because SSIM's data range alone moves it by 0.07–0.22:

paper    per slice, target in [0, 1], data range 1
fastmri  per volume: data range = maximum of the target volume; NMSE without root; SSIM window 7, mean over slices
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from storage.errors import InputError

Preset = Literal["paper", "fastmri"]
PRESETS: dict[Preset, str] = {
    "paper": "per slice, target in [0, 1], data range 1, SSIM window 7, mean over slices",
    "fastmri": "per volume, data range = maximum of the volume, NMSE without root, SSIM window 7",
}
METRICS = ("psnr", "ssim", "mse", "rmse", "nmse")
HIGHER_IS_BETTER = {"psnr": True, "ssim": True, "mse": False, "rmse": False, "nmse": False}
SSIM_WINDOW = 7
LARGEST_PSNR = 20 * 23 * float(np.log10(2))  # dB of float32's rounding: images that are nearer to each other are equal


def check_preset(name: str) -> Preset:
    """The preset of that name. Raises `InputError` for another name."""
    for preset in PRESETS:
        if preset == name:
            return preset
    raise InputError(f"preset '{name}': choose one of {', '.join(PRESETS)}")


def slice_metrics(target: np.ndarray, reconstruction: np.ndarray, data_range: float = 1.0) -> dict[str, float]:
    """PSNR (dB), SSIM, MSE, RMSE and NMSE (‖e‖²/‖target‖²) of one image (height, width).

    PSNR ends at `LARGEST_PSNR`. Where an image holds NaN, every figure that it enters is NaN. SSIM:
    uniform window of 7, as scikit-image and fastMRI compute it.
    """
    from skimage.metrics import structural_similarity  # here: the names above serve `larmor pull`, which has no skimage

    target = target.astype(np.float64)
    reconstruction = reconstruction.astype(np.float64)
    mse = float(np.mean((target - reconstruction) ** 2))
    power = float(np.mean(target**2))
    ssim = structural_similarity(target, reconstruction, data_range=data_range, win_size=SSIM_WINDOW)
    return {
        "psnr": _psnr(mse, data_range),
        "ssim": float(ssim),
        "mse": mse,
        "rmse": mse**0.5,
        "nmse": mse / power if power > 0 else float("inf"),
    }


def volume_metrics(target: np.ndarray, reconstruction: np.ndarray) -> dict[str, float]:
    """The `fastmri` preset for one volume (slice, height, width)."""
    data_range = float(target.max())
    mse = float(np.mean((target.astype(np.float64) - reconstruction) ** 2))
    ssim = [slice_metrics(t, r, data_range)["ssim"] for t, r in zip(target, reconstruction, strict=True)]
    return {
        "psnr": _psnr(mse, data_range),
        "ssim": float(np.mean(ssim)),
        "mse": mse,
        "rmse": mse**0.5,
        "nmse": mse / float(np.mean(target.astype(np.float64) ** 2)),
    }


def _psnr(mse: float, data_range: float) -> float:
    """In dB; NaN stays NaN, which comparisons would make the best of all."""
    return LARGEST_PSNR if mse == 0 else float(np.minimum(LARGEST_PSNR, 10 * np.log10(data_range**2 / mse)))
