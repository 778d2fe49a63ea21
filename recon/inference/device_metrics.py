"""The metrics of `metrics.py`, preset `paper`, computed where the images lie: on a GPU they never leave it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from scipy.ndimage import gaussian_filter1d
from torch import Tensor
from torch.nn.functional import avg_pool2d, conv2d, pad

from larmor.recon.inference.metrics import SSIM_WINDOW, psnr_of
from larmor.recon.inference.texture import GMSD_CONSTANT, LOG_RADIUS, LOG_SIGMA
from larmor.recon.physics.transfer import constant

_K1, _K2 = 0.01, 0.03  # of SSIM (Wang et al., 2004)
_AXES = (1, 2)  # of images (batch, height, width)
_MEASURED = ("mse", "ssim", "nmse", "hfen", "gmsd")  # in the order of `figures_of`


@torch.no_grad()
def slice_metrics_on_device(target: Tensor, reconstruction: Tensor) -> list[dict[str, float]]:
    """`metrics.slice_metrics` of each image of (batch, height, width), in float64, with one copy to the host.

    On the CPU the figures of an image do not depend, to the bit, on the batch that it is in.
    """
    return named_metrics(measured_metrics(target, reconstruction))


@torch.no_grad()
def measured_metrics(target: Tensor, reconstruction: Tensor) -> Tensor:
    """(batch, 5) float64: what `named_metrics` names, on the device. The host does not wait for it.

    A GPU takes all images at once, a CPU one after the other: there a batch is a third as fast, and rounds otherwise.
    """
    if target.device.type != "cpu":
        return figures_of(target.double(), reconstruction.double())
    pairs = zip(target.double().split(1), reconstruction.double().split(1), strict=True)
    return torch.cat([figures_of(wanted, found) for wanted, found in pairs])


def named_metrics(measured: Tensor) -> list[dict[str, float]]:
    """The metrics of each image, from what `measured_metrics` gave: one copy to the host."""
    return [_named(dict(zip(_MEASURED, row, strict=True))) for row in measured.tolist()]


def _named(found: dict[str, float]) -> dict[str, float]:
    return {"psnr": psnr_of(found["mse"]), "rmse": found["mse"] ** 0.5, **found}


def figures_of(target: Tensor, image: Tensor) -> Tensor:
    """(batch, 5): the figures `_MEASURED` of pairs of images (batch, height, width) float64, all at once."""
    error = target - image
    return torch.stack(
        [
            error.square().mean(dim=_AXES),
            _ssim(target, image),
            _relative_norm(error, target) ** 2,
            _relative_norm(_edges(error), _edges(target)),
            _gmsd(target, image),
        ],
        dim=1,
    )


def _relative_norm(error: Tensor, target: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(target, dim=_AXES)
    return torch.where(norm == 0, torch.inf, torch.linalg.vector_norm(error, dim=_AXES) / norm)


def _ssim(target: Tensor, image: Tensor) -> Tensor:
    """As scikit-image: uniform window, sample covariance, windows that lie within the image."""
    products = torch.stack([target, image, target * target, image * image, target * image], dim=1)
    first, second, first_square, second_square, product = avg_pool2d(products, SSIM_WINDOW, 1).unbind(dim=1)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variances = sample * (first_square - first**2 + second_square - second**2)
    covariance = sample * (product - first * second)
    light = (2 * first * second + _K1**2) / (first**2 + second**2 + _K1**2)
    return (light * (2 * covariance + _K2**2) / (variances + _K2**2)).mean(dim=_AXES)


def _edges(image: Tensor) -> Tensor:
    """`texture.edges`: the sum of a second derivative along each axis, smoothed along the other."""
    smooth, second = (constant(_gaussian(order), image) for order in (0, 2))
    return _along(_along(image, second, 0), smooth, 1) + _along(_along(image, smooth, 0), second, 1)


@lru_cache(maxsize=2)
def _gaussian(order: int) -> tuple[float, ...]:
    """2·radius + 1 numbers: SciPy's kernel of a Gaussian's derivative."""
    impulse = np.zeros(4 * LOG_RADIUS + 1)
    impulse[2 * LOG_RADIUS] = 1
    kernel = gaussian_filter1d(impulse, LOG_SIGMA, order=order, mode="constant", truncate=LOG_RADIUS / LOG_SIGMA)
    return tuple(kernel[LOG_RADIUS : 3 * LOG_RADIUS + 1].tolist())


def _along(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Correlation of (batch, height, width) with a symmetric kernel of odd length along height (0) or width (1), zero
    beyond the border."""
    shape, padding = [1, 1, 1, 1], [0, 0]
    shape[2 + axis], padding[axis] = len(kernel), len(kernel) // 2
    return conv2d(image[:, None], kernel.view(shape), padding=padding)[:, 0]


def _gmsd(target: Tensor, image: Tensor) -> Tensor:
    """`texture.gmsd` for a data range of 1."""
    first, second = _gradient(target), _gradient(image)
    similarity = (2 * first * second + GMSD_CONSTANT) / (first**2 + second**2 + GMSD_CONSTANT)
    return similarity.std(dim=_AXES, correction=0)


def _gradient(image: Tensor) -> Tensor:
    height, width = image.shape[1:]
    small = avg_pool2d(pad(image, (0, width % 2, 0, height % 2))[:, None], 2)[:, 0]
    slope, mean = (constant(taps, image) for taps in ((-1.0, 0.0, 1.0), (1 / 3,) * 3))
    return torch.hypot(_along(_along(small, slope, 0), mean, 1), _along(_along(small, slope, 1), mean, 0))
