"""k-space as a scanner measured it, as a sample without a target."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from recon.feed import to_device
from recon.fourier import fft2c, ifft2c
from recon.model import Model
from recon.samples import Sample, centre_fit, magnitude, normalize
from recon.sense import complex_to_channels, sense_reduce
from storage.errors import InputError
from storage.loader import Batch
from storage.sensitivity import KERNEL_WIDTH, estimate_sensitivity_maps

_WIDEST = 24  # of the calibration region, as for fully sampled slices


def measured_sample(batch: Batch, model: Model, device: torch.device) -> Sample:
    """Slices of one shape, zero where nothing was measured; `target` is the zero-filled image, for want of another.

    Images are scaled by their own zero-filled extremes, since those of the target are not known. A model with data
    consistency, or for complex images, works on the measured points themselves: there the matrix stays as it is.
    Others see the magnitude, cut or padded to the size that they were trained on, as in training.

    Raises `InputError` for several coils where the model cannot take them.
    """
    (group,) = to_device(batch, device).groups
    measured, maps = group.kspace, group.maps
    mask = (measured != 0).any(dim=1, keepdim=True)
    signal, exact = model.physics.signal, model.recipe.generator.data_consistency != "none"
    if signal.needs_maps:
        zero_filled, scale = _by_largest(sense_reduce(ifft2c(measured), maps))
        kspace = measured / _span(scale)
        zero_filled = complex_to_channels(zero_filled)
        return Sample(zero_filled, zero_filled, kspace, mask, scale, batch.samples, maps)
    if exact and measured.shape[1] > 1:
        raise InputError(
            f"k-space of {measured.shape[1]} coils: this model puts the measured points of a magnitude image back and "
            "takes one coil; combine the coils first, or use a model with signal.mode=complex or without data "
            "consistency"
        )
    image = magnitude(measured)
    image = image if exact else centre_fit(image, model.physics.crop)
    zero_filled, scale = normalize(image) if signal.mode == "magnitude" else _by_largest(image)
    low, span = scale[:, 0].view(-1, 1, 1, 1), _span(scale)
    kspace = (measured - low * fft2c(torch.ones_like(image))) / span * mask if exact else measured
    return Sample(zero_filled, zero_filled, kspace, mask, scale, batch.samples)


def _by_largest(image: Tensor) -> tuple[Tensor, Tensor]:
    high = image.abs().amax(dim=(1, 2, 3))
    scale = torch.stack([torch.zeros_like(high), high], dim=1)
    return image / _span(scale), scale


def _span(scale: Tensor) -> Tensor:
    span = scale[:, 1] - scale[:, 0]
    return torch.where(span > 0, span, 1).view(-1, 1, 1, 1)


def calibrated_maps(kspace: np.ndarray) -> np.ndarray:
    """Sensitivity maps (coil, height, width) of one slice from its fully sampled centre, by ESPIRiT.

    Raises `InputError` if that centre is too small.
    """
    measured = (kspace != 0).any(axis=0)
    width = next((size for size in range(_WIDEST, 0, -1) if _centre(measured, size).all()), 0)
    if width < KERNEL_WIDTH:
        raise InputError(
            f"the fully sampled centre of the k-space is {width} wide; sensitivity maps of its {len(kspace)} coils "
            f"need {KERNEL_WIDTH} at least, use a model with signal.coils=rss"
        )
    return estimate_sensitivity_maps(kspace, width)


def _centre(plane: np.ndarray, size: int) -> np.ndarray:
    top, left = (max(0, length // 2 - size // 2) for length in plane.shape)
    return plane[top : top + size, left : left + size]
