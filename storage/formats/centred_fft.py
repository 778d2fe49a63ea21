"""The Fourier transform of the stored slices: centred, zero frequency at [n // 2], orthonormal."""

from __future__ import annotations

import numpy as np
from scipy import fft


def to_kspace(image: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """k-space of `image` along `axes`, the same shape; complex64 for single precision, else complex128."""
    shifted = fft.ifftshift(image, axes=axes)
    return fft.fftshift(fft.fftn(shifted, axes=axes, norm="ortho"), axes=axes)


def to_image(kspace: np.ndarray, axes: tuple[int, ...] = (-2, -1)) -> np.ndarray:
    """The inverse of `to_kspace`."""
    shifted = fft.ifftshift(kspace, axes=axes)
    return fft.fftshift(fft.ifftn(shifted, axes=axes, norm="ortho"), axes=axes)
