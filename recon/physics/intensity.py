"""Random contrast and bias fields of training images: MONAI's transforms, seeded by (seed, epoch, slice)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.random_stream import legacy_stream
from larmor.recon.physics.transfer import sent
from larmor.recon.recipe.settings import AugmentConfig

# Set these draws apart from those of motions, masks and noise. Below 2³², where numpy takes them as one word.
_CONTRAST, _BIAS = 0x436F6E74, 0x42696173


def change_intensity(image: Tensor, samples: np.ndarray, config: AugmentConfig, seed: int) -> Tensor:
    """Change contrast and brightness of real or complex images (batch, coil, height, width), not their phase.

    All coils of an image are multiplied by one positive field, so that it stays the image of the same maps. `samples`
    (batch, 2), epoch and slice index, and `seed` decide the field. Images of one sample, those of a stack, are changed
    together, so that their differences in brightness stay. Without any setting the image itself is returned.
    """
    if not config.changes_intensity:
        return image
    changed = torch.empty_like(image)
    for key in {(int(epoch), int(index)) for epoch, index in samples}:
        rows = sent(torch.from_numpy(np.flatnonzero((samples == key).all(axis=1))), image.device)
        together = image[rows]
        if config.contrast:
            together = _contrast(together, config.contrast, (seed, _CONTRAST, *key))
        if config.bias:
            together = together * _field(image, config.bias, (seed, _BIAS, *key))
        changed[rows] = together
    return changed


def _contrast(images: Tensor, most: float, key: tuple[int, ...]) -> Tensor:
    """The magnitude m → (m / largest)^γ · largest, where γ is between 1 − `most` and 1 + `most`."""
    from monai.transforms.intensity.array import RandAdjustContrast  # here: it takes seconds

    # over the coils; of a real image its size, whose sign stays
    before = torch.linalg.vector_norm(images, dim=1)
    largest = before.max().clamp_min(torch.finfo(before.dtype).tiny)
    adjust = RandAdjustContrast(prob=1, gamma=(1 - most, 1 + most))
    adjust.set_random_state(state=legacy_stream(key))
    unit = before / largest  # MONAI adds 1e-7 to a range that may be smaller
    adjust.randomize()
    # as the transform itself, which makes the host wait for the range
    low = unit.min()
    span = unit.max() - low
    adjusted = ((unit - low) / (span + 1e-7)) ** adjust.gamma_value * span + low
    factor = adjusted / unit.clamp_min(torch.finfo(unit.dtype).tiny)
    return images * torch.where(unit > 0, factor, 1)[:, None]


def _field(images: Tensor, most: float, key: tuple[int, ...]) -> Tensor:
    """(height, width): the exponential of a polynomial of degree 3, with coefficients up to `most` either way."""
    from monai.transforms.intensity.array import RandBiasField

    make = RandBiasField(degree=3, coeff_range=(-most, most), prob=1)
    make.set_random_state(state=legacy_stream(key))
    field = torch.as_tensor(make(torch.ones(1, *images.shape[-2:])))[0]
    return sent(field, images.device)
