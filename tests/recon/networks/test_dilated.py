"""The dilated residual network: its size, its receptive field, its resolution."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from larmor.recon.networks.critic import ResNet50Critic
from larmor.recon.networks.dilated import DILATIONS, DilatedGenerator
from larmor.recon.networks.networks import build_critic
from larmor.recon.recipe.recipe import Recipe
from tests.helpers import random_images


def make_dilated(width: int = 4, channels: int = 1, norm: Any = "group", trained: bool = True) -> DilatedGenerator:
    torch.manual_seed(0)
    generator = DilatedGenerator(width, channels, norm)
    if trained:
        nn.init.normal_(generator.last.weight, std=0.1)
    return generator.eval()


@pytest.mark.parametrize("norm", ["group", "instance"])
def test_parameters(norm: Any) -> None:
    with torch.device("meta"):
        generator = DilatedGenerator(64, 1, norm)
    assert sum(parameter.numel() for parameter in generator.parameters()) == 667_073


@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_an_untrained_one_returns_its_input(channels: int) -> None:
    image = random_images(2, 33, 50).repeat(1, channels, 1, 1)
    assert torch.equal(make_dilated(channels=channels, trained=False)(image), image)


def test_an_output_pixel_sees_189_pixels_each_way() -> None:
    """Without normalisation, which sees the whole image; with positive weights no gradient is cancelled."""
    generator = make_dilated(width=4, norm="none").double()
    with torch.no_grad():
        for parameter in generator.parameters():
            parameter.abs_()
    image = torch.ones(1, 1, 221, 221, dtype=torch.float64, requires_grad=True)
    generator(image)[0, 0, 110, 110].backward()
    assert image.grad is not None
    seen = image.grad[0, 0] != 0
    assert seen.sum() == 189**2
    assert seen[110 - 94 : 110 + 95, 110 - 94 : 110 + 95].all()


@torch.no_grad()
def test_every_feature_map_has_the_size_of_the_input() -> None:
    generator, sizes = make_dilated(), []
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(lambda _layer, _given, found: sizes.append(tuple(found.shape[-2:])))
    generator(random_images(1, 19, 34))
    assert sizes == [(19, 34)] * (2 * len(DILATIONS) + 2)


def test_its_critic_and_losses_are_dagans() -> None:
    recipe = Recipe.model_validate({"system": "dilated_gan"})
    assert (recipe.loss.adversarial, recipe.loss.a, recipe.loss.b) == ("bce", 15, 0.1)
    with torch.device("meta"):
        critic = build_critic(recipe.critic)
    assert not isinstance(critic, ResNet50Critic)
    assert round(sum(parameter.numel() for parameter in critic.parameters()) / 1e6, 1) == 48.1


def test_it_learns() -> None:
    target = random_images(2, 8, 8).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    generator = make_dilated(width=8, trained=False).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    losses = []
    for _ in range(30):
        loss = (generator(target / 2) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.4 * losses[0]
