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

_K1, _K2 = 0.01, 0.03  # of SSIM (Wang et al., 2004)
_MEASURED = ("mse", "ssim", "nmse", "hfen", "gmsd")  # in the order of `_measure`


@torch.no_grad()
def slice_metrics_on_device(target: Tensor, reconstruction: Tensor) -> list[dict[str, float]]:
    """`metrics.slice_metrics` of each image of (batch, height, width), in float64, with one copy to the host.

    Each image is evaluated by itself, so that its figures do not depend on the batch that it is in.
    """
    pairs = zip(target.double(), reconstruction.double(), strict=True)
    measured = torch.stack([_measure(wanted, found) for wanted, found in pairs]).cpu()
    return [_named(dict(zip(_MEASURED, row, strict=True))) for row in measured.tolist()]


def _named(found: dict[str, float]) -> dict[str, float]:
    return {"psnr": psnr_of(found["mse"]), "rmse": found["mse"] ** 0.5, **found}


def _measure(target: Tensor, image: Tensor) -> Tensor:
    """The five figures `_MEASURED` of two images (height, width)."""
    error = target - image
    return torch.stack(
        [
            error.square().mean(),
            _ssim(target, image),
            _relative_norm(error, target) ** 2,
            _relative_norm(_edges(error), _edges(target)),
            _gmsd(target, image),
        ]
    )


def _relative_norm(error: Tensor, target: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(target)
    return torch.where(norm == 0, torch.inf, torch.linalg.vector_norm(error) / norm)


def _ssim(target: Tensor, image: Tensor) -> Tensor:
    """As scikit-image: uniform window, sample covariance, windows that lie within the image."""
    products = torch.stack([target, image, target * target, image * image, target * image])
    first, second, first_square, second_square, product = avg_pool2d(products.unsqueeze(1), SSIM_WINDOW, 1).squeeze(1)
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)
    variances = sample * (first_square - first**2 + second_square - second**2)
    covariance = sample * (product - first * second)
    light = (2 * first * second + _K1**2) / (first**2 + second**2 + _K1**2)
    return (light * (2 * covariance + _K2**2) / (variances + _K2**2)).mean()


def _edges(image: Tensor) -> Tensor:
    """`texture.edges`: the sum of a second derivative along each axis, smoothed along the other."""
    smooth, second = (_gaussian(order).to(image.device) for order in (0, 2))
    return _along(_along(image, second, 0), smooth, 1) + _along(_along(image, smooth, 0), second, 1)


@lru_cache(maxsize=2)
def _gaussian(order: int) -> Tensor:
    """(2·radius + 1,) float64: SciPy's kernel of a Gaussian's derivative."""
    impulse = np.zeros(4 * LOG_RADIUS + 1)
    impulse[2 * LOG_RADIUS] = 1
    kernel = gaussian_filter1d(impulse, LOG_SIGMA, order=order, mode="constant", truncate=LOG_RADIUS / LOG_SIGMA)
    return torch.from_numpy(kernel[LOG_RADIUS : 3 * LOG_RADIUS + 1].copy())


def _along(image: Tensor, kernel: Tensor, axis: int) -> Tensor:
    """Correlation of (height, width) with a symmetric kernel of odd length along an axis, zero beyond the border."""
    shape, padding = [1, 1, 1, 1], [0, 0]
    shape[2 + axis], padding[axis] = len(kernel), len(kernel) // 2
    return conv2d(image[None, None], kernel.view(shape), padding=padding)[0, 0]


def _gmsd(target: Tensor, image: Tensor) -> Tensor:
    """`texture.gmsd` for a data range of 1."""
    first, second = _gradient(target), _gradient(image)
    similarity = (2 * first * second + GMSD_CONSTANT) / (first**2 + second**2 + GMSD_CONSTANT)
    return similarity.std(correction=0)


def _gradient(image: Tensor) -> Tensor:
    height, width = image.shape
    small = avg_pool2d(pad(image, (0, width % 2, 0, height % 2))[None, None], 2)[0, 0]
    slope, mean = (image.new_tensor(taps) for taps in ([-1.0, 0.0, 1.0], [1 / 3] * 3))
    return torch.hypot(_along(_along(small, slope, 0), mean, 1), _along(_along(small, slope, 1), mean, 0))
