"""Data consistency: what was measured is put back into the k-space of a reconstruction."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from recon.fourier import fft2c, ifft2c, mirrored
from recon.sense import channels_to_complex, complex_to_channels, sense_expand, sense_reduce

_REAL_ROUNDS = 10  # each halves, at least, what a real image of another phase lacks of the measured points
Consistency = Literal["soft", "hard"]


class DataConsistency(nn.Module):
    """Replace (`hard`) or mix (`soft`) the measured points of an image's k-space, in float32.

    Soft: (k + λ · measured) / (1 + λ) with one learned λ, which starts at 1. Source: Schlemper et al., A deep
    cascade of convolutional neural networks for MR image reconstruction, eq. (7).
    """

    def __init__(self, kind: Consistency) -> None:
        super().__init__()
        # one axis, because DeepSpeed cannot broadcast a parameter that has none
        self.log_weight = nn.Parameter(torch.zeros(1)) if kind == "soft" else None

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        """`image` (batch, 1 or 2, height, width): real, or real and imaginary part; the result is the same.

        `kspace` (batch, coil, height, width) complex64 as measured; `mask` (batch, 1, height, width) bool; `maps` as
        `kspace`, with Σ|maps|² = 1 or 0 in each pixel, None for one coil.

        A real image seen by one coil has the complex conjugate of each point at the negative frequency, so every
        measured point counts as two. With `maps` of one coil, its phase, the same is reached round by round: what a
        real image cannot have is taken off, and the points are put back again. With `hard` the error of an image
        never grows, and with one coil the result has exactly the measured points; of several coils it is the nearest
        image that they see to one that has them.
        """
        value = image.float()
        whole = channels_to_complex(value) if value.shape[1] == 2 else torch.complex(value, torch.zeros_like(value))
        predicted = fft2c(sense_expand(whole, maps))
        if value.shape[1] == 1 and maps is None:
            kspace, mask = torch.where(mask, kspace, mirrored(kspace).conj()), mask | mirrored(mask)
        if self.log_weight is None:
            measured = kspace
        else:
            weight = self.log_weight.float().exp()
            measured = (predicted + weight * kspace) / (1 + weight)
        corrected = sense_reduce(ifft2c(torch.where(mask, measured, predicted)), maps)
        if value.shape[1] == 2:
            return complex_to_channels(corrected).to(image.dtype)
        for _ in range(_REAL_ROUNDS - 1 if maps is not None else 0):
            predicted = fft2c(sense_expand(torch.complex(corrected.real, torch.zeros_like(value)), maps))
            corrected = sense_reduce(ifft2c(torch.where(mask, measured, predicted)), maps)
        return corrected.real.to(image.dtype)


class ConsistentGenerator(nn.Module):
    """A generator whose last layer is data consistency: (zero_filled, kspace, mask, maps) → reconstruction.

    Both are run `iterations` times with the same weights, each time on the image before. Source: Aggarwal et al., MoDL:
    model-based deep learning architecture for inverse problems.
    """

    def __init__(self, network: nn.Module, kind: Consistency, iterations: int = 1) -> None:
        super().__init__()
        self.network = network
        self.iterations = iterations
        self.consistency = DataConsistency(kind)

    def forward(self, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        image = zero_filled
        for _ in range(self.iterations):
            image = self.consistency(self.network(image), kspace, mask, maps)
        return image
