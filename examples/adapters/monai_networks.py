"""The U-Net and the end-to-end variational network of MONAI, which comes with Larmor, as generators."""

from __future__ import annotations

import torch
from monai.apps.reconstruction.networks.nets.complex_unet import ComplexUnet
from monai.apps.reconstruction.networks.nets.varnet import VariationalNetworkModel
from monai.networks.nets import BasicUNet
from torch import Tensor, nn


def _features(width: int) -> tuple[int, ...]:
    return (width, width, 2 * width, 4 * width, 8 * width, width)


class UNet(nn.Module):
    """`BasicUNet` of the zero-filled image: its output is added to the image. Heights and widths: multiples of 16."""

    multiple = 16

    def __init__(self, channels: int, width: int = 16) -> None:
        super().__init__()
        self.network = BasicUNet(
            spatial_dims=2, in_channels=channels, out_channels=channels, features=_features(width), upsample="deconv"
        )

    def forward(self, image: Tensor, *_: Tensor | None) -> Tensor:
        return image + self.network(image)


class VarNet(nn.Module):
    """`VariationalNetworkModel` with maps that are known instead of estimated; images are magnitudes."""

    def __init__(self, channels: int, cascades: int = 4, width: int = 8) -> None:
        super().__init__()
        if channels != 1:
            raise ValueError(f"channels={channels}: this network gives magnitudes; set signal.mode=magnitude")
        refinement = ComplexUnet(features=_features(width))
        self.maps = _KnownMaps()
        self.network = VariationalNetworkModel(self.maps, refinement, num_cascades=cascades)

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        self.maps.found = torch.view_as_real(torch.ones_like(kspace) if maps is None else maps)
        return self.network(torch.view_as_real(kspace), mask.unsqueeze(-1)).unsqueeze(1)


class _KnownMaps(nn.Module):
    """In the place of the network that estimates sensitivity maps: those of the call, (batch, coil, H, W, 2)."""

    found: Tensor

    def forward(self, kspace: Tensor, mask: Tensor) -> Tensor:
        return self.found
