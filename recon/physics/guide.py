"""The second contrast of a slice as a network sees it: its magnitude, in units of its own bright tissue."""

from __future__ import annotations

import torch
from torch import Tensor

_AIR = 0.05  # of the largest value: what is darker says nothing of the tissue, however much of it there is
_BRIGHT = 0.95  # the share of the tissue that is no brighter than 1: a few bright vessels or spikes decide nothing


def in_own_units(guide: Tensor) -> Tensor:
    """Magnitudes (batch, 1, height, width), each image divided by the 95th percentile of its tissue, which are the
    pixels above 5 % of its largest value. An image of zeros stays. Air around the head changes nothing."""
    pixels = guide.flatten(1).sort(dim=1).values
    most = pixels[:, -1:]
    num_tissue = (pixels > _AIR * most).sum(dim=1, keepdim=True)
    above = ((1 - _BRIGHT) * num_tissue).to(torch.int64)
    unit = pixels.gather(1, pixels.shape[1] - 1 - above)
    return guide / unit.where(unit > 0, 1).view(-1, 1, 1, 1)
