"""MoDL of `deepinv`, an unrolled network, as a generator: `pip install deepinv`."""

from __future__ import annotations

import torch
from deepinv.models import DnCNN, MoDL
from deepinv.physics import MultiCoilMRI
from torch import Tensor, nn


class Modl(nn.Module):
    """`MoDL` with a small DnCNN, whose weights all iterations share."""

    def __init__(self, channels: int, iterations: int = 3, depth: int = 5, width: int = 32) -> None:
        super().__init__()
        self.channels = channels
        denoiser = DnCNN(in_channels=2, out_channels=2, depth=depth, nf=width, pretrained=None)
        self.network = MoDL(denoiser, num_iter=iterations)

    def forward(self, image: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        points = torch.stack([kspace.real, kspace.imag], dim=1)  # (batch, 2, coil, height, width)
        coils = torch.ones_like(kspace) if maps is None else maps
        physics = MultiCoilMRI(mask=mask.expand(-1, 2, -1, -1).float(), coil_maps=coils, device=kspace.device)
        found = self.network(points, physics)
        if self.channels == 2:
            return found
        return found.square().sum(dim=1, keepdim=True).add(1e-12).sqrt()  # with a gradient at 0
