"""IDPCNN: denoising and projection by turns, with a denoiser that was never trained on a mask (Hou & Li 2022)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from larmor.recon.networks.data_consistency import Measured
from larmor.recon.networks.dncnn import DnCnn
from larmor.recon.recipe.settings import Norm

LARGEST_LEVEL = 25 / 255  # standard deviation of the noise, of images whose largest magnitude is about 1
_LAMBDA = 6e-5
_FIRST_RHO = 0.0041
_GROWTH = 1.2  # of ρ, where the change did not fall
_SLACK = 1 + 1e-4
_PROJECTION = 1e-3  # times ρ: the weight of the denoised points beside the measured ones
_ENOUGH = 1e-6  # mean squared change at which an image is done


class LevelDenoiser(nn.Module):
    """(noisy image (batch, channels, height, width), level (batch, 1, 1, 1)) → the image without noise.

    One network for all levels, which the level enters as a constant channel, where the publication has 34 networks. A
    level above 25/255 counts as 25/255, as the nearest of those networks would.
    """

    def __init__(self, width: int, channels: int, norm: Norm) -> None:
        super().__init__()
        self.network = DnCnn(channels + 1, channels, width, norm)

    def forward(self, image: Tensor, level: Tensor) -> Tensor:
        plane = level.to(image.dtype).clamp_max(LARGEST_LEVEL).expand(-1, 1, *image.shape[-2:])
        return image - self.network(torch.cat([image, plane], dim=1))


class IdpGenerator(nn.Module):
    """(zero_filled, kspace, mask[, maps]) → reconstruction of the same shape, in at most `turns` turns.

    A turn denoises the image at σ = √(λ/ρ) and puts the measured points back with a weight that makes it all but an
    exact projection. ρ grows by 1.2 where the change of the image did not fall. An image is done when its mean squared
    change is below 10⁻⁶; each stops by itself, so that a result does not depend on its batch. `denoiser` alone is
    trained (`networks.trained_part`), on noisy targets.

    Source: Hou & Li, J. Comput. Appl. Math. 406:113973 (2022), and its code, which has no dual variable.
    """

    def __init__(self, width: int, channels: int = 1, norm: Norm = "group", turns: int = 100) -> None:
        super().__init__()
        self.multiple = 1  # of which height and width are made
        self.denoiser = LevelDenoiser(width, channels, norm)
        self.turns = turns

    def forward(self, zero_filled: Tensor, kspace: Tensor, mask: Tensor, maps: Tensor | None = None) -> Tensor:
        return self.loop(zero_filled, Measured(kspace, mask, maps, zero_filled.shape[1]).put_back)

    def loop(self, zero_filled: Tensor, put_back: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """The turns, with a projection (image, weight of the measured points (batch, 1, 1, 1)) → image."""
        image = zero_filled.float()
        rho = torch.full_like(image[:, :1, :1, :1], _FIRST_RHO)
        before = torch.full_like(rho, torch.inf)
        done = torch.zeros_like(rho, dtype=torch.bool)
        for _ in range(self.turns):
            found = self.denoiser(image.to(zero_filled.dtype), (_LAMBDA / rho).sqrt()).float()
            found = put_back(found, 1 / (_PROJECTION * rho))
            change = (found - image).square().mean(dim=(1, 2, 3), keepdim=True)
            image = torch.where(done, image, found)
            rho = torch.where(~done & (change > _SLACK * before), _GROWTH * rho, rho)
            done, before = done | (change < _ENOUGH), change
            if not (torch.compiler.is_exporting() or image.is_meta) and bool(done.all()):
                break
        return image.to(zero_filled.dtype)
