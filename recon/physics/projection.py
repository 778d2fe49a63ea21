"""Parallel-beam projections of images, and filtered back-projection, in PyTorch on the device of the images.

Angles, detectors and interpolation are those of `skimage.transform.radon` and `iradon` (circle=True), which serve as
the reference of the tests.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

_ANGLES_AT_ONCE = 30  # what lies in memory is that many images for each image


def project(images: Tensor, num_angles: int) -> Tensor:
    """Line integrals (batch, channel, angle, size), in pixels, of square images (batch, channel, size, size).

    Angles are evenly spaced over 180°. What lies outside the circle in the image counts only as far as it is seen.
    """
    batch, channels, size, _ = images.shape
    flat = images.reshape(1, batch * channels, size, size)
    parts = []
    for first in range(0, num_angles, _ANGLES_AT_ONCE):
        grid = _rotated(size, num_angles, images.device)[first : first + _ANGLES_AT_ONCE]
        turned = F.grid_sample(flat.expand(len(grid), -1, -1, -1), grid, align_corners=True)
        parts.append(turned.sum(dim=2))
    return torch.cat(parts).permute(1, 0, 2).reshape(batch, channels, num_angles, size)


def back_project(sinograms: Tensor) -> Tensor:
    """Filtered back-projection with a Hann ramp: (batch, angle, size) → images (batch, size, size), the inverse of
    `project` up to the smoothing of the window."""
    batch, num_angles, size = sinograms.shape
    padded = max(64, 2 ** math.ceil(math.log2(2 * size)))
    spectrum = torch.fft.rfft(sinograms, n=padded, dim=-1) * _hann_ramp(padded, sinograms.device)
    filtered = torch.fft.irfft(spectrum, n=padded, dim=-1)[..., :size]
    result = torch.zeros(batch, size * size, device=sinograms.device)
    rows = filtered.permute(1, 0, 2).unsqueeze(2)  # (angle, batch, 1, size)
    for first in range(0, num_angles, _ANGLES_AT_ONCE):
        grid = _detectors(size, num_angles, sinograms.device)[first : first + _ANGLES_AT_ONCE]
        result += F.grid_sample(rows[first : first + _ANGLES_AT_ONCE], grid, align_corners=True)[:, :, 0].sum(dim=0)
    inside = _circle(size, sinograms.device)
    return result.reshape(batch, size, size) * inside * (math.pi / (2 * num_angles))


@lru_cache(maxsize=4)
def _rotated(size: int, num_angles: int, device: torch.device) -> Tensor:
    """(angle, size, size, 2): where the pixels of the image turned by each angle come from, as `grid_sample` has it."""
    angle = torch.arange(num_angles, device=device) * (math.pi / num_angles)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    centre = size // 2
    along = torch.arange(size, device=device) - centre
    rows, columns = along[None, :, None], along[None, None, :]
    x = cos * columns + sin * rows + centre
    y = -sin * columns + cos * rows + centre
    return torch.stack([x, y], dim=-1) * (2 / (size - 1)) - 1


@lru_cache(maxsize=4)
def _detectors(size: int, num_angles: int, device: torch.device) -> Tensor:
    """(angle, 1, size · size, 2): the detector that each pixel is seen by at each angle, as `grid_sample` has it."""
    angle = torch.arange(num_angles, device=device) * (math.pi / num_angles)
    cos, sin = angle.cos()[:, None, None], angle.sin()[:, None, None]
    along = torch.arange(size, device=device) - size // 2
    rows, columns = along[None, :, None], along[None, None, :]
    place = (columns * cos - rows * sin + size // 2) * (2 / (size - 1)) - 1
    flat = place.reshape(num_angles, 1, size * size)
    return torch.stack([flat, torch.zeros_like(flat)], dim=-1)


@lru_cache(maxsize=4)
def _circle(size: int, device: torch.device) -> Tensor:
    along = torch.arange(size, device=device) - size // 2
    return (along[:, None] ** 2 + along[None] ** 2 <= (size // 2) ** 2).float()


@lru_cache(maxsize=4)
def _hann_ramp(size: int, device: torch.device) -> Tensor:
    """(size // 2 + 1,): the ramp of Kak and Slaney (chapter 3, eq. 61), made in space, times a Hann window."""
    space = torch.zeros(size, dtype=torch.float64)
    space[0] = 0.25
    odd = torch.arange(1, size, 2)
    space[odd] = -1 / (math.pi * torch.minimum(odd, size - odd).double()) ** 2
    ramp = 2 * torch.fft.rfft(space).real
    window = 0.5 + 0.5 * torch.cos(math.pi * torch.linspace(0, 1, size // 2 + 1, dtype=torch.float64))
    return (ramp * window).float().to(device)
