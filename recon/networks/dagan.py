"""DAGAN's networks (Yang et al., 2018), which WDAGAN takes over."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larmor.recon.networks.trunk import norm_layer, pad_to_multiple
from larmor.recon.recipe.settings import Norm

_ENCODER = (1, 2, 4, 8, 8, 8, 8, 8)  # channels in units of the width
_DECODER = (8, 16, 16, 16, 4, 2, 1, 1)
_SMALLEST = 256  # eight halvings


class DaganGenerator(nn.Module):
    """(batch, channels, height, width) zero-filled → the same shape; `width=64` is as published: 98.6 M parameters.

    Eight convolutions of stride 2, eight transposed ones with the encoder's features beside them, tanh, added to the
    input; magnitudes are clipped at 0, complex images are not. Any size: the image is extended to a multiple of
    256, so that the bottom is at least 1×1, and cut back.

    Departs from the published code in one point: the normalisation is not batch norm but one that looks at each image
    alone (as many parameters), so that a result does not depend on batch and world size. The bottom has none: at 1×1
    it would leave nothing. Biases that a normalisation cancels are left out (6528 of the published 98,587,393).
    """

    def __init__(self, width: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.multiple = _SMALLEST  # of which height and width are made
        self._clip = channels == 1
        encoder: list[nn.Module] = []
        before = channels
        for level, factor in enumerate(_ENCODER):
            normed = 0 < level < len(_ENCODER) - 1
            conv = nn.Conv2d(before, factor * width, kernel_size=4, stride=2, padding=1, bias=not normed)
            after = norm_layer(norm, factor * width) if normed else nn.Identity()
            encoder.append(nn.Sequential(conv, after, nn.LeakyReLU(0.2)))
            before = factor * width
        self.encoder = nn.ModuleList(encoder)
        decoder: list[nn.Module] = []
        skips = (*(factor * width for factor in _ENCODER[-2::-1]), 0)
        for factor, skip in zip(_DECODER, skips, strict=True):
            conv_up = nn.ConvTranspose2d(before, factor * width, kernel_size=4, stride=2, padding=1, bias=False)
            decoder.append(nn.Sequential(conv_up, norm_layer(norm, factor * width), nn.ReLU()))
            before = factor * width + skip
        self.decoder = nn.ModuleList(decoder)
        self.last = nn.Conv2d(before, channels, kernel_size=1)
        _published_start(self)

    def forward(self, zero_filled: Tensor, *_measurement: Tensor | None) -> Tensor:
        hidden, (height, width) = pad_to_multiple(zero_filled, self.multiple)
        features: list[Tensor] = []
        for down in self.encoder:
            hidden = down(hidden)
            features.append(hidden)
        features.pop()
        for up in self.decoder:
            hidden = up(hidden)
            if features:
                hidden = torch.cat([hidden, features.pop()], dim=1)
        result = zero_filled + torch.tanh(self.last(hidden))[..., :height, :width]
        return result.clamp_min(0) if self._clip else result


class DaganDiscriminator(nn.Module):
    """(batch, channels, height, width) → (batch, 1) logits; `width=64` is as published: 48.1 M parameters.

    Six convolutions of stride 2, two 1×1 ones, a residual block, one dense unit. Any size with one set of weights: the
    image is extended by zeros, as its convolutions do, to a multiple of 64 and to at least 128, so that the last maps
    have at least 2×2 points to normalise.

    Departs from the published code in the normalisation (as the generator; `critic_step` allows no batch norm) and in
    the global average before the dense unit, which there sees every point of images of one size.
    """

    def __init__(self, width: int, channels: int, norm: Norm) -> None:
        super().__init__()

        def block(before: int, after: int, kernel: int, stride: int = 1) -> list[nn.Module]:
            padding = (kernel - 1) // 2
            return [nn.Conv2d(before, after, kernel, stride, padding, bias=False), norm_layer(norm, after)]

        down: list[nn.Module] = [nn.Conv2d(channels, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        for factor in (1, 2, 4, 8, 16):
            down += [*block(factor * width, 2 * factor * width, kernel=4, stride=2), nn.LeakyReLU(0.2)]
        down += [*block(32 * width, 16 * width, kernel=1), nn.LeakyReLU(0.2), *block(16 * width, 8 * width, kernel=1)]
        self.down = nn.Sequential(*down)
        self.residual = nn.Sequential(
            *block(8 * width, 2 * width, kernel=1),
            nn.LeakyReLU(0.2),
            *block(2 * width, 2 * width, kernel=3),
            nn.LeakyReLU(0.2),
            *block(2 * width, 8 * width, kernel=3),
        )
        self.dense = nn.Linear(8 * width, 1, bias=False)  # no bias: as in the paper's critic
        _published_start(self)

    def forward(self, image: Tensor) -> Tensor:
        height, width = image.shape[-2:]
        right, below = (max(-size % 64, 128 - size) for size in (width, height))
        hidden = self.down(F.pad(image, (0, right, 0, below)))
        hidden = F.leaky_relu(hidden + self.residual(hidden), 0.2)
        return self.dense(hidden.mean(dim=(2, 3)))


def _published_start(network: nn.Module) -> None:
    """Weights from N(0, 0.02²), biases 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            nn.init.normal_(layer.weight, std=0.02)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
