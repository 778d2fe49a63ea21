"""Two ways to hold a critic's slope, beside weight clipping (which is in the optimiser's step)."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def apply_spectral_norm(module: nn.Module) -> nn.Module:
    """Divide the weight of every convolution and dense layer by its largest singular value, in place.

    Source: Miyato et al., Spectral normalization for GANs; torch's own parametrisation, one power iteration for
    each forward pass in training.
    """
    for layer in list(module.modules()):  # a list: each parametrisation adds modules
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.utils.parametrizations.spectral_norm(layer)
    return module


def interpolate(real: Tensor, fake: Tensor, random: torch.Generator) -> Tensor:
    """A point between each pair of images (batch, channel, height, width), ready for `gradient_penalty`.

    `random` is a generator of the CPU, so that the points are the same on every device.
    """
    share = torch.rand(len(real), 1, 1, 1, generator=random).to(real.device)
    return (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()


def gradient_penalty(scores: Tensor, points: Tensor) -> Tensor:
    """Mean of (‖∇D(x)‖ − 1)² over the `points` whose `scores` (batch, 1) these are.

    Source: Gulrajani et al., Improved training of Wasserstein GANs, eq. (3).
    """
    (slope,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return (torch.linalg.vector_norm(slope, dim=(1, 2, 3)) - 1).square().mean()
