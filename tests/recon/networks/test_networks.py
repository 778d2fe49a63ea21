"""Trunk, generators and critics: sizes, shapes, and independence of the other images of a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from larmor.recon.networks.critic import ResNet50Critic
from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.networks.generator import ResNet50Generator, haar_merge, haar_split
from larmor.recon.networks.networks import build_critic, build_generator
from larmor.recon.networks.trunk import ResNet50Trunk, pad_to_multiple
from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.sense import channels_to_complex
from larmor.recon.recipe.settings import CriticConfig, GeneratorConfig
from tests.helpers import random_images

SIZES = [(64, 128), (128, 256), (256, 256), (320, 260), (97, 131)]
NORMS = ["group", "instance"]
GENERATORS = ["gan_resnet50", "dagan", "unet", "drgan", "fda", "dilated", "similar_patches"]
PUBLISHED_WIDTHS = {"fda": 32}  # 64 of the others
CRITICS = ["resnet50", "dagan"]


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_generator(trained: bool = True, width: int = 8, **settings: Any) -> ResNet50Generator:
    torch.manual_seed(0)
    generator = ResNet50Generator(GeneratorConfig(width=width, **settings)).eval()
    if trained:
        nn.init.normal_(generator.last.weight, std=0.02)
    return generator


@pytest.mark.parametrize(("channels", "parameters"), [(1, 23_501_760), (3, 23_508_032)])
@pytest.mark.parametrize("norm", NORMS)
def test_the_trunk_is_resnet50(channels: int, parameters: int, norm: Any) -> None:
    """torchvision's resnet50 has 25,557,032 parameters, 2,049,000 of them in its dense layer."""
    assert 25_557_032 - 2_049_000 == 23_508_032
    with torch.device("meta"):
        assert count(ResNet50Trunk(channels, 64, norm)) == parameters


def test_the_trunk_halves_five_times() -> None:
    torch.manual_seed(0)
    features = ResNet50Trunk(1, 8, "group")(random_images(2, 64, 96))
    shapes = [(2, 8 * times, 64 // part, 96 // part) for times, part in ((1, 2), (4, 4), (8, 8), (16, 16), (32, 32))]
    assert [tuple(feature.shape) for feature in features] == shapes


def test_generator_and_critic_have_the_papers_size() -> None:
    with torch.device("meta"):
        assert abs(count(ResNet50Generator(GeneratorConfig())) - 40.8e6) < 0.05e6
        assert count(ResNet50Critic(CriticConfig())) == 23_501_760 + 2048


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subbands", ["none", "wavelet"])
@torch.no_grad()
def test_an_untrained_generator_returns_its_input_of_any_size(size: tuple[int, int], subbands: Any) -> None:
    image = random_images(1, *size)
    assert torch.equal(make_generator(trained=False, subbands=subbands)(image), image)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("subbands", ["none", "wavelet"])
@torch.no_grad()
def test_a_trained_generator_keeps_the_shape_and_changes_every_part(size: tuple[int, int], subbands: Any) -> None:
    image = random_images(1, *size)
    change = make_generator(subbands=subbands)(image) - image
    assert change.shape == image.shape
    corners = change[..., :3, :3], change[..., :3, -3:], change[..., -3:, :3], change[..., -3:, -3:]
    assert all(corner.abs().max() > 0 for corner in corners)
    assert torch.isfinite(change).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("subbands", ["none", "wavelet"])
@torch.no_grad()
def test_a_reconstruction_does_not_depend_on_the_batch(norm: Any, subbands: Any) -> None:
    generator = make_generator(width=4, norm=norm, subbands=subbands).double().train()
    batch = random_images(3, 64, 96).double() * torch.tensor([1.0, 30.0, 0.1]).view(-1, 1, 1, 1)
    together = generator(batch)
    for place in range(3):
        alone = generator(batch[place : place + 1])[0]
        assert (alone - batch[place]).abs().max() > 1e-3, "it does something"
        torch.testing.assert_close(together[place], alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@torch.no_grad()
def test_a_score_does_not_depend_on_the_batch(norm: Any) -> None:
    torch.manual_seed(0)
    critic = ResNet50Critic(CriticConfig(width=4, norm=norm)).double().train()
    batch = random_images(3, 64, 96).double() * torch.tensor([1.0, 30.0, 0.1]).view(-1, 1, 1, 1)
    together = critic(batch)
    assert together.shape == (3, 1)
    alone = torch.cat([critic(image[None]) for image in batch])
    torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-8)
    assert len(set(together.flatten().tolist())) == 3


@torch.no_grad()
def test_the_critic_takes_any_size_with_the_same_weights() -> None:
    critic = ResNet50Critic(CriticConfig(width=4))
    for size in SIZES:
        assert critic(random_images(1, *size)).shape == (1, 1)


@pytest.mark.parametrize("subbands", ["none", "wavelet"])
def test_every_parameter_gets_a_gradient(subbands: Any) -> None:
    generator, critic = make_generator(width=4, subbands=subbands), ResNet50Critic(CriticConfig(width=4))
    critic(generator(random_images(2, 64, 64))).mean().backward()
    for module in (generator, critic):
        missing = [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()]
        assert missing == []


def build_trained(channels: int = 1, **settings: Any) -> nn.Module:
    """A narrow generator by name, whose last layer is not zero."""
    torch.manual_seed(0)
    generator = build_generator(GeneratorConfig.model_validate({"width": 4, **settings}), channels)
    for value in generator.parameters():
        if value.ndim == 4 and not value.any():
            nn.init.normal_(value, std=0.1)
    return generator


def measured(num_images: int, size: tuple[int, int], channels: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """What a generator is called with: (zero_filled, kspace, mask); every other column is measured."""
    image = random_images(num_images, *size).repeat(1, channels, 1, 1)
    mask = (torch.arange(size[1]) % 2 == 0).expand(num_images, 1, *size)
    return image, fft2c(image if channels == 1 else channels_to_complex(image)) * mask, mask


class TestByName:
    @pytest.mark.parametrize("name", GENERATORS)
    @pytest.mark.parametrize("consistency", ["none", "soft", "hard"])
    @torch.no_grad()
    def test_a_generator_takes_any_size_with_one_set_of_weights(self, name: str, consistency: str) -> None:
        generator = build_trained(name=name, data_consistency=consistency)
        sizes = [*SIZES, (32, 64), (63, 97)] if consistency == "none" else [(64, 128), (63, 97)]
        for size in sizes:
            inputs = measured(1, size)
            result = generator(*inputs)
            assert result.shape == inputs[0].shape
            assert torch.isfinite(result).all()
            assert not torch.equal(result, inputs[0])

    @pytest.mark.parametrize("name", GENERATORS)
    @torch.no_grad()
    def test_a_generator_without_consistency_ignores_the_measurement(self, name: str) -> None:
        generator, (image, kspace, mask) = build_trained(name=name), measured(1, (32, 64))
        alone = generator(image)
        assert torch.equal(generator(image, kspace, mask), alone)
        assert torch.equal(generator(image, kspace, mask, kspace), alone)

    @pytest.mark.parametrize("name", GENERATORS)
    @pytest.mark.parametrize("channels", [1, 2])
    @torch.no_grad()
    def test_hard_consistency_keeps_what_was_measured(self, name: str, channels: int) -> None:
        image, kspace, mask = measured(1, (32, 64), channels)
        generator = build_trained(channels, name=name, data_consistency="hard")
        assert isinstance(generator, ConsistentGenerator)
        result = generator(image, kspace, mask)
        found = fft2c(result if channels == 1 else channels_to_complex(result))
        torch.testing.assert_close(found * mask, kspace, rtol=0, atol=1e-5)
        assert ((found - fft2c(image if channels == 1 else channels_to_complex(image))) * ~mask).abs().max() > 1e-3

    @pytest.mark.parametrize("name", GENERATORS)
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("channels", [1, 2])
    @torch.no_grad()
    def test_a_reconstruction_does_not_depend_on_the_batch(self, name: str, norm: str, channels: int) -> None:
        generator = build_trained(channels, name=name, norm=norm).double().train()
        batch = random_images(3, 32, 64).double().repeat(1, channels, 1, 1)
        batch *= torch.tensor([1.0, 0.5, 0.1]).view(-1, 1, 1, 1)
        alone = torch.cat([generator(image[None]) for image in batch])
        assert (alone - batch).abs().amax(dim=(1, 2, 3)).min() > 1e-3, "it does something"
        torch.testing.assert_close(generator(batch), alone, rtol=1e-6, atol=1e-6)

    @pytest.mark.parametrize("name", CRITICS)
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("channels", [1, 2])
    @torch.no_grad()
    def test_a_score_does_not_depend_on_the_batch_whatever_the_size(self, name: str, norm: str, channels: int) -> None:
        torch.manual_seed(0)
        settings = {"name": name, "norm": norm, "width": 4}
        critic = build_critic(CriticConfig.model_validate(settings), channels).double().train()
        for size in [(64, 128), (320, 260), (63, 97)]:
            batch = random_images(2, *size).double().repeat(1, channels, 1, 1)
            together = critic(batch)
            assert together.shape == (2, 1)
            alone = torch.cat([critic(image[None]) for image in batch])
            torch.testing.assert_close(together, alone, rtol=1e-6, atol=1e-8)

    @pytest.mark.parametrize("generator", GENERATORS)
    @pytest.mark.parametrize("norm", NORMS)
    @pytest.mark.parametrize("channels", [1, 2])
    def test_every_parameter_gets_a_gradient(self, generator: str, norm: str, channels: int) -> None:
        inputs = measured(2, (64, 96), channels)
        width = 16 if generator == "drgan" else 4  # its layers have half the width: of two channels both may be dead
        network = build_trained(channels, name=generator, norm=norm, data_consistency="soft", width=width)
        critic_name = "dagan" if generator == "dagan" else "resnet50"
        critic = build_critic(CriticConfig.model_validate({"name": critic_name, "norm": norm, "width": 4}), channels)
        critic(network(*inputs)).square().mean().backward()
        for module in (network, critic):
            missing = [name for name, value in module.named_parameters() if value.grad is None or not value.grad.any()]
            assert missing == []

    @pytest.mark.parametrize("name", GENERATORS)
    @torch.no_grad()
    def test_two_channels_are_read_and_written(self, name: str) -> None:
        generator = build_trained(2, name=name)
        image = random_images(1, 32, 64).repeat(1, 2, 1, 1)
        other = image.clone()
        other[:, 1] = other[:, 1].flip(-1)
        result = generator(image)
        assert not torch.equal(result[:, 0], result[:, 1])
        assert not torch.equal(generator(other)[:, 0], result[:, 0])

    def test_parameters_at_full_width(self) -> None:
        with torch.device("meta"):
            generators = {
                name: build_generator(
                    GeneratorConfig.model_validate({"name": name, "width": PUBLISHED_WIDTHS.get(name, 64)})
                )
                for name in GENERATORS
            }
            critics = {name: build_critic(CriticConfig.model_validate({"name": name})) for name in CRITICS}
        found = {name: round(count(module) / 1e6, 1) for name, module in generators.items()}
        assert found == {
            "gan_resnet50": 40.8,
            "dagan": 98.6,
            "unet": 31.1,
            "drgan": 1.6,
            "fda": 12.0,
            "dilated": 0.7,
            "similar_patches": 0.6,
        }
        assert {name: round(count(module) / 1e6, 1) for name, module in critics.items()} == {
            "resnet50": 23.5,
            "dagan": 48.1,
        }

    @pytest.mark.parametrize("name", ["dagan", "unet"])
    def test_subbands_belong_to_one_generator(self, name: str) -> None:
        with pytest.raises(ValidationError, match=f"subbands=wavelet belongs to name=gan_resnet50, not to {name}"):
            GeneratorConfig.model_validate({"name": name, "subbands": "wavelet"})

    @pytest.mark.parametrize("lipschitz", ["weight_clipping", "gradient_penalty", "spectral_norm", "none"])
    def test_weights_are_clipped_for_weight_clipping_alone(self, lipschitz: str) -> None:
        config = CriticConfig.model_validate({"lipschitz": lipschitz, "clip": 0.02, "width": 4})
        assert config.applied_clip == (0.02 if lipschitz == "weight_clipping" else None)
        divided = [name for name, _ in build_critic(config).named_parameters() if "parametrizations" in name]
        assert bool(divided) == (lipschitz == "spectral_norm")


class TestHaar:
    def test_each_channel_is_split_by_itself(self) -> None:
        image = torch.cat([random_images(2, 8, 12), random_images(2, 8, 12).flip(-1)], dim=1)
        bands = haar_split(image)
        assert bands.shape == (2, 8, 4, 6)
        torch.testing.assert_close(bands, torch.cat([haar_split(image[:, :1]), haar_split(image[:, 1:])], dim=1))
        torch.testing.assert_close(haar_merge(bands), image)

    def test_it_keeps_the_norm_and_merges_back(self) -> None:
        image, bands = random_images(2, 12, 20), torch.randn(2, 4, 6, 10, generator=torch.Generator().manual_seed(1))
        assert haar_split(image).shape == (2, 4, 6, 10)
        torch.testing.assert_close(haar_merge(haar_split(image)), image)
        torch.testing.assert_close(haar_split(haar_merge(bands)), bands)
        torch.testing.assert_close(haar_split(image).norm(), image.norm())
        torch.testing.assert_close((haar_split(image) * bands).sum(), (image * haar_merge(bands)).sum())

    def test_bands_are_low_and_high_in_the_stated_order(self) -> None:
        rows = torch.tensor([1.0, -1.0]).repeat(4).view(1, 1, 8, 1).expand(1, 1, 8, 8)
        patterns = torch.ones(1, 1, 8, 8), rows.mT, rows, rows * rows.mT
        for band, pattern in enumerate(patterns):
            expected = torch.zeros(1, 4, 4, 4)
            expected[:, band] = 2
            torch.testing.assert_close(haar_split(pattern), expected)


@pytest.mark.parametrize(("size", "padded"), [((32, 64), (32, 64)), ((33, 64), (64, 64)), ((1, 31), (32, 32))])
def test_padding_repeats_the_edge(size: tuple[int, int], padded: tuple[int, int]) -> None:
    image = random_images(1, *size)
    result, original = pad_to_multiple(image, 32)
    assert (tuple(result.shape[-2:]), original) == (padded, size)
    assert torch.equal(result[..., : size[0], : size[1]], image)
    below, right = result[..., size[0] :, : size[1]], result[..., size[1] :]
    assert torch.equal(below, image[..., -1:, :].expand_as(below))
    assert torch.equal(right, result[..., size[1] - 1, None].expand_as(right))
