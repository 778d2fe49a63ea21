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
        kspace, mask = _whole(image, kspace, mask, maps)
        weight = None if self.log_weight is None else self.log_weight.exp()
        for _ in range(self.iterations):
            for network in self.networks:
                image = network(image)
                if self.is_consistent:
                    image = _put_back(image, kspace, mask, maps, weight)
        return image


class PortableStartedGenerator(PortableConsistentGenerator):
    """One whose `start` is given in place of the zero-filled image: its iterations would be thousands of operations."""

    def forward(self, start: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        return self._reconstruct(start, kspace, mask, maps)


class PortableIdpGenerator(nn.Module):
    """IDPCNN's loop; inputs as those of `PortableConsistentGenerator`."""

    def __init__(self, generator: IdpGenerator) -> None:
        super().__init__()
        self.generator = generator

    def forward(self, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        kspace, mask = _whole(zero_filled, kspace, mask, maps)

        def put_back(image: Tensor, weight: Tensor) -> Tensor:
            return _put_back(image, kspace, mask, maps, weight.unsqueeze(-1))

        return self.generator.iterate(zero_filled, put_back)


def portable(generator: nn.Module) -> nn.Module:
    """`generator` with real inputs and outputs and the same weights."""
    if isinstance(generator, ConsistentGenerator):
        started = generator.start_config.enabled
        return PortableStartedGenerator(generator) if started else PortableConsistentGenerator(generator)
    return PortableIdpGenerator(generator) if isinstance(generator, IdpGenerator) else PortableGenerator(generator)


def _whole(image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None) -> tuple[Tensor, Tensor]:
    """What was measured and where; of a real image seen by one coil each point counts at its mirrored place as well."""
    if image.shape[1] > 1 or maps is not None:
        return kspace, mask
    conjugate = mirrored(kspace, (-3, -2)) * kspace.new_tensor([1.0, -1.0])
    return torch.where(mask.unsqueeze(-1), kspace, conjugate), mask | mirrored(mask)


def _put_back(image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None, weight: Tensor | None = None) -> Tensor:
    parts = (image, torch.zeros_like(image)) if image.shape[1] == 1 else image.chunk(2, dim=1)
    whole = torch.stack(parts, dim=-1)
    predicted = centred_dft(whole if maps is None else _times(maps, whole))
    measured = kspace if weight is None else (predicted + weight * kspace) / (1 + weight)
    corrected = centred_dft(torch.where(mask.unsqueeze(-1), measured, predicted), inverse=True)
    if maps is not None:
        corrected = _times(maps * maps.new_tensor([1.0, -1.0]), corrected).sum(dim=1, keepdim=True)
    return corrected[..., 0] if image.shape[1] == 1 else torch.cat([corrected[..., 0], corrected[..., 1]], dim=1)


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
