"""The paper's generator: ResNet-50 trunk, upsampling stages with skips, residual output (Fig. 2)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larmor.recon.networks.trunk import ResNet50Trunk, norm_layer, pad_to_multiple
from larmor.recon.physics.transfer import constant
from larmor.recon.recipe.settings import GeneratorConfig, Norm


class ResNet50Generator(nn.Module):
    """(batch, channels, height, width) zero-filled → reconstruction of the same shape, = input + network(input).

    Any size: the image is extended to a multiple of 32 (64 with subbands) and cut back. The last layer
    starts at zero, so that an untrained generator returns its input.
    """

    def __init__(self, config: GeneratorConfig, channels: int = 1) -> None:
        super().__init__()
        self.subbands = config.subbands == "wavelet"
        self.multiple = 64 if self.subbands else 32  # of which height and width are made
        image_channels = 4 * channels if self.subbands else channels
        width, norm = config.width, config.norm
        self.detail = _conv_block(image_channels, width, norm)
        self.trunk = ResNet50Trunk(image_channels, width, norm)
        # from 1/32 up: what comes from below, the trunk's skip, what goes up
        below, ups = self.trunk.channels[4], []
        for skip, out in zip((*self.trunk.channels[3::-1], width), (8, 4, 2, 1, 1), strict=True):
            ups.append(_conv_block(below + skip, out * width, norm))
            below = out * width
        self.ups = nn.ModuleList(ups)
        self.last = nn.Conv2d(below, image_channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, zero_filled: Tensor, *_measurement: Tensor | None) -> Tensor:
        image, (height, width) = pad_to_multiple(zero_filled, self.multiple)
        bands = haar_split(image) if self.subbands else image
        features = [self.detail(bands), *self.trunk(bands)]
        hidden = features.pop()
        for up, skip in zip(self.ups, reversed(features), strict=True):
            hidden = up(torch.cat([F.interpolate(hidden, scale_factor=2.0, mode="nearest"), skip], dim=1))
        residual = self.last(hidden)
        residual = haar_merge(residual) if self.subbands else residual
        return zero_filled + residual[..., :height, :width]


def _conv_block(in_channels: int, out_channels: int, norm: Norm) -> nn.Sequential:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(conv, norm_layer(norm, out_channels), nn.ReLU(inplace=True))


def haar_split(image: Tensor) -> Tensor:
    """Orthonormal Haar subbands: (batch, c, 2h, 2w) → (batch, 4c, h, w), of each channel LL, LH, HL, HH."""
    pixels = F.pixel_unshuffle(image, 2).unflatten(1, (-1, 4))
    return torch.einsum("sp,bcphw->bcshw", _haar(image), pixels).flatten(1, 2)


def haar_merge(bands: Tensor) -> Tensor:
    """The inverse, and adjoint, of `haar_split`."""
    return F.pixel_shuffle(torch.einsum("sp,bcshw->bcphw", _haar(bands), bands.unflatten(1, (-1, 4))).flatten(1, 2), 2)


def _haar(like: Tensor) -> Tensor:
    return constant(((1, 1, 1, 1), (1, -1, 1, -1), (1, 1, -1, -1), (1, -1, -1, 1)), like) / 2
