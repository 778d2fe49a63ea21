"""The shrinkage of `wavelets.py` in polyphase form: on a CPU twice as fast, and rounded differently."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from larmor.recon.networks.trunk import pad_to_multiple
from larmor.recon.networks.wavelets import GRID, LEVELS, daubechies, shrink


class PolyphaseWavelets:
    """`denoise_wavelets` with filters that are made once, for images like one that is given.

    The pixels of each 2×2 block become four channels, so that both directions are plain 2×2 convolutions.
    """

    def __init__(self, like: Tensor) -> None:
        taps = daubechies(like).reshape(4, 2, 2, 2, 2)  # band, row of blocks, row, column of blocks, column
        self._split = taps.permute(0, 2, 4, 1, 3).reshape(4, 4, 2, 2).contiguous()
        self._merge = self._split.transpose(0, 1).flip(-2, -1).contiguous()

    def __call__(self, image: Tensor, threshold: float) -> Tensor:
        """(batch, channels, height, width) real of any size → the same, as `denoise_wavelets`."""
        if image.device.type == "cpu" and len(image) > 1:  # by itself: a CPU's convolutions round as the batch is long
            return torch.cat([self(one, threshold) for one in image.split(1)])
        padded, (height, width) = pad_to_multiple(image, GRID)
        return self._denoise(padded, threshold, LEVELS)[..., :height, :width]

    def _denoise(self, image: Tensor, threshold: float, levels: int) -> Tensor:
        batch, channels, height, width = image.shape
        blocks = F.pixel_unshuffle(image.reshape(-1, 1, height, width), 2)
        bands = F.conv2d(F.pad(blocks, (0, 1, 0, 1), mode="circular"), self._split)
        bands = bands.reshape(batch, channels, 4, height // 2, width // 2)
        coarse, detail = bands[:, :, 0], shrink(bands[:, :, 1:], threshold)
        if levels > 1:
            coarse = self._denoise(coarse, threshold, levels - 1)
        bands = torch.cat([coarse.unsqueeze(2), detail], dim=2).flatten(0, 1)
        merged = F.conv2d(F.pad(bands, (1, 0, 1, 0), mode="circular"), self._merge)
        return F.pixel_shuffle(merged, 2).reshape(image.shape)
