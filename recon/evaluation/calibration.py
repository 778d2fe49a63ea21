"""Whether an ensemble's standard deviation says where, and how large, the error of a reconstruction is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from larmor.recon.inference.inference import Reconstructed
from larmor.storage.objects.errors import InputError

_SHOWS = 0.1  # of the target's range: below is background, where any ensemble agrees
_BINS = 10
_NORMAL = "68 and 95 % if errors were normal with that deviation"


@dataclass(frozen=True)
class Calibration:
    """Over the pixels of a volume whose target is above a tenth of its range.

    `correlation` (Pearson's) of deviation and absolute error; `within_one` and `within_two`, the fractions of pixels
    whose error is at most one or two deviations; `curve`, for tenths of the pixels by rising deviation, (root mean
    square deviation, root mean square error), in units of the target's range.
    """

    correlation: float
    within_one: float
    within_two: float
    curve: tuple[tuple[float, float], ...]


def check_members(members: Sequence[str]) -> None:
    """Raises `InputError` for less than two models, which have no spread."""
    if len(members) < 2:
        raise InputError(
            "--uncertainty needs two models or more that were trained for the same images (size, mask and ratio); name "
            "further seeds, or leave it out"
        )


def calibrate(batches: Sequence[Reconstructed], members: Sequence[str]) -> Calibration:
    """Of the mean of the methods `members`, by their standard deviation (n − 1), over the batches of a volume."""
    errors, deviations = [], []
    for batch in batches:
        shows = (batch.target > _SHOWS) & batch.shows[:, None, None]
        images = np.stack([batch.images[name] for name in members])
        errors.append(np.abs(images.mean(axis=0) - batch.target)[shows])
        deviations.append(images.std(axis=0, ddof=1)[shows])
    return measure(np.concatenate(errors).astype(np.float64), np.concatenate(deviations).astype(np.float64))


def measure(error: np.ndarray, deviation: np.ndarray) -> Calibration:
    """Of absolute errors and deviations (pixel). The correlation of constant ones is 0."""
    varies = min(np.ptp(error), np.ptp(deviation)) > 0
    correlation = float(np.corrcoef(error, deviation)[0, 1]) if varies else 0.0
    parts = np.array_split(np.argsort(deviation, kind="stable"), _BINS)
    curve = tuple((_rms(deviation[part]), _rms(error[part])) for part in parts if len(part))
    within_one, within_two = (float(np.mean(error <= reach * deviation)) for reach in (1, 2))
    return Calibration(correlation, within_one, within_two, curve)


def mean_calibration(found: Sequence[Calibration]) -> dict[str, Any]:
    """The mean over volumes, as JSON."""
    values = [asdict(one) for one in found]
    means: dict[str, Any] = {
        name: float(np.mean([value[name] for value in values])) for name in values[0] if name != "curve"
    }
    return means | {"curve": np.mean([value["curve"] for value in values], axis=0).tolist()}


def describe_calibration(number: int, found: Sequence[Calibration]) -> str:
    """The line under a table."""
    mean = mean_calibration(found)
    return (
        f"uncertainty of the mean of {number} models: correlation of deviation and error {mean['correlation']:.2f}; "
        f"error within one deviation in {100 * mean['within_one']:.0f} % of the pixels, within two in "
        f"{100 * mean['within_two']:.0f} % ({_NORMAL})"
    )


def write_calibration(found: Sequence[Calibration], path: Path) -> None:
    """The error that a deviation stands for, as PNG; on the diagonal both are equal."""
    deviation, error = np.array(mean_calibration(found)["curve"]).T
    figure = Figure(figsize=(4.2, 3.6))
    axes = figure.add_subplot()
    end = 1.05 * max(deviation.max(), error.max())
    axes.plot([0, end], [0, end], "--", color="0.6", label="deviation = error")
    axes.plot(deviation, error, "o-", label="measured, by tenths of the pixels")
    axes.set(xlabel="standard deviation of the ensemble", ylabel="root mean square error", xlim=(0, end), ylim=(0, end))
    axes.legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(values**2)))
