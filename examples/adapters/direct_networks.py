"""DIRECT's E2E-VarNet and vSHARP as generators: `pip install direct-recon`, Python 3.12 or newer.

Both take channels=1 (magnitudes) and channels=2 (complex images).
"""

from __future__ import annotations

import torch
from direct.data.transforms import fft2, ifft2, reduce_operator
from direct.nn.varnet.varnet import EndToEndVarNet
from direct.nn.vsharp.vsharp import VSharpNet
from torch import Tensor, nn


class VarNet(nn.Module):
    """`EndToEndVarNet` with maps that are known."""

    def __init__(self, channels: int, cascades: int = 4, width: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.network = EndToEndVarNet(fft2, ifft2, num_layers=cascades, regularizer_num_filters=width)

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        points, sensitivity = torch.view_as_real(kspace), _sensitivity(kspace, maps)
        found = self.network(points, mask.unsqueeze(-1), sensitivity)
        return _image(reduce_operator(ifft2(found, dim=(2, 3)), sensitivity, dim=1), self.channels)


class VSharp(nn.Module):
    """`VSharpNet`; of its images that of the last step."""

    def __init__(self, channels: int, steps: int = 4, width: int = 8) -> None:
        super().__init__()
        self.channels = channels
        self.network = VSharpNet(
            fft2, ifft2, num_steps=steps, num_steps_dc_gd=4, auxiliary_steps=1, image_unet_num_filters=width,
            initializer_channels=(16, 16, 32, 32),
        )  # fmt: skip

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        found = self.network(torch.view_as_real(kspace), _sensitivity(kspace, maps), mask.unsqueeze(-1))
        return _image(found[-1], self.channels)


def _sensitivity(kspace: Tensor, maps: Tensor | None) -> Tensor:
    return torch.view_as_real(torch.ones_like(kspace) if maps is None else maps)


def _image(found: Tensor, channels: int) -> Tensor:
    """(batch, height, width, 2) → (batch, channels, height, width)."""
    if channels == 1:
        return found.square().sum(dim=-1).add(1e-12).sqrt().unsqueeze(1)  # with a gradient at 0
    return found.permute(0, 3, 1, 2)
