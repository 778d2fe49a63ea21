"""DRGAN's generator: a residual map from dense blocks with pixel shuffle (Du et al. 2020; sizes ours)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larmor.recon.networks.trunk import pad_to_multiple

_LEVELS = 3  # each half the size of the last
_LAYERS = 4  # of a residual dense block


class DrganGenerator(nn.Module):
    """(batch, channels, height, width) → the same shape, = input + `residual(input)`.

    Dense blocks on the way down, dense blocks with pixel shuffle on the way up, skips by concatenation, no
    normalisation. Any size: the image is extended to a multiple of 8 and cut back. The last layer starts at zero, so
    that an untrained network returns its input.

    Source: Du et al., IET Image Process. 14:1690 (2020), of which the abstract alone is public. Two critics, residual
    map, and residual dense connections followed by pixel shuffle are theirs; widths and depths are ours.
    """

    def __init__(self, width: int, channels: int = 1) -> None:
        super().__init__()
        self.multiple = 2**_LEVELS  # of which height and width are made
        self.first = nn.Conv2d(channels, width, kernel_size=3, padding=1)
        self.down_blocks = nn.ModuleList(ResidualDenseBlock(width) for _ in range(_LEVELS))
        self.downs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, kernel_size=3, stride=2, padding=1), nn.ReLU(inplace=True))
            for _ in range(_LEVELS)
        )
        self.bottom = ResidualDenseBlock(width)
        self.ups = nn.ModuleList(DenseShuffle(width if not level else 2 * width, width) for level in range(_LEVELS))
        self.last = nn.Conv2d(2 * width, channels, kernel_size=3, padding=1)
        nn.init.zeros_(self.last.weight)
        nn.init.zeros_(torch.as_tensor(self.last.bias))

    def forward(self, image: Tensor, *_measurement: Tensor | None) -> Tensor:
        return image + self.residual(image)

    def residual(self, image: Tensor) -> Tensor:
        """The residual map of (batch, channels, height, width): what `forward` adds to its input."""
        padded, (height, width) = pad_to_multiple(image, self.multiple)
        hidden, skips = self.first(padded), []
        for block, down in zip(self.down_blocks, self.downs, strict=True):
            skips.append(block(hidden))
            hidden = down(skips[-1])
        hidden = self.bottom(hidden)
        for up, skip in zip(self.ups, reversed(skips), strict=True):
            hidden = torch.cat([up(hidden), skip], dim=1)
        return self.last(hidden)[..., :height, :width]


class ResidualDenseBlock(nn.Module):
    """Four convolutions, each of all before it; 1×1 back to `width` channels, added to the input."""

    def __init__(self, width: int) -> None:
        super().__init__()
        growth = width // 2
        self.layers = nn.ModuleList(
            nn.Conv2d(width + number * growth, growth, kernel_size=3, padding=1) for number in range(_LAYERS)
        )
        self.fusion = nn.Conv2d(width + _LAYERS * growth, width, kernel_size=1)

    def forward(self, image: Tensor) -> Tensor:
        features = image
        for layer in self.layers:
            features = torch.cat([features, torch.relu(layer(features))], dim=1)
        return image + self.fusion(features)


class DenseShuffle(nn.Module):
    """(batch, in_channels, height, width) → (batch, width, 2 · height, 2 · width): 1×1 convolution, residual dense
    block, convolution, pixel shuffle. Nothing is interpolated."""

    def __init__(self, in_channels: int, width: int) -> None:
        super().__init__()
        self.entry = nn.Conv2d(in_channels, width, kernel_size=1)
        self.block = ResidualDenseBlock(width)
        self.exit = nn.Conv2d(width, 4 * width, kernel_size=3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        return torch.relu(nn.functional.pixel_shuffle(self.exit(self.block(self.entry(image))), 2))
