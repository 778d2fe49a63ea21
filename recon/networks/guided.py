"""A network that sees a second contrast: one more channel of the image that it is given, and of no importance after."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class GuidedGenerator(nn.Module):
    """(image (batch, channels, height, width), …, guide (batch, 1, height, width)) → as the image.

    `network` is for images of channels + 1: it sees the guide as the last channel, and what it makes of that is left.
    So every network of single images takes one, and those that return the image while they are untrained still do.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.multiple = network.multiple

    def forward(self, image: Tensor, *measurement: Tensor | None) -> Tensor:
        """The guide is the last of `measurement`."""
        guide = measurement[-1]
        assert guide is not None
        found: Tensor = self.network(torch.cat([image, guide.to(image.dtype)], dim=1))
        return found[:, : image.shape[1]]


def takes_guide(generator: nn.Module) -> bool:
    """Whether a generator was made for a guide."""
    return any(isinstance(module, GuidedGenerator) for module in generator.modules())
