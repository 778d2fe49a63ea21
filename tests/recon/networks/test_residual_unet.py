"""The network of the system `larmor`."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from larmor.recon.networks.residual_unet import ResidualUNet


def randomized(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    return network


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("size", [(16, 24), (17, 30), (5, 7)])
def test_any_size_and_untrained_it_returns_its_input(channels: int, size: tuple[int, int]) -> None:
    image = torch.rand(2, channels, *size)
    network = ResidualUNet(4, 3, channels)
    assert torch.equal(network(image), image)
    assert randomized(network)(image).shape == image.shape


def test_a_brighter_image_is_not_normalised_away() -> None:
    """Without normalisation and biases the network is homogeneous: twice as bright in, twice as bright out."""
    network = randomized(ResidualUNet(4, 3))
    for name, parameter in network.named_parameters():
        if name.endswith("bias"):
            nn.init.zeros_(parameter)
    image = torch.rand(1, 1, 16, 16)
    torch.testing.assert_close(network(2 * image), 2 * network(image))


def test_levels_widths_and_norm() -> None:
    network = ResidualUNet(4, 4)
    assert [down.out_channels for down in network.downs] == [8, 16, 32]
    assert network.multiple == 8
    assert not any(isinstance(module, nn.GroupNorm) for module in network.modules())
    normalised = ResidualUNet(8, 3, norm="group")
    assert sum(isinstance(module, nn.GroupNorm) for module in normalised.modules()) == 5
