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


def draw_shares(count: int, random: torch.Generator) -> Tensor:
    """(count, 1, 1, 1) numbers between 0 and 1 for `interpolate`, on the CPU."""
    return torch.rand(count, 1, 1, 1, generator=random)


def interpolate(real: Tensor, fake: Tensor, share: Tensor) -> Tensor:
    """A point between each pair of images (batch, channel, height, width), ready for `gradient_penalty`.

    `share` (batch, 1, 1, 1) of the real image, the rest of the fake one.
    """
    return (share * real.detach() + (1 - share) * fake.detach()).requires_grad_()


def gradient_penalty(scores: Tensor, points: Tensor) -> Tensor:
    """Mean of (‖∇D(x)‖ − 1)² over the `points` whose `scores` (batch, 1) these are.

    Source: Gulrajani et al., Improved training of Wasserstein GANs, eq. (3).
    """
    (slope,) = torch.autograd.grad(scores.sum(), points, create_graph=True)
    return (torch.linalg.vector_norm(slope, dim=(1, 2, 3)) - 1).square().mean()
