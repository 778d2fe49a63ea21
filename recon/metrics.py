"""Image quality: one table of metrics, and what they are of one slice and of one volume.

A metric is one entry of `METRICS` and one value of `slice_metrics` and `volume_metrics`; validation, tables, model
card, console, report, configuration and `larmor pull` take its name, title, format and direction from the entry.

Two presets, because SSIM's data range alone moves it by 0.07–0.22:

paper    per slice, target in [0, 1], data range 1
fastmri  per volume: data range = maximum of the target volume; NMSE without root; SSIM window 7, mean over slices

Importing this file is cheap: the table serves the command line and `larmor pull`, where NumPy may not be installed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from larmor.storage.errors import InputError

if TYPE_CHECKING:
    import numpy as np

Preset = Literal["paper", "fastmri"]
PRESETS: dict[Preset, str] = {
    "paper": "per slice, target in [0, 1], data range 1, SSIM window 7, mean over slices",
    "fastmri": "per volume, data range = maximum of the volume, NMSE without root, SSIM window 7",
}
SSIM_WINDOW = 7
LARGEST_PSNR = 20 * 23 * math.log10(2)  # dB of float32's rounding: images that are nearer to each other are equal
DICE = "dice"


@dataclass(frozen=True)
class Metric:
    """How a metric is called, written and read: `format` in a table; `brief` in a log line, if it stands there."""

    title: str
    format: str
    higher_is_better: bool
    definition: str
    unit: str = ""
    brief: str = ""

    @property
    def heading(self) -> str:
        """The title with the unit, as a table has it."""
        return f"{self.title} ({self.unit})" if self.unit else self.title

    @property
    def direction(self) -> str:
        return "Higher is better" if self.higher_is_better else "Lower is better"

    def write(self, value: float) -> str:
        """A value without its unit."""
        return self.format.format(value)


METRICS: Mapping[str, Metric] = {
    "psnr": Metric("PSNR", "{:.3f}", True, "10·log₁₀(data range² / MSE)", "dB", "PSNR {:.2f} dB"),
    "ssim": Metric(
        "SSIM", "{:.4f}", True, "structural similarity, uniform window of 7 (Wang et al., 2004)", "", "SSIM {:.4f}"
    ),
    "mse": Metric("MSE", "{:.4g}", False, "mean of the squared error"),
    "rmse": Metric("RMSE", "{:.4g}", False, "√MSE"),
    "nmse": Metric("NMSE", "{:.4g}", False, "‖error‖² / ‖target‖²"),
    "hfen": Metric(
        "HFEN",
        "{:.4f}",
        False,
        "‖LoG(error)‖ / ‖LoG(target)‖, Laplacian of Gaussian of 15×15 with σ = 1.5 (Ravishankar & Bresler, 2011)",
        brief="HFEN {:.4f}",
    ),
    "gmsd": Metric(
        "GMSD",
        "{:.4f}",
        False,
        "standard deviation of the gradients' similarity over the image, at half size (Xue et al., 2014)",
        brief="GMSD {:.4f}",
    ),
}
HIGHER_IS_BETTER: Mapping[str, bool] = {name: metric.higher_is_better for name, metric in METRICS.items()}
# what a table of an evaluation may hold: validation has no segmentation
TABLE_METRICS: Mapping[str, Metric] = {
    **METRICS,
    DICE: Metric("Dice", "{:.4f}", True, "mean overlap of three tissues with the target's segmentation"),
}


def check_preset(name: str) -> Preset:
    """The preset of that name. Raises `InputError` for another name."""
    for preset in PRESETS:
        if preset == name:
            return preset
    raise InputError(f"preset '{name}': choose one of {', '.join(PRESETS)}")


def check_metric(name: str) -> str:
    """`psnr` or `val/psnr` → "psnr". Raises `InputError` for an unknown metric."""
    short = name.removeprefix("val/")
    if short not in METRICS:
        raise InputError(f"'{name}' is not a validation metric; choose one of {', '.join(METRICS)}")
    return short


def brief_figures(figures: Mapping[str, float]) -> str:
    """The metrics among `figures` (`val/psnr` → value) that stand in one line: `PSNR 30.12 dB, SSIM 0.9000`."""
    named = ((metric.brief, figures.get(f"val/{name}")) for name, metric in METRICS.items())
    return ", ".join(brief.format(value) for brief, value in named if brief and value is not None)


def slice_metrics(target: np.ndarray, reconstruction: np.ndarray, data_range: float = 1.0) -> dict[str, float]:
    """Every metric of one image (height, width). PSNR ends at `LARGEST_PSNR`; what is relative to a target without
    power, or without edges, is infinite. Where an image holds NaN, every figure that it enters is NaN. SSIM is as
    scikit-image and fastMRI compute it.
    """
    import numpy as np
    from skimage.metrics import structural_similarity

    from larmor.recon.texture import edges, gmsd, relative_norm

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
    import numpy as np

    from larmor.recon.texture import edges, relative_norm

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
