"""Denoising by groups of similar patches (after Manimala et al. 2021; sizes ours)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from larmor.recon.networks.dncnn import DnCnn
from larmor.recon.recipe.settings import Norm

GROUP = 4  # the patch itself and the three most like it
_REACH, _STEP, _PATCH = 10, 2, 7


class SimilarPatchesGenerator(nn.Module):
    """(batch, channels, height, width) → the same shape, = input − network(group of similar patches).

    No noise level is estimated or given. Source: Manimala et al., Wireless Pers. Commun. 116:491 (2021), of which the
    abstract alone is public; the grouping follows block-matching networks.
    """

    def __init__(self, width: int, channels: int = 1, norm: Norm = "group") -> None:
        super().__init__()
        self.network = DnCnn(GROUP * channels, channels, width, norm)
        self.multiple = 8  # of sizes that vary: 16 at least, because the periodic padding reaches 10 pixels

    def forward(self, image: Tensor, *_measurement: Tensor | None) -> Tensor:
        return image - self.network(similar_patches(image))


def similar_patches(image: Tensor) -> Tensor:
    """(batch, channels, height, width) → (batch, 4 · channels, height, width), the image itself first.

    For each pixel three more pixels, the centres of those 7×7 patches at the 120 offsets of −10, −8, …, 10 around it
    (periodic) that differ least from its own. The choice has no gradient, the pixels have. Takes 120 · 8 bytes a pixel.
    """
    offsets = 2 * _REACH // _STEP + 1
    padded = F.pad(image, (_REACH,) * 4, mode="circular")
    around = F.unfold(padded, kernel_size=offsets, dilation=_STEP).unflatten(1, (-1, offsets**2))
    around = around.unflatten(3, image.shape[-2:])  # batch, channel, offset, height, width
    centre = offsets**2 // 2
    around = torch.cat([around[:, :, :centre], around[:, :, centre + 1 :]], dim=2)
    with torch.no_grad():
        squares = (around - image.unsqueeze(2)).square().sum(dim=1)
        difference = F.avg_pool2d(squares, _PATCH, stride=1, padding=_PATCH // 2, count_include_pad=False)
        chosen = difference.topk(GROUP - 1, dim=1, largest=False).indices
    index = chosen.unsqueeze(1).expand(-1, image.shape[1], -1, -1, -1)
    return torch.cat([image, around.gather(2, index).flatten(1, 2)], dim=1)
