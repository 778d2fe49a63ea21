"""What the images of a stack can lend each other: views, measured in another frame with another mask."""

from __future__ import annotations

import torch
from torch import Tensor


def shared_views(kspace: Tensor, mask: Tensor, stack: int, causal: bool = False) -> Tensor:
    """k-space in which each point that an image lacks is taken from the image of its stack nearest in time that has it.

    `kspace` (batch, coil, …) is 0 where not `mask` (batch, 1, …), and so is the result where no image of the stack
    measured. Of two equally near images the earlier one counts; `causal`: earlier ones alone. Source: view sharing, as
    in keyhole imaging (van Vaals et al., J. Magn. Reson. Imaging 3:671-675, 1993).
    """
    points, measured = (value.unflatten(0, (-1, stack)) for value in (kspace, mask))
    filled, known = points, measured
    for distance in range(1, stack):
        for step in (distance,) if causal else (distance, -distance):
            lent = ~known & _moved(measured, step)
            filled = torch.where(lent, _moved(points, step), filled)
            known = known | lent
    return filled.flatten(0, 1)


def mean_view(kspace: Tensor, mask: Tensor, stack: int) -> Tensor:
    """k-space, the same for all images of a stack: of each point the mean over those that measured it."""
    points, measured = (value.unflatten(0, (-1, stack)) for value in (kspace, mask))
    mean = points.sum(dim=1, keepdim=True) / measured.sum(dim=1, keepdim=True).clamp_min(1)
    return mean.expand_as(points).flatten(0, 1)


def _moved(frames: Tensor, step: int) -> Tensor:
    """(n, stack, …): for each frame the one `step` before it, zeros where there is none."""
    edge = torch.zeros_like(frames[:, : abs(step)])
    return torch.cat([edge, frames[:, :-step]] if step > 0 else [frames[:, -step:], edge], dim=1)
