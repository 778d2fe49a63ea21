"""From stored k-space to what a network is trained on: target, mask, zero-filled input."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from recon.feed import DeviceBatch, to_device
from recon.fourier import fft2c, ifft2c
from recon.masks import MaskConfig, make_mask
from storage.errors import InputError
from storage.loader import Batch


@dataclass(frozen=True)
class Sample:
    """A batch on the device. All images are (batch, 1, height, width) float32.

    `target` is the fully sampled magnitude in [0, 1]; `zero_filled` = |F⁻¹(mask · F(target))|;
    `mask` (batch, 1, height, width) bool; `scale` (batch, 2): minimum and maximum before eq. (1).
    """

    target: Tensor
    zero_filled: Tensor
    mask: Tensor
    scale: Tensor


def centre_crop(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop the last two axes about their centre [n // 2]. Raises `InputError` if the image is smaller."""
    height, width = image.shape[-2:]
    if size[0] > height or size[1] > width:
        raise InputError(f"a crop of {size[0]}×{size[1]} does not fit into slices of {height}×{width}; lower data.crop")
    top, left = height // 2 - size[0] // 2, width // 2 - size[1] // 2
    return image[..., top : top + size[0], left : left + size[1]]


def centre_fit(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Crop or zero-pad the last two axes about their centre [n // 2], so that slices of any size fit together."""
    pads = []
    for axis in (-1, -2):
        have, wanted = image.shape[axis], size[axis]
        before = wanted // 2 - have // 2
        pads += [before, wanted - have - before]
    return torch.nn.functional.pad(image, pads)


def normalize(image: Tensor) -> tuple[Tensor, Tensor]:
    """Eq. (1) with the target range [0, 1], per image of (batch, 1, height, width).

    Returns the image and (batch, 2) minimum and maximum, which `denormalize` takes. A constant image → 0.
    """
    low = image.amin(dim=(1, 2, 3))
    high = image.amax(dim=(1, 2, 3))
    span = torch.where(high > low, high - low, torch.ones_like(high))
    return (image - low.view(-1, 1, 1, 1)) / span.view(-1, 1, 1, 1), torch.stack([low, high], dim=1)


def denormalize(image: Tensor, scale: Tensor) -> Tensor:
    """The inverse of `normalize`: back to the intensities of the source."""
    low, high = (scale[:, side].view(-1, 1, 1, 1) for side in (0, 1))
    return image * (high - low) + low


def zero_fill(target: Tensor, mask: Tensor) -> Tensor:
    """|F⁻¹(mask · F(target))|, the network's input."""
    return ifft2c(fft2c(target) * mask).abs()


def magnitude(kspace: Tensor) -> Tensor:
    """Root sum of squares over coils: (batch, coil, height, width) complex → (batch, 1, height, width)."""
    return ifft2c(kspace).abs().square().sum(dim=1, keepdim=True).sqrt()


Augment = Callable[[Tensor, np.ndarray], Tensor]


def prepare(
    batch: Batch | DeviceBatch,
    crop: tuple[int, int],
    mask: MaskConfig,
    device: torch.device,
    augment: Augment | None = None,
) -> Sample:
    """Combine the coils, fit the image to `crop`, normalise it, undersample its k-space; all of it on `device`.

    `augment` changes the images (n, 1, height, width) of the samples (n, 2) before they are cut. Reproducible
    from (seeds, epoch, slice index) alone.
    """
    moved = batch if isinstance(batch, DeviceBatch) else to_device(batch, device)
    parts = []
    for kspace, rows in moved.groups:
        image = magnitude(kspace)
        image = augment(image, moved.samples[rows]) if augment else image
        parts.append(centre_fit(image, crop))
    if len(parts) == 1:
        images = parts[0]
    else:
        rows = np.concatenate([rows for _, rows in moved.groups])
        images = torch.cat(parts)[torch.from_numpy(np.argsort(rows)).to(device)]
    target, scale = normalize(images)
    if mask.per_slice:
        pattern = np.stack([make_mask(mask, crop, (int(epoch), int(index))) for epoch, index in moved.samples])
    else:
        pattern = np.broadcast_to(_fixed_mask(mask, crop), (len(target), *crop))
    measured = torch.from_numpy(np.array(pattern)).to(device).unsqueeze(1)
    return Sample(target, zero_fill(target, measured), measured, scale)


@lru_cache(maxsize=8)
def _fixed_mask(mask: MaskConfig, crop: tuple[int, int]) -> np.ndarray:
    return make_mask(mask, crop)
