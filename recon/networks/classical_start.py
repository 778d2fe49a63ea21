"""The image that a network starts from, by compressed sensing on the device: in batches, in milliseconds a slice."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from larmor.recon.networks.wavelets import GRID, denoise_wavelets, magnitude
from larmor.recon.recipe.settings import StartConfig

Consistent = Callable[[Tensor], Tensor]
"""An image (batch, 1 or 2, height, width) → the nearest one that has the measured points."""

_FIRST_THRESHOLD = 0.05  # of an image in [0, 1]
_INNER_ITERATIONS = 2  # of total variation's denoising in each iteration: its dual is kept, which makes few enough


def classical_start(zero_filled: Tensor, consistent: Consistent, config: StartConfig) -> Tensor:
    """About argmin_x ½‖mask · F(maps · x) − kspace‖² + λ‖Ψx‖₁, as `zero_filled`; no gradient passes through it.

    FISTA with Ψ a wavelet transform, the gradient (total variation), or both in turn. `consistent` is its gradient
    step, of length 1, which Σ|maps|² = 1 allows; for a real image it counts each measured point at the mirrored
    frequency too. An image of one channel is not negative. Thresholds fall to λ in the first half of the iterations,
    and the wavelets' grid is shifted in each. A pure function: the shifts are the same in every call.

    Source: Beck & Teboulle, SIAM J. Imaging Sci. 2:183-202 (2009); Figueiredo & Nowak, IEEE Trans. Image Process.
    12:906-916 (2003) for the shifts. `compressed_sensing.py` solves the same problem by SigPy, image by image.
    """
    with torch.no_grad():
        image = extrapolated = _constrain(consistent(torch.zeros_like(zero_filled)))
        wavelets, variation = _shifted_wavelets(), TotalVariation()
        momentum = 1.0
        for number, threshold in enumerate(thresholds(config.weight, config.iterations)):
            by_wavelets = config.method == "wavelet" or (config.method == "alternating" and number % 2 == 0)
            denoise = wavelets if by_wavelets else variation
            before, image = image, _constrain(denoise(consistent(extrapolated), threshold))
            last, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            extrapolated = image + (last - 1) / momentum * (image - before)
        return image


def thresholds(last: float, iterations: int) -> list[float]:
    """Falling by a constant factor from 0.05, from the half of the iterations on at `last`."""
    ratio = max(1.0, _FIRST_THRESHOLD / last) if last > 0 else 1.0
    return [last * ratio ** max(0.0, 1 - 2 * number / iterations) for number in range(iterations)]


def _shifted_wavelets() -> Callable[[Tensor, float], Tensor]:
    """`denoise_wavelets` on a grid that moves from call to call: blocks of a fixed grid would stay in the image."""
    draw = random.Random(0)

    def denoise(image: Tensor, threshold: float) -> Tensor:
        down, right = draw.randrange(GRID), draw.randrange(GRID)
        return denoise_wavelets(image.roll((down, right), (-2, -1)), threshold).roll((-down, -right), (-2, -1))

    return denoise


class TotalVariation:
    """Isotropic total variation's denoiser, by its dual, which it keeps from call to call.

    Source: Beck & Teboulle, IEEE Trans. Image Process. 18:2419-2434 (2009). Differences are cyclic.
    """

    def __init__(self) -> None:
        self._dual: Tensor | None = None  # (batch, 2 · channels, height, width), in units of the threshold

    def __call__(self, image: Tensor, threshold: float) -> Tensor:
        dual = torch.cat([torch.zeros_like(image)] * 2, dim=1) if self._dual is None else self._dual
        extrapolated, momentum = dual, 1.0
        for _ in range(_INNER_ITERATIONS):
            primal = _constrain(image - threshold * difference_adjoint(extrapolated))
            before, dual = dual, extrapolated + differences(primal) / (8 * threshold)  # 8 ≥ ‖differences‖²
            dual = dual / magnitude(dual).clamp_min(1)
            last, momentum = momentum, (1 + math.sqrt(1 + 4 * momentum**2)) / 2
            extrapolated = dual + (last - 1) / momentum * (dual - before)
        self._dual = dual
        return image - threshold * difference_adjoint(dual)


def differences(image: Tensor) -> Tensor:
    """(batch, channels, height, width) → (batch, 2 · channels, …): from the neighbours above and left, cyclic."""
    return torch.cat([image - image.roll(1, axis) for axis in (-2, -1)], dim=1)


def difference_adjoint(field: Tensor) -> Tensor:
    """The adjoint of `differences`."""
    down, right = field.chunk(2, dim=1)
    return down - down.roll(-1, -2) + right - right.roll(-1, -1)


def _constrain(image: Tensor) -> Tensor:
    return image.clamp_min(0) if image.shape[1] == 1 else image
