"""How sure an image is: the mean of several models, their standard deviation at each pixel, and its calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from larmor.recon.inference.inference import ZERO_FILLED, Method, Reconstructed, network_method
from larmor.recon.inference.slices_page import DEVIATION
from larmor.recon.models.model import Model
from larmor.storage.objects.errors import InputError

WIDTH = 2.0
"""Deviations within which an error should lie; of normal errors 95.4 % do."""


def check_alike(model: Model, others: Sequence[Model]) -> None:
    """Raises `InputError` if a model is named twice, or sees other measurements than `model`."""
    seen = {model.folder.resolve()}
    for other in others:
        if other.folder.resolve() in seen:
            raise InputError(f"--uncertainty {other.folder}: is named twice; name models that were trained apart")
        seen.add(other.folder.resolve())
        if other.physics != model.physics:
            own, its = (one.physics.label(one.physics.crop) for one in (model, other))
            raise InputError(
                f"--uncertainty {other.folder}: was trained for {its}, and {model.folder} for {own}; choose models "
                "that differ in seed or system alone"
            )


def member_methods(models: Sequence[Model]) -> dict[str, Method]:
    """Each model by its folder."""
    return {str(model.folder): network_method(model.generator) for model in models}


def combined(result: Reconstructed, name: str) -> Reconstructed:
    """The results of all members as their mean, called `name`, and their standard deviation (n − 1) as `DEVIATION`."""
    members = np.stack([images for method, images in result.images.items() if method != ZERO_FILLED])
    images = {
        ZERO_FILLED: result.images[ZERO_FILLED],
        name: members.mean(axis=0),
        DEVIATION: members.std(axis=0, ddof=1),
    }
    return replace(result, images=images, seconds={name: sum(result.seconds.values())})


@dataclass
class Calibration:
    """Whether the error lies where the deviation says, over all pixels that were added; both in the target's range."""

    pixels: int = 0
    covered: int = 0
    sums: np.ndarray | float = 0.0  # (2,) of deviation and error
    products: np.ndarray | float = 0.0  # (2, 2)

    def add(self, target: np.ndarray, image: np.ndarray, deviation: np.ndarray) -> None:
        """Images of one shape, of any number of slices."""
        error = np.abs(image - target).astype(np.float64).ravel()
        values = np.stack([deviation.astype(np.float64).ravel(), error])
        self.pixels += error.size
        self.covered += int((error <= WIDTH * values[0]).sum())
        self.sums = self.sums + values.sum(axis=1)
        self.products = self.products + values @ values.T

    @property
    def coverage(self) -> float:
        """The part of the pixels whose error is at most `WIDTH` deviations."""
        return self.covered / self.pixels

    @property
    def correlation(self) -> float:
        """Pearson's, of deviation and absolute error; NaN where one of them is constant."""
        mean = np.asarray(self.sums) / self.pixels
        covariance = np.asarray(self.products) / self.pixels - np.outer(mean, mean)
        spread = covariance[0, 0] * covariance[1, 1]
        return float(covariance[0, 1] / np.sqrt(spread)) if spread > 0 else float("nan")

    def __str__(self) -> str:
        return (
            f"deviation and error correlate by {self.correlation:.2f}; {100 * self.coverage:.0f} % of the pixels have "
            f"an error of at most {WIDTH:g} deviations (95 %, were the deviation right and errors normal)"
        )
