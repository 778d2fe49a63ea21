"""DnCNN: a denoiser of 17 convolutions at full resolution (Zhang et al. 2017)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from larmor.recon.networks.trunk import norm_layer
from larmor.recon.recipe.settings import Norm

_LAYERS = 17


class DnCnn(nn.Module):
    """(batch, in_channels, height, width) → (batch, channels, height, width): the noise in its input.

    17 convolutions 3×3 with reflection padding; a normalisation after each but the first and the last. The last one
    starts at zero, so that an untrained network finds no noise.

    Source: Zhang et al., Beyond a Gaussian denoiser, IEEE Trans. Image Process. 26:3142 (2017).
    """

    def __init__(self, in_channels: int, channels: int, width: int = 64, norm: Norm = "group") -> None:
        super().__init__()
        layers: list[nn.Module] = [_conv(in_channels, width, bias=True), nn.ReLU(inplace=True)]
        for _ in range(_LAYERS - 2):
            bias = norm == "none"  # a normalisation would cancel it
            layers += [_conv(width, width, bias), norm_layer(norm, width), nn.ReLU(inplace=True)]
        last = _conv(width, channels, bias=True)
        nn.init.zeros_(last.weight)
        self.layers = nn.Sequential(*layers, last)

    def forward(self, image: Tensor) -> Tensor:
        return self.layers(image)


def _conv(in_channels: int, out_channels: int, bias: bool) -> nn.Conv2d:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, padding_mode="reflect", bias=bias)
    nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
    if conv.bias is not None:
        nn.init.zeros_(torch.as_tensor(conv.bias))
    return conv
