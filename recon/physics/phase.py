"""The phase of measured k-space of one coil, for models of magnitude images that put measured points back.

A magnitude image is real, a measured one is not: coil, field and timing turn it by a phase that varies slowly over the
image. The phase is estimated from the fully sampled centre of k-space and handed to data consistency as the map of the
one coil. Source: Noll et al., Homodyne detection in magnetic resonance imaging, IEEE Trans. Med. Imaging 10:154-163
(1991).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.fourier import ifft2c, mirrored
from larmor.storage.objects.errors import InputError

NARROWEST = 6  # points each way of a centre from which a phase is estimated
_FAINT = 1e-3  # of the largest magnitude
_ROUNDING = 1e-3  # of the norm: k-space that is nearer to its mirror image is that of a real one


def phase_map(kspace: Tensor, mask: Tensor) -> Tensor | None:
    """exp(iφ) of k-space (batch, 1, height, width) that is 0 where `mask` is False; None if the images are real.

    Raises `InputError` if the fully sampled centre is too small for an estimate.
    """
    if _is_real(kspace, mask):
        return None
    windows = torch.from_numpy(np.stack([_window(plane) for plane in mask[:, 0].cpu().numpy()]))
    low = ifft2c(kspace * windows.to(kspace.device).unsqueeze(1))
    size = low.abs()
    # where nothing is seen there is no phase but rounding's: the mean one is as good, and is smooth
    mean = (low * size).sum(dim=(1, 2, 3), keepdim=True)
    low = torch.where(size > _FAINT * size.amax(dim=(1, 2, 3), keepdim=True), low, mean)
    return torch.where(low != 0, torch.sgn(low), 1)


def _is_real(kspace: Tensor, mask: Tensor) -> bool:
    """Whether every point that was measured at its negative frequency too has the complex conjugate there."""
    paired = torch.where(mask & mirrored(mask), kspace, 0)
    difference = torch.linalg.vector_norm(paired - mirrored(paired).conj())
    return bool(difference <= _ROUNDING * torch.linalg.vector_norm(paired))


def _window(measured: np.ndarray) -> np.ndarray:
    """(height, width) float32: a triangle over the fully sampled centre, flat along an axis that is whole.

    Its transform is nowhere negative, so that a positive image has no phase at the edges of what it shows.
    """
    sizes = centre_size(measured)
    if min(sizes) < NARROWEST:
        raise InputError(
            f"the k-space has a phase, and its fully sampled centre is {sizes[0]}×{sizes[1]}; a model that puts the "
            f"measured points of a magnitude image back needs {NARROWEST}×{NARROWEST} to estimate the phase: measure a "
            "wider centre, or use a model with signal.mode=complex or without data consistency"
        )
    axes = []
    for length, size in zip(measured.shape, sizes, strict=True):
        distance = np.abs(np.arange(length, dtype=np.float32) - length // 2)
        axes.append(np.ones_like(distance) if size == length else np.maximum(0, 1 - distance / ((size + 1) // 2)))
    return axes[0][:, None] * axes[1]


def centre_size(measured: np.ndarray) -> tuple[int, int]:
    """Height and width of the fully sampled centre of a mask: the largest square, then as high and wide as it goes."""

    def whole(height: int, width: int) -> bool:
        top, left = measured.shape[0] // 2 - height // 2, measured.shape[1] // 2 - width // 2
        return bool(measured[top : top + height, left : left + width].all())

    side = max(size for size in range(min(measured.shape) + 1) if whole(size, size))
    if not side:
        return 0, 0
    height = max(size for size in range(side, measured.shape[0] + 1) if whole(size, side))
    return height, max(size for size in range(side, measured.shape[1] + 1) if whole(height, size))
