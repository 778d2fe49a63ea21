"""What a denoiser is trained on: targets with noise of a known level."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from larmor.recon.networks.idpcnn import LARGEST_LEVEL
from larmor.recon.physics.random_stream import torch_stream
from larmor.recon.physics.transfer import sent

_STREAM = 0x64656E6F  # of the recipe's seed: nothing else draws from it


def draw_noise(targets: Sequence[Tensor], seed: int, step: int, rank: int) -> list[Tensor]:
    """Noise and level of each micro-batch in turn: (batch, channels, height, width) and (batch, 1, 1, 1).

    The level is drawn uniformly in [0, 25/255] for each image, a pure function of (seed, step, rank).
    """
    random = torch_stream([seed, _STREAM, step, rank])
    drawn: list[Tensor] = []
    for target in targets:
        level = LARGEST_LEVEL * torch.rand(len(target), 1, 1, 1, generator=random)
        noise = level * torch.randn(target.shape, generator=random)
        drawn += [sent(noise, target.device), sent(level, target.device)]
    return drawn
