"""From activity and attenuation to what a network is trained on: PET scans of few and of many counts.

The simulation is two-dimensional and has one resolution everywhere. Randoms and scatter are an even background that is
known exactly; there is no model of scatter. Units are those of the activity.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.projection import back_project, project
from larmor.recon.physics.random_stream import torch_stream
from larmor.recon.recipe.pet import PetConfig
from larmor.storage.objects.errors import InputError

_STREAM = 0x706574  # of the seed: nothing else draws from it
_SCANS = {"few": 0, "many": 1}


def pet_images(images: Tensor, samples: np.ndarray, config: PetConfig) -> tuple[Tensor, Tensor, Tensor]:
    """Target, reconstruction from few counts (batch, 1, size, size), and its sinogram (batch, 1, angle, size).

    `images` (batch, 2, size, size) are the activity and the attenuation per cm. Counts are drawn from (seed, epoch,
    slice) alone, `samples` (batch, 2), on the CPU whatever the device. Raises `InputError` for other images.
    """
    if images.shape[1] != 2:
        raise InputError(
            f"signal.mode=pet needs two images for each slice, activity and attenuation, not {images.shape[1]}; make "
            "them with `larmor pet simulate`, or set signal.mode=magnitude"
        )
    activity = blurred(images[:, :1], config.resolution_mm / config.pixel_mm)
    attenuation = images[:, 1:] * (config.pixel_mm / 10)
    integrals = project(torch.cat([activity, attenuation], dim=1), config.num_angles)
    emitted, survival = integrals[:, :1], torch.exp(-integrals[:, 1:])
    few = _measured(emitted, survival, config.counts, config, samples, "few")
    target = activity
    if config.full_counts is not None:
        target = back_project(_measured(emitted, survival, config.full_counts, config, samples, "many")[:, 0])[:, None]
    return target, back_project(few[:, 0])[:, None], few


def _measured(
    emitted: Tensor, survival: Tensor, counts: float, config: PetConfig, samples: np.ndarray, scan: str
) -> Tensor:
    """A corrected sinogram, in the units of `emitted`: Poisson counts, less the background, over the survival."""
    seen = emitted * survival
    total = seen.sum(dim=(1, 2, 3), keepdim=True)
    scale = torch.where(total > 0, counts / total.clamp_min(1e-30), 0)
    background = config.background * counts / math.prod(seen.shape[1:])
    expected = (seen * scale + background).cpu()
    drawn = torch.stack(
        [
            torch.poisson(part, generator=_random(config.seed, int(epoch), int(index), scan))
            for part, (epoch, index) in zip(expected, samples, strict=True)
        ]
    ).to(emitted.device)
    return torch.where(scale > 0, (drawn - background) / (scale * survival).clamp_min(1e-30), 0)


def _random(seed: int, epoch: int, index: int, scan: str) -> torch.Generator:
    return torch_stream([seed, _STREAM, epoch, index, _SCANS[scan]])


def blurred(images: Tensor, fwhm: float) -> Tensor:
    """(batch, 1, height, width) convolved with a Gaussian of that full width at half maximum in pixels."""
    sigma = fwhm / (2 * math.sqrt(2 * math.log(2)))
    if sigma == 0:
        return images
    reach = math.ceil(4 * sigma)
    kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, device=images.device) / sigma) ** 2)
    kernel = (kernel / kernel.sum()).to(images.dtype)
    rows = torch.nn.functional.conv2d(images, kernel.view(1, 1, -1, 1), padding=(reach, 0))
    return torch.nn.functional.conv2d(rows, kernel.view(1, 1, 1, -1), padding=(0, reach))
