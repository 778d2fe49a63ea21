"""Compressed sensing by split Bregman: in 25 iterations as near to the image as `classical_start.py` in 100."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from larmor.recon.networks.classical_start import difference_adjoint, differences
from larmor.recon.networks.polyphase_wavelets import PolyphaseWavelets
from larmor.recon.networks.wavelets import GRID, magnitude


class MeasuredPoints(Protocol):
    """What `data_consistency.Measured` knows of them; see there."""

    def coils(self) -> Tensor: ...

    def seen(self, coils: Tensor) -> tuple[Tensor, Tensor | None]: ...

    def unmeasured(self, spectrum: Tensor) -> Tensor: ...

    def moved(self, coils: Tensor, image: Tensor, beyond: Tensor | None, unmeasured: Tensor) -> Tensor: ...


_FIRST_THRESHOLD, _LAST_THRESHOLD = 0.1, 0.003  # of differences, for images in [0, 1]
_OF_WAVELETS = 4.0  # their threshold, in those of the differences
_WAVELET_WEIGHT, _SIGN_WEIGHT = 0.5, 1.0  # of the quadratic terms; that of the differences is 1
_UNMEASURED = 1e-6  # in place of the Laplacian's 0 at zero frequency


def split_bregman_start(measured: MeasuredPoints, iterations: int) -> Tensor:
    """About argmin_x ‖Dx‖₁ + ‖Ψx‖₁ with the measured points held: (batch, channels, height, width), without a gradient.

    D are differences (isotropic total variation), Ψ wavelets on a grid that is shifted in each iteration. An image of
    one channel is not negative. The alternating direction method of multipliers: each term works on a copy of its own
    (`_Split`), and the image that fits all copies best is a filter of frequencies, which leaves the measured points as
    they are. What coils' images have beyond one image, or a phase beyond a real one, is a term too, whose copy is 0;
    with sensitivity maps the filter is a step towards the best fit and no longer that itself. All thresholds fall by
    a constant factor. A pure function: the shifts are the same in every call.

    Source: Goldstein & Osher, The split Bregman method for L1-regularized problems, SIAM J. Imaging Sci. 2:323-343
    (2009), section 4.
    """
    with torch.no_grad():
        coils = measured.coils()
        image, beyond = measured.seen(coils)
        terms = _terms(image)
        weight = sum(term.weight for term in terms)
        free = measured.unmeasured(1 / (difference_spectrum(image.shape[-2:], image) + weight))
        edges, outside = _Split(_shrink_vectors, 1.0), _Split(_nothing, weight)
        for threshold in falling(iterations):
            step = difference_adjoint(edges.step(differences(image), threshold))
            for term in terms:
                step = step + term.step(image, threshold)
            coils = measured.moved(coils, step, None if beyond is None else outside.step(beyond, threshold), free)
            image, beyond = measured.seen(coils)
        return image.clamp_min(0) if image.shape[1] == 1 else image


def falling(iterations: int) -> list[float]:
    """Thresholds from 0.1 to 0.003, by a constant factor."""
    ratio = _LAST_THRESHOLD / _FIRST_THRESHOLD
    return [_FIRST_THRESHOLD * ratio ** (number / max(1, iterations - 1)) for number in range(iterations)]


def difference_spectrum(shape: torch.Size, like: Tensor) -> Tensor:
    """(height, width): what `difference_adjoint(differences(…))` multiplies each frequency by, in torch.fft's order."""
    down, right = (
        2 - 2 * torch.cos(2 * math.pi * torch.fft.fftfreq(size, dtype=like.dtype, device=like.device)) for size in shape
    )
    return (down[:, None] + right[None, :]).clamp_min(_UNMEASURED)


class _Split:
    """A term's own copy of the image, or of its differences, which it shrinks, and what the copy lacked so far."""

    def __init__(self, shrink: Callable[[Tensor, float], Tensor], weight: float) -> None:
        self._shrink, self.weight = shrink, weight
        self._lack: Tensor | None = None

    def step(self, now: Tensor, threshold: float) -> Tensor:
        """What the term wants to be added to `now`, by its weight."""
        wanted = now if self._lack is None else now + self._lack
        copy = self._shrink(wanted, threshold)
        self._lack = wanted - copy
        wish = copy - self._lack - now
        return wish if self.weight == 1 else self.weight * wish


def _terms(image: Tensor) -> list[_Split]:
    """Those of the image itself."""
    waves = _Split(_shifted_wavelets(image), _WAVELET_WEIGHT)
    return [waves, _Split(_not_negative, _SIGN_WEIGHT)] if image.shape[1] == 1 else [waves]


def _shrink_vectors(field: Tensor, threshold: float) -> Tensor:
    return field * (1 - threshold / magnitude(field).clamp_min(threshold))


def _not_negative(image: Tensor, _threshold: float) -> Tensor:
    return image.clamp_min(0)


def _nothing(beyond: Tensor, _threshold: float) -> Tensor:
    return torch.zeros_like(beyond)


def _shifted_wavelets(like: Tensor) -> Callable[[Tensor, float], Tensor]:
    draw, denoise = random.Random(0), PolyphaseWavelets(like)

    def shrink(image: Tensor, threshold: float) -> Tensor:
        down, right = draw.randrange(GRID), draw.randrange(GRID)
        moved = image.roll((down, right), (-2, -1))
        return denoise(moved, _OF_WAVELETS * threshold).roll((-down, -right), (-2, -1))

    return shrink
