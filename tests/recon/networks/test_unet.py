"""The U-Net generator: its size, its start, any image size, and that it learns."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from larmor.recon.networks.unet import UNetGenerator
from tests.helpers import random_images

SIZES = [(32, 64), (64, 128), (63, 97), (256, 256)]
NORMS = ["group", "instance"]


def make_unet(width: int = 4, channels: int = 1, norm: Any = "group", trained: bool = True) -> UNetGenerator:
    torch.manual_seed(0)
    unet = UNetGenerator(width, channels, norm)
    if trained:
        nn.init.normal_(unet.network.final_conv.weight, std=0.1)
    return unet


@pytest.mark.parametrize("norm", NORMS)
def test_it_has_a_u_nets_levels_and_size(norm: Any) -> None:
    with torch.device("meta"):
        unet = UNetGenerator(64, 1, norm)
    assert sum(parameter.numel() for parameter in unet.parameters()) == 31_106_177
    widths = [layer.out_channels for layer in unet.modules() if isinstance(layer, nn.Conv2d)]
    down = [64, 64, 128, 128, 256, 256, 512, 512, 1024, 1024]
    assert widths == [*down, 512, 512, 256, 256, 128, 128, 64, 64, 1]


@pytest.mark.parametrize("width", [4, 6, 12, 64])
def test_groups_divide_the_channels_of_every_width(width: int) -> None:
    with torch.device("meta"):
        unet = UNetGenerator(width, 1, "group")
    norms = [layer for layer in unet.modules() if isinstance(layer, nn.GroupNorm)]
    assert len(norms) == 18
    assert all(layer.num_channels % layer.num_groups == 0 for layer in norms)


@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_an_untrained_one_returns_its_input(channels: int) -> None:
    image = random_images(2, 63, 97).repeat(1, channels, 1, 1)
    assert torch.equal(make_unet(channels=channels, trained=False)(image), image)


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_a_trained_one_takes_any_size_and_changes_every_part(norm: Any) -> None:
    unet = make_unet(norm=norm).train()
    for size in SIZES:
        image = random_images(1, *size)
        change = unet(image) - image
        assert change.shape == image.shape
        corners = change[..., :3, :3], change[..., :3, -3:], change[..., -3:, :3], change[..., -3:, -3:]
        assert all(corner.abs().max() > 0 for corner in corners)


@pytest.mark.parametrize("norm", NORMS)
def test_it_learns(norm: Any) -> None:
    target = random_images(2, 8, 8).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    zero_filled = target / 2
    unet = make_unet(norm=norm, trained=False)
    optimizer = torch.optim.Adam(unet.parameters(), lr=5e-3)
    losses = []
    for _ in range(20):
        loss = (unet(zero_filled) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
