"""Slices that show nothing: constant images, such as those beside the head in a skull-stripped volume.

No figure of quality is defined for them (PSNR and SSIM need a range), and a loss relative to an image of zeros has no
bound. So they are left out, with a count, wherever images are learnt from, rated or compared.
"""

from __future__ import annotations

import numpy as np

ROUNDING = 1e-5  # of an image's largest value: what transforms in float32 may leave, with room


def is_constant(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Whether images with these extremes are constant but for rounding; an array of bool."""
    return high - low <= ROUNDING * np.abs(high)
