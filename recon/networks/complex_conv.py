"""Convolutions of complex images, kept as real parts and imaginary parts."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class ComplexConv2d(nn.Module):
    """(batch, 2 · in_channels, height, width) → (batch, 2 · out_channels, height, width), real parts first; 3×3, zeros
    around.

    real = R∗real(x) − I∗imag(x) + b, imag = I∗real(x) + R∗imag(x) + b', as one real convolution with the kernel
    [[R, −I], [I, R]]. The start is the published one: moduli from a Rayleigh distribution of scale 1 / fan_in, any
    phase, biases 10⁻⁴. It is so small that a residual block is nearly the identity.

    Source: Wang et al., DeepcomplexMRI, Magn. Reson. Imaging 68:136-147 (2020), and the authors' code.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        shape = (out_channels, in_channels, 3, 3)
        self.real, self.imaginary = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.full((2 * out_channels,), 1e-4))
        # Rayleigh by its inverse distribution function, of a number in (0, 1]
        modulus = (-2 * torch.log(1 - torch.rand(shape))).sqrt() / (9 * in_channels)
        phase = (2 * torch.rand(shape) - 1) * math.pi
        with torch.no_grad():
            self.real.copy_(modulus * torch.cos(phase))
            self.imaginary.copy_(modulus * torch.sin(phase))

    def forward(self, image: Tensor) -> Tensor:
        real_rows = torch.cat([self.real, -self.imaginary], dim=1)
        imaginary_rows = torch.cat([self.imaginary, self.real], dim=1)
        return nn.functional.conv2d(image, torch.cat([real_rows, imaginary_rows]), self.bias, padding=1)
