"""The network of the system `larmor`: a U-Net of residual blocks at full resolution, without normalisation."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn

from larmor.recon.networks.trunk import norm_layer, pad_to_multiple
from larmor.recon.recipe.settings import Norm

_SMALL = 1e-3  # standard deviation of what a residual block adds at first


class ResidualUNet(nn.Module):
    """(batch, channels, height, width) → the same shape, = input + network(input).

    `levels` sizes with `width` · (1, 2, 4, …) channels, one residual block each on the way down and up, skips by
    addition. Any size: the image is extended to a multiple of 2^(levels − 1) and cut back. The last layer starts at
    zero, so that an untrained network returns its input. Normalisation is off by default: without it the network
    learns faster, and an image's brightness stays what it is (docs/benchmarks.md).
    """

    def __init__(self, width: int, levels: int, channels: int = 1, norm: Norm = "none") -> None:
        super().__init__()
        self.multiple = 2 ** (levels - 1)  # of which height and width are made
        widths = [width * 2**level for level in range(levels)]
        pairs = list(pairwise(widths))
        self.first = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList(ResidualBlock(count, norm) for count in widths)
        self.downs = nn.ModuleList(nn.Conv2d(fine, coarse, kernel_size=2, stride=2) for fine, coarse in pairs)
        self.ups = nn.ModuleList(nn.ConvTranspose2d(coarse, fine, kernel_size=2, stride=2) for fine, coarse in pairs)
        self.up_blocks = nn.ModuleList(ResidualBlock(fine, norm) for fine, _ in pairs)
        self.last = nn.Conv2d(width, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, image: Tensor, *_measurement: Tensor | None) -> Tensor:
        padded, (height, width) = pad_to_multiple(image, self.multiple)
        hidden, skips = self.first(padded), []
        for block, down in zip(self.down_blocks, self.downs, strict=False):
            skips.append(block(hidden))
            hidden = down(skips[-1])
        hidden = self.down_blocks[-1](hidden)
        for up, block, skip in zip(reversed(self.ups), reversed(self.up_blocks), reversed(skips), strict=True):
            hidden = block(up(hidden) + skip)
        return image + self.last(hidden)[..., :height, :width]


class ResidualBlock(nn.Module):
    """image + convolution(ReLU(convolution(image))), which starts near the identity."""

    def __init__(self, channels: int, norm: Norm) -> None:
        super().__init__()
        last = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        nn.init.normal_(last.weight, std=_SMALL)
        nn.init.zeros_(torch.as_tensor(last.bias))
        first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.layers = nn.Sequential(first, norm_layer(norm, channels), nn.ReLU(inplace=True), last)

    def forward(self, image: Tensor) -> Tensor:
        return image + self.layers(image)
