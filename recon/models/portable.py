"""A generator as other programs can run it: of real numbers only, with a last axis for real and imaginary part.

ONNX has no complex numbers, and its exporter knows no Fourier transform of them. Data consistency is written here once
more for real arithmetic, with the transform as two matrix products: exact for any size, and cheap beside a network.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.networks.idpcnn import IdpGenerator
from larmor.recon.physics.fourier import mirrored


class PortableGenerator(nn.Module):
    """A generator without data consistency: `zero_filled` (batch, channels, height, width) → the same shape."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, zero_filled: Tensor) -> Tensor:
        return self.network(zero_filled)


class PortableConsistentGenerator(nn.Module):
    """One with data consistency: it takes what was measured too, and of several coils their sensitivity maps.

    `kspace` and `maps` are (batch, coil, height, width, 2) float32, `mask` (batch, 1, height, width) bool.
    """

    def __init__(self, generator: ConsistentGenerator) -> None:
        super().__init__()
        self.networks = generator.networks
        self.is_consistent = generator.consistency is not None
        self.log_weight = None if generator.consistency is None else generator.consistency.log_weight
        self.iterations = generator.iterations

    def forward(self, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        return self._reconstruct(zero_filled, kspace, mask, maps)

    def _reconstruct(self, image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None) -> Tensor:
        measured = PortableMeasured(kspace, mask, maps, image.shape[1])
        weight = None if self.log_weight is None else self.log_weight.exp()
        for _ in range(self.iterations):
            for network in self.networks:
                image = network(image)
                if self.is_consistent:
                    image = measured.put_back(image, weight)
        return image


class PortableMeasured:
    """`Measured`, of real numbers: `kspace` and `maps` (batch, coil, height, width, 2), `mask` (batch, 1, height,
    width)."""

    def __init__(self, kspace: Tensor, mask: Tensor, maps: Tensor | None, channels: int) -> None:
        if channels == 1 and maps is None:
            conjugate = mirrored(kspace, (-3, -2)) * kspace.new_tensor([1.0, -1.0])
            kspace, mask = torch.where(mask.unsqueeze(-1), kspace, conjugate), mask | mirrored(mask)
        self._kspace, self._mask, self._maps = kspace, mask.unsqueeze(-1), maps

    def put_back(self, image: Tensor, weight: Tensor | None = None) -> Tensor:
        """As `Measured.put_back`; `weight` has one axis, or (batch, 1, 1, 1)."""
        parts = (image, torch.zeros_like(image)) if image.shape[1] == 1 else image.chunk(2, dim=1)
        whole = torch.stack(parts, dim=-1)
        predicted = centred_dft(whole if self._maps is None else _times(self._maps, whole))
        measured = self._kspace
        if weight is not None:
            share = weight.unsqueeze(-1)
            measured = (predicted + share * measured) / (1 + share)
        corrected = centred_dft(torch.where(self._mask, measured, predicted), inverse=True)
        if self._maps is not None:
            conjugate = self._maps * self._maps.new_tensor([1.0, -1.0])
            corrected = _times(conjugate, corrected).sum(dim=1, keepdim=True)
        return corrected[..., 0] if image.shape[1] == 1 else torch.cat([corrected[..., 0], corrected[..., 1]], dim=1)


class PortableLoop(nn.Module):
    """The loop of `idpcnn`: inputs as those of a generator with data consistency."""

    def __init__(self, generator: IdpGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        measured = PortableMeasured(kspace, mask, maps, zero_filled.shape[1])
        return self.generator.loop(zero_filled, measured.put_back)


class PortableStartedGenerator(PortableConsistentGenerator):
    """One whose `start` is given in place of the zero-filled image: its iterations would be thousands of operations."""

    def forward(self, start: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        return self._reconstruct(start, kspace, mask, maps)


def portable(generator: nn.Module) -> nn.Module:
    """`generator` with real inputs and outputs and the same weights."""
    if isinstance(generator, ConsistentGenerator):
        started = generator.start_config.enabled
        return PortableStartedGenerator(generator) if started else PortableConsistentGenerator(generator)
    return PortableLoop(generator) if isinstance(generator, IdpGenerator) else PortableGenerator(generator)


def centred_dft(image: Tensor, inverse: bool = False) -> Tensor:
    """As `fft2c` and `ifft2c`, of (…, height, width, 2) real numbers."""
    rows, columns = (_dft_matrix(image.shape[axis], image, inverse) for axis in (-3, -2))
    real, imaginary = image[..., 0], image[..., 1]
    real, imaginary = (
        rows[0] @ real - rows[1] @ imaginary,
        rows[0] @ imaginary + rows[1] @ real,
    )
    return torch.stack([real @ columns[0] - imaginary @ columns[1], real @ columns[1] + imaginary @ columns[0]], dim=-1)


def _dft_matrix(size: int, like: Tensor, inverse: bool) -> tuple[Tensor, Tensor]:
    """Real and imaginary part (size, size) of the symmetric matrix of the orthonormal transform, centre [n // 2]."""
    place = torch.arange(size, device=like.device) - size // 2
    length = torch.ones_like(place).sum()  # as a tensor: a number would be fixed in the exported program
    # whole turns are taken off in whole numbers: sines of large angles would be rough
    turns = torch.remainder(place[:, None] * place[None, :], length)
    angle = turns.to(like.dtype) * ((2 if inverse else -2) * math.pi / length.to(like.dtype))
    scale = length.to(like.dtype).rsqrt()
    return torch.cos(angle) * scale, torch.sin(angle) * scale


def _times(left: Tensor, right: Tensor) -> Tensor:
    real = left[..., 0] * right[..., 0] - left[..., 1] * right[..., 1]
    imaginary = left[..., 0] * right[..., 1] + left[..., 1] * right[..., 0]
    return torch.stack([real, imaginary], dim=-1)
