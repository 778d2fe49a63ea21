"""A residual network of dilated convolutions at full resolution, after Xu et al. (2019): the title alone is public."""

from __future__ import annotations

from torch import Tensor, nn

from larmor.recon.networks.trunk import norm_layer
from larmor.recon.recipe.settings import Norm

DILATIONS = (1, 2, 4, 8, 16, 8, 4, 2, 1)  # of the residual blocks


class DilatedGenerator(nn.Module):
    """(batch, channels, height, width) zero-filled → the same shape, = input + network(input); any size.

    Nothing is pooled: each output pixel sees 189×189 of the input through convolutions of 3×3. `width=64` has 0.67 M
    parameters. The last layer starts at zero, so that an untrained generator returns its input.
    """

    def __init__(self, width: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.multiple = 1  # of which height and width are made
        self.first = nn.Sequential(nn.Conv2d(channels, width, kernel_size=3, padding=1), nn.ReLU())
        self.blocks = nn.Sequential(*(_Block(width, dilation, norm) for dilation in DILATIONS))
        self.last = nn.Conv2d(width, channels, kernel_size=3, padding=1)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)
        nn.init.zeros_(self.last.weight)

    def forward(self, zero_filled: Tensor, *_measurement: Tensor | None) -> Tensor:
        return zero_filled + self.last(self.blocks(self.first(zero_filled)))


class _Block(nn.Module):
    """Two dilated convolutions, added to the input."""

    def __init__(self, width: int, dilation: int, norm: Norm) -> None:
        super().__init__()

        def conv() -> list[nn.Module]:
            layer = nn.Conv2d(width, width, kernel_size=3, padding=dilation, dilation=dilation, bias=False)
            return [layer, norm_layer(norm, width)]

        self.convs = nn.Sequential(*conv(), nn.ReLU(), *conv())

    def forward(self, hidden: Tensor) -> Tensor:
        return nn.functional.relu(hidden + self.convs(hidden))
