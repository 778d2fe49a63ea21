"""DAGAN's networks: the published layers and sizes, any image size, and that they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from larmor.recon.networks.dagan import DaganDiscriminator, DaganGenerator
from tests.helpers import random_images

SIZES = [(32, 64), (64, 128), (63, 97), (256, 256)]
NORMS = ["group", "instance"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def generator_of(norm: Any = "group", channels: int = 1) -> DaganGenerator:
    torch.manual_seed(0)
    return DaganGenerator(4, channels, norm)


@pytest.mark.parametrize("norm", NORMS)
def test_the_generator_has_the_published_layers_and_size(norm: Any) -> None:
    with torch.device("meta"):
        generator = DaganGenerator(64, 1, norm)
    assert abs(count(generator) - 98.6e6) < 0.1e6
    down = [layer for layer in generator.modules() if isinstance(layer, nn.Conv2d)]
    up = [layer for layer in generator.modules() if isinstance(layer, nn.ConvTranspose2d)]
    assert [layer.out_channels for layer in down] == [64, 128, 256, 512, 512, 512, 512, 512, 1]
    assert [layer.out_channels for layer in up] == [512, 1024, 1024, 1024, 256, 128, 64, 64]
    assert [layer.in_channels for layer in up] == [512, 1024, 1536, 1536, 1536, 512, 256, 128]
    assert {(layer.kernel_size, layer.stride) for layer in [*down[:-1], *up]} == {((4, 4), (2, 2))}
    assert down[-1].kernel_size == (1, 1)


def test_the_published_number_of_parameters_includes_biases_that_do_nothing() -> None:
    with torch.device("meta"):
        generator = DaganGenerator(64, 1, "group")
    cancelled = sum(
        layer.out_channels
        for layer in generator.modules()
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is None
    )
    assert (count(generator), cancelled) == (98_587_393 - 6528, 6528)


@pytest.mark.parametrize("norm", NORMS)
def test_the_discriminator_has_the_published_layers(norm: Any) -> None:
    with torch.device("meta"):
        critic = DaganDiscriminator(64, 1, norm)
    layers = [layer for layer in critic.modules() if isinstance(layer, nn.Conv2d)]
    assert [layer.out_channels for layer in layers] == [64, 128, 256, 512, 1024, 2048, 1024, 512, 128, 128, 512]
    assert [layer.kernel_size[0] for layer in layers] == [4] * 6 + [1, 1, 1, 3, 3]
    assert [layer.stride[0] for layer in layers] == [2] * 6 + [1] * 5
    assert critic.dense.in_features == 512
    assert count(critic) == 48_133_952


@pytest.mark.parametrize("make", [DaganGenerator, DaganDiscriminator])
def test_weights_start_as_published(make: Any) -> None:
    torch.manual_seed(0)
    for layer in make(16, 1, "group").modules():
        if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d | nn.Linear):
            few = layer.weight.numel() < 1000
            assert abs(layer.weight.std() - 0.02) < (0.01 if few else 0.002)
            assert layer.bias is None or not layer.bias.any()


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_both_take_any_size_with_the_same_weights(norm: Any) -> None:
    generator, critic = generator_of(norm).train(), DaganDiscriminator(4, 1, norm).train()
    for size in SIZES:
        image = random_images(2, *size)
        result, scores = generator(image), critic(image)
        assert result.shape == image.shape
        assert scores.shape == (2, 1)
        assert torch.isfinite(result).all()
        assert scores[0] != scores[1]


@torch.no_grad()
def test_magnitudes_are_not_negative_and_may_be_brighter_than_the_input() -> None:
    image = random_images(2, 64, 64)
    for channels in (1, 2):
        generator = generator_of(channels=channels)
        nn.init.normal_(generator.last.weight)
        result = generator(image.repeat(1, channels, 1, 1) * 2 - 0.5)
        assert result.shape == (2, channels, 64, 64)
        assert bool((result >= 0).all()) == (channels == 1)
        assert result.max() > 1.5, "a target may be brighter than its zero-filled image"


@torch.no_grad()
def test_the_change_is_bounded_by_tanh() -> None:
    generator = generator_of(channels=2)
    nn.init.normal_(generator.last.weight, std=100)
    image = random_images(2, 64, 64).repeat(1, 2, 1, 1)
    change = (generator(image) - image).abs()
    assert 0.99 < change.max() <= 1 + 1e-6


@pytest.mark.parametrize("norm", NORMS)
def test_a_generator_learns(norm: Any) -> None:
    target = random_images(2, 8, 8).repeat_interleave(8, dim=2).repeat_interleave(8, dim=3)
    zero_filled = target / 2
    generator = generator_of(norm)
    optimizer = torch.optim.Adam(generator.parameters(), lr=2e-3, betas=(0.5, 0.999))
    losses = []
    for _ in range(20):
        loss = (generator(zero_filled) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] < 1.2 * (zero_filled - target).square().mean(), "it starts near its input"
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("norm", NORMS)
def test_a_discriminator_learns(norm: Any) -> None:
    torch.manual_seed(0)
    images = random_images(6, 32, 64)
    images[:3] = nn.functional.avg_pool2d(images[:3], 5, stride=1, padding=2)
    wanted = torch.tensor([1.0, 1, 1, 0, 0, 0])[:, None]
    critic = DaganDiscriminator(4, 1, norm)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.5, 0.999))
    for _ in range(20):
        loss = nn.functional.binary_cross_entropy_with_logits(critic(images), wanted)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert ((critic(images) > 0) == (wanted > 0.5)).all()


@torch.no_grad()
def test_the_residual_block_has_a_shortcut() -> None:
    torch.manual_seed(0)
    critic, images = DaganDiscriminator(4, 1, "group"), random_images(2, 64, 128)
    whole = critic(images)
    for parameter in critic.residual.parameters():
        parameter.zero_()
    scores = critic(images)
    assert scores[0] != scores[1], "the image passes beside the block"
    assert not torch.equal(scores, whole)
