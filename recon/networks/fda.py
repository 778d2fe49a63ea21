"""FDA-CNN: a U-Net of dense blocks with an attention gate on every skip (Hossain et al., 2023)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larmor.recon.networks.trunk import norm_layer, pad_to_multiple
from larmor.recon.recipe.settings import Norm

_ENCODER = (1, 2, 4, 8, 16)  # of the dense blocks, in units of the width
_DECODER = ((8, 8), (4, 4), (2, 2), (1, 2))  # from 1/8 of the size up: gate and upsampling, dense block
_STEPS = 4  # of a dense block; each adds a quarter of its growth


class FdaGenerator(nn.Module):
    """(batch, channels, height, width) zero-filled → the same shape, = input + network(input).

    `width=32` is as published: 12.0 M parameters; widths are multiples of 4. Any size: the image is extended to a
    multiple of 16 and cut back. The last layer starts at zero, so that an untrained generator returns its input.

    Source: the authors' code, `AttentDenseUNet` of biddut2j8/FDA-CNN. Departs from it in the normalisation, which looks
    at each image alone, and in biases that a normalisation cancels, which are left out.
    """

    def __init__(self, width: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.multiple = 16  # of which height and width are made
        self.first = nn.Conv2d(channels, channels, kernel_size=3, padding=1)  # as published: to as many channels
        self.pool = nn.MaxPool2d(kernel_size=2)
        self.encoder, below = nn.ModuleList(), channels
        skips = []
        for factor in _ENCODER:
            self.encoder.append(block := DenseBlock(below, factor * width, norm))
            below = block.out_channels
            skips.append(below)
        skips.pop()
        self.decoder = nn.ModuleList()
        for number, (inner, dense) in enumerate(_DECODER):
            up = GatedUp(below, skips.pop(), inner * width, dense * width, norm, is_narrowed=number == 0)
            self.decoder.append(up)
            below = up.dense.out_channels
        self.last = nn.Conv2d(below, channels, kernel_size=1)
        _start(self)
        nn.init.zeros_(self.last.weight)

    def forward(self, zero_filled: Tensor, *_measurement: Tensor | None) -> Tensor:
        image, (height, width) = pad_to_multiple(zero_filled, self.multiple)
        hidden, features = self.first(image), []
        for level, block in enumerate(self.encoder):
            hidden = block(hidden if level == 0 else self.pool(hidden))
            features.append(hidden)
        features.pop()
        for up in self.decoder:
            hidden = up(hidden, features.pop())
        return zero_filled + self.last(hidden)[..., :height, :width]


class DenseBlock(nn.Module):
    """(batch, in_channels, height, width) → in_channels + `growth` channels, the first of which are the input.

    Four steps, each a 1×1 convolution to `growth` channels and a 3×3 one to a quarter of them, see all before.
    """

    def __init__(self, in_channels: int, growth: int, norm: Norm) -> None:
        super().__init__()
        self.out_channels = in_channels + growth
        added = growth // _STEPS
        self.steps = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(in_channels + step * added, growth, kernel_size=1, bias=False),
                norm_layer(norm, growth),
                nn.ReLU(),
                nn.Conv2d(growth, added, kernel_size=3, padding=1, bias=False),
                norm_layer(norm, added),
                nn.ReLU(),
            )
            for step in range(_STEPS)
        )

    def forward(self, image: Tensor) -> Tensor:
        for step in self.steps:
            image = torch.cat([image, step(image)], dim=1)
        return image


class AttentionGate(nn.Module):
    """A skip (batch, skip_channels, 2h, 2w), weighted by what `below` (batch, below_channels, h, w) attends to.

    One map for all channels; the result has the skip's shape.
    """

    def __init__(self, below_channels: int, skip_channels: int, inner: int) -> None:
        super().__init__()
        self.signal = nn.Sequential(nn.Conv2d(below_channels, inner, kernel_size=1), nn.ReLU())
        self.of_signal = nn.Sequential(
            nn.Conv2d(inner, inner, kernel_size=1), nn.Conv2d(inner, inner, kernel_size=3, padding=1)
        )
        self.of_skip = nn.Conv2d(skip_channels, inner, kernel_size=2, stride=2)
        self.psi = nn.Conv2d(inner, 1, kernel_size=1)
        self.out = nn.Conv2d(skip_channels, skip_channels, kernel_size=1)

    def attention(self, skip: Tensor, below: Tensor) -> Tensor:
        """The map (batch, 1, h, w), between 0 and 1."""
        return torch.sigmoid(self.psi(torch.relu(self.of_signal(self.signal(below)) + self.of_skip(skip))))

    def forward(self, skip: Tensor, below: Tensor) -> Tensor:
        attention = nn.functional.interpolate(self.attention(skip, below), scale_factor=2.0, mode="nearest")
        return self.out(skip * attention)


class GatedUp(nn.Module):
    """One level of the decoder: upsampling, the gated skip beside it, a dense block."""

    def __init__(self, below: int, skip: int, inner: int, growth: int, norm: Norm, is_narrowed: bool) -> None:
        super().__init__()
        self.gate = AttentionGate(below, skip, inner)
        self.up = nn.ConvTranspose2d(below, inner, kernel_size=3, stride=2, padding=1, output_padding=1)
        joined = inner + skip
        self.narrow = nn.Conv2d(joined, inner, kernel_size=1) if is_narrowed else nn.Identity()
        self.dense = DenseBlock(inner if is_narrowed else joined, growth, norm)

    def forward(self, below: Tensor, skip: Tensor) -> Tensor:
        return self.dense(self.narrow(torch.cat([self.up(below), self.gate(skip, below)], dim=1)))


def _start(network: nn.Module) -> None:
    """Weights for ReLU (He et al., 2015), biases 0."""
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
