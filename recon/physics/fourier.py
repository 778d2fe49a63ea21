"""Centred, orthonormal two-dimensional Fourier transforms."""

from __future__ import annotations

import torch
from torch import Tensor

_AXES = (-2, -1)


def fft2c(image: Tensor) -> Tensor:
    """(…, height, width) image → k-space, complex64; zero frequency at [height // 2, width // 2]."""
    shifted = torch.fft.ifftshift(image, dim=_AXES)
    return torch.fft.fftshift(torch.fft.fft2(shifted, norm="ortho"), dim=_AXES)


def ifft2c(kspace: Tensor) -> Tensor:
    """The inverse, and by unitarity the adjoint, of `fft2c`."""
    shifted = torch.fft.ifftshift(kspace, dim=_AXES)
    return torch.fft.fftshift(torch.fft.ifft2(shifted, norm="ortho"), dim=_AXES)


def mirrored(points: Tensor, axes: tuple[int, int] = _AXES) -> Tensor:
    """What lies at the negative frequencies: of a real image's k-space the complex conjugates of what lies here.

    Of an even size the first frequency is its own mirror image. Exported programs take any size.
    """
    for axis in axes:
        place = torch.arange(points.shape[axis], device=points.device)
        length = torch.ones_like(place).sum()  # as a tensor: a number would be fixed in the exported program
        points = points.index_select(axis, torch.remainder(2 * (length // 2) - place, length))
    return points
