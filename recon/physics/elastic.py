"""Elastic deformation of training images: displacements of control points by MONAI, seeded by (seed, epoch, slice)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from larmor.recon.physics.random_stream import legacy_stream

NUM_CONTROL_POINTS = 8  # along the longer side
# Sets these draws apart from those of motions, masks and noise. Below 2³², where numpy takes it as one word.
_STREAM = 0x456C6173


def displacements(size: tuple[int, int], samples: np.ndarray, strength: float, seed: int) -> Tensor:
    """(batch, height, width, 2) float32: how far away each pixel's value comes from, x then y, in pixels.

    Control points are displaced by normal numbers, whose standard deviation is drawn between 0 and `strength`, a
    fraction of the longer side; cubic interpolation in between. `samples` (batch, 2), epoch and slice index, and `seed`
    decide the deformation.

    MONAI's `Rand2DElastic` draws the same, but interpolates the *places* of the control points in a way that is not
    exact for straight lines: 256 pixels come back up to 1.5 away from where they were, and odd sizes shifted by half a
    pixel, however weak the deformation. Of no displacement this makes none.
    """
    from monai.transforms.spatial.array import RandDeformGrid  # here: it takes seconds
    from monai.transforms.utils import create_control_grid

    longer = max(size)
    spacing = (longer / NUM_CONTROL_POINTS,) * 2
    still = torch.as_tensor(create_control_grid(size, spacing))[:2]
    draw = RandDeformGrid(spacing, (0, strength * longer))
    moved = []
    for key in samples:
        draw.set_random_state(state=legacy_stream((seed, _STREAM, *map(int, key))))
        moved.append(torch.as_tensor(draw(size))[:2] - still)
    reach = still[:, -1, -1].tolist()  # of the control points from the centre, in pixels
    y, x = ((torch.arange(n) - (n - 1) / 2) / most for n, most in zip(size, reach, strict=True))
    places = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).expand(len(samples), *size, 2)
    field = F.grid_sample(torch.stack(moved).float(), places, "bicubic", "border", align_corners=True)
    return field.flip(1).permute(0, 2, 3, 1)
