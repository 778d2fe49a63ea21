"""k-space as a scanner measured it, as a sample without a target."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from larmor.recon.models.model import Model
from larmor.recon.models.residual import uses_measured_points
from larmor.recon.physics.feed import DeviceBatch, to_device
from larmor.recon.physics.fourier import ifft2c
from larmor.recon.physics.phase import phase_map
from larmor.recon.physics.samples import Sample, centre_fit, guide_image, magnitude, scaled
from larmor.recon.physics.sense import sense_reduce
from larmor.storage.formats.sensitivity import KERNEL_WIDTH, estimate_sensitivity_maps
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError

_WIDEST = 24  # of the calibration region, as for fully sampled slices


def measured_sample(
    batch: Batch | DeviceBatch, model: Model, device: torch.device, size: tuple[int, int] | None = None
) -> Sample:
    """Slices of one shape, zero where nothing was measured; `target` is the zero-filled image, for want of another.

    A model with data consistency or a classical start, or for complex images, works on the measured points themselves:
    there the matrix stays as it is. Others see the magnitude, cut or padded to `size`, or to the size that they were
    trained on, as in training. The guide of a model that sees one is as large.

    Of such a magnitude model `maps` are the phase of the one coil, which its images do not have. A model of all coils
    together gets coils without signal for missing ones.

    Raises `InputError` for several coils where the model cannot take them, and for a phase that cannot be estimated.
    """
    moved = batch if isinstance(batch, DeviceBatch) else to_device(batch, device)
    sample = _measured_sample(moved, model, size)
    if not model.physics.signal.guide:
        return sample
    guide = centre_fit(guide_image(moved.groups[0]), (sample.target.shape[-2], sample.target.shape[-1]))
    return replace(sample, guide=guide)


def _measured_sample(batch: DeviceBatch, model: Model, size: tuple[int, int] | None) -> Sample:
    (group,) = batch.groups
    measured, maps = group.kspace, group.maps
    mask = (measured != 0).any(dim=1, keepdim=True)
    signal, stack, exact = model.physics.signal, model.physics.stack, uses_measured_points(model.recipe)
    if signal.needs_maps:
        zero_filled = sense_reduce(ifft2c(measured), maps)
        return scaled(
            Sample(zero_filled, zero_filled, measured, mask, torch.empty(0), batch.samples, maps, stack=stack)
        )
    if signal.keeps_coils:
        missing = signal.num_coils - measured.shape[1]
        measured = torch.nn.functional.pad(measured, (0, 0, 0, 0, 0, missing))
        images = ifft2c(measured)
        return scaled(Sample(images, images, measured, mask, torch.empty(0), batch.samples, stack=stack))
    if exact and measured.shape[1] > 1:
        raise InputError(
            f"k-space of {measured.shape[1]} coils: this model puts the measured points of a magnitude image back and "
            "takes one coil; combine the coils first, or use a model with signal.mode=complex or without data "
            "consistency"
        )
    image = magnitude(measured)
    image = image if exact else centre_fit(image, size or model.physics.crop)
    phase = phase_map(measured, mask) if exact else None
    return scaled(Sample(image, image, measured, mask, torch.empty(0), batch.samples, phase, stack=stack))


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
