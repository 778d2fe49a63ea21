"""An orthogonal wavelet transform of batches of images, on the device where they lie."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from larmor.recon.networks.trunk import pad_to_multiple
from larmor.recon.physics.transfer import constant

LEVELS = 4
GRID = 2**LEVELS  # pixels after which the coarsest coefficients repeat


def denoise_wavelets(image: Tensor, threshold: float) -> Tensor:
    """Soft thresholding of Daubechies-2 wavelets, 4 levels: (batch, channels, height, width) real → the same.

    Of two channels, real and imaginary part, the magnitude is what shrinks. Any size: an image is extended by its edge
    to a multiple of 16 and cut back. The argument minimises ½‖x − image‖² + threshold · ‖detail coefficients of x‖₁
    where nothing had to be extended.
    """
    padded, (height, width) = pad_to_multiple(image, GRID)
    return _denoise(padded, threshold, LEVELS)[..., :height, :width]


def _denoise(image: Tensor, threshold: float, levels: int) -> Tensor:
    coarse, detail = wavelet_split(image)
    if levels > 1:
        coarse = _denoise(coarse, threshold, levels - 1)
    return wavelet_merge(coarse, shrink(detail, threshold))


def shrink(coefficients: Tensor, threshold: float) -> Tensor:
    """Soft thresholding of (batch, channels, …): one channel by its absolute value, two as a complex number."""
    if coefficients.shape[1] == 1:
        return coefficients - coefficients.clamp(-threshold, threshold)
    return coefficients * (1 - threshold / magnitude(coefficients).clamp_min(threshold))


def magnitude(vectors: Tensor) -> Tensor:
    """Of (batch, channels, …) over the channels: (batch, 1, …). Ten times as fast on a CPU as torch's vector norm."""
    return vectors.square().sum(dim=1, keepdim=True).sqrt()


def wavelet_split(image: Tensor) -> tuple[Tensor, Tensor]:
    """One level of the periodic transform: (batch, channels, 2h, 2w) → coarse (batch, channels, h, w) and detail
    (batch, channels, 3, h, w). Orthonormal."""
    batch, channels, height, width = image.shape
    extended = F.pad(image, (0, 2, 0, 2), mode="circular").reshape(batch * channels, 1, height + 2, width + 2)
    bands = F.conv2d(extended, daubechies(image), stride=2).reshape(batch, channels, 4, height // 2, width // 2)
    return bands[:, :, 0], bands[:, :, 1:]


def wavelet_merge(coarse: Tensor, detail: Tensor) -> Tensor:
    """The inverse, and adjoint, of `wavelet_split`."""
    batch, channels, height, width = coarse.shape
    bands = torch.cat([coarse.unsqueeze(2), detail], dim=2).reshape(batch * channels, 4, height, width)
    image = F.conv_transpose2d(F.pad(bands, (1, 0, 1, 0), mode="circular"), daubechies(coarse), stride=2)
    return image[..., 2 : 2 + 2 * height, 2 : 2 + 2 * width].reshape(batch, channels, 2 * height, 2 * width)


def daubechies(like: Tensor) -> Tensor:
    """(4, 1, 4, 4): low-low, low-high, high-low and high-high of Daubechies 2."""
    root = math.sqrt(3)
    low = (1 + root, 3 + root, 3 - root, 1 - root)
    pair = constant((low, (low[3], -low[2], low[1], -low[0])), like)
    pair = pair / (4 * math.sqrt(2))
    return torch.einsum("ai,bj->abij", pair, pair).reshape(4, 1, 4, 4)
