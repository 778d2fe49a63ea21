"""Coils: sensitivity encoding and its adjoint, undersampling, and complex images as two channels."""

from __future__ import annotations

import torch
from torch import Tensor


def sense_expand(image: Tensor, maps: Tensor | None) -> Tensor:
    """(batch, 1, height, width) complex → coil images (batch, coil, height, width): maps · image.

    `maps` None means one coil of sensitivity 1. An isometry where Σ|maps|² = 1.
    """
    return image if maps is None else maps * image


def sense_reduce(coil_images: Tensor, maps: Tensor | None) -> Tensor:
    """The adjoint of `sense_expand`: Σ conj(maps) · coil images, (batch, 1, height, width)."""
    return coil_images if maps is None else (maps.conj() * coil_images).sum(dim=1, keepdim=True)


def undersample(kspace: Tensor, mask: Tensor) -> Tensor:
    """k-space (batch, coil, height, width) where `mask` (batch, 1, height, width) is True, else 0; self-adjoint."""
    return torch.where(mask, kspace, 0)


def complex_to_channels(image: Tensor) -> Tensor:
    """(batch, coil, height, width) complex → (batch, 2 · coil, height, width): real parts, then imaginary parts."""
    return torch.cat([image.real, image.imag], dim=1)


def channels_to_complex(image: Tensor) -> Tensor:
    """The inverse of `complex_to_channels`."""
    real, imaginary = image.chunk(2, dim=1)
    return torch.complex(real.contiguous(), imaginary.contiguous())
