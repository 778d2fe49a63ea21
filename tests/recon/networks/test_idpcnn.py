"""The loop of IDPCNN: denoising and projection by turns, each image by itself."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from larmor.recon.networks.idpcnn import IdpGenerator
from larmor.recon.networks.networks import build_generator, trained_part
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels
from larmor.recon.training.denoising import draw_noise
from larmor.recon.training.gan import Gan
from tests.helpers import random_images, small_recipe


class Smoother(nn.Module):
    """Mixes an image with its neighbours, the more so the noisier it is said to be; keeps the levels it was told."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: list[Tensor] = []

    def forward(self, image: Tensor, level: Tensor) -> Tensor:
        self.levels.append(level.clone())
        blurred = nn.functional.avg_pool2d(image, 3, stride=1, padding=1, count_include_pad=False)
        return image + (5 * level).clamp_max(0.9) * (blurred - image)


def measured(num_images: int, ratio: float = 0.4, channels: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """(zero_filled, kspace, mask) of smooth images."""
    torch.manual_seed(1)
    image = nn.functional.interpolate(random_images(num_images, 6, 8), size=(24, 32), mode="bicubic")
    mask = torch.rand(1, 1, 24, 32) < ratio
    mask[..., 9:15, 12:20] = True
    phase = torch.linspace(0, 2, 32).expand(24, 32) if channels == 2 else torch.zeros(24, 32)
    kspace = fft2c(torch.polar(image, phase.expand_as(image))) * mask
    found = ifft2c(kspace)
    return complex_to_channels(found) if channels == 2 else found.abs(), kspace, mask.expand_as(image)


def loop(turns: int = 100, denoiser: nn.Module | None = None) -> IdpGenerator:
    generator = IdpGenerator(4, 2, turns=turns)
    generator.denoiser = denoiser or Smoother()  # type: ignore[assignment]
    return generator


@pytest.mark.parametrize(("channels", "parameters"), [(2, 557_826), (1, 556_673)])
def test_parameters_at_full_width(channels: int, parameters: int) -> None:
    with torch.device("meta"):
        generator = IdpGenerator(64, channels)
    assert sum(parameter.numel() for parameter in generator.parameters()) == parameters


@torch.no_grad()
def test_an_image_does_not_depend_on_its_batch() -> None:
    zero_filled, kspace, mask = measured(3)
    brightness = torch.tensor([1.0, 0.3, 0.01]).view(3, 1, 1, 1)
    inputs = (zero_filled * brightness, kspace * brightness, mask)
    together = loop()(*inputs)
    for place in range(3):
        alone = loop()(*(part[place : place + 1] for part in inputs))
        torch.testing.assert_close(together[place : place + 1], alone, rtol=0, atol=1e-7)


@torch.no_grad()
def test_the_change_falls_below_its_limit_and_the_level_never_grows() -> None:
    smoother = Smoother()
    result = loop(denoiser=smoother)(*measured(1))
    levels = torch.stack(smoother.levels).flatten()
    assert levels[0] == pytest.approx((6e-5 / 0.0041) ** 0.5)
    assert (levels.diff() <= 0).all(), "ρ never falls"
    assert len(levels) < 100
    again = loop(len(levels) - 1)(*measured(1))
    assert float((result - again).square().mean()) < 1e-6


@torch.no_grad()
def test_measured_points_are_kept() -> None:
    zero_filled, kspace, mask = measured(2)
    found = fft2c(channels_to_complex(loop()(zero_filled, kspace, mask)))
    assert ((found - kspace) * mask).abs().max() < 1e-5 * kspace.abs().max()
    assert (found * ~mask).abs().max() > 1e-3


@torch.no_grad()
def test_without_a_denoiser_the_zero_filled_image_comes_back() -> None:
    inputs = measured(2)
    torch.testing.assert_close(IdpGenerator(4, 2)(*inputs), inputs[0], rtol=0, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("ratio", [0.2, 0.5])
def test_one_set_of_weights_serves_every_ratio(ratio: float) -> None:
    zero_filled, kspace, mask = measured(2, ratio, channels=1)
    target = measured(2, 1.1, channels=1)[0]
    generator = IdpGenerator(4, 1)
    generator.denoiser = Smoother()  # type: ignore[assignment]
    error = [(image - target).square().mean() for image in (generator(zero_filled, kspace, mask), zero_filled)]
    assert error[0] < 0.8 * error[1]


def test_the_denoiser_alone_is_trained_and_the_loop_shares_its_weights() -> None:
    recipe = small_recipe(
        system="idpcnn",
        generator={"width": 4, "turns": 2},
        training={"global_batch_size": 4, "backend": "plain", "zero_stage": 0, "ema_decay": 0.5},
    )
    gan = Gan(recipe, torch.device("cpu"))
    part = trained_part(gan.whole)
    assert part.module is gan.generator.module
    weights = gan.weights()
    assert all(name.startswith(part.prefix) for name in weights)
    build_generator(recipe.generator).load_state_dict(weights)


def test_noise_depends_on_seed_step_and_rank_and_its_level_is_what_is_told() -> None:
    target = torch.zeros(64, 1, 24, 24)
    noise, level = draw_noise([target], 0, 3, 0)
    again = draw_noise([target], 0, 3, 0)
    assert torch.equal(noise, again[0])
    assert torch.equal(level, again[1])
    for other in ((1, 3, 0), (0, 4, 0), (0, 3, 1)):
        assert not torch.equal(noise, draw_noise([target], *other)[0])
    torch.testing.assert_close(noise.std(dim=(1, 2, 3)), level.flatten(), rtol=0.15, atol=1e-4)
    assert 0.08 < level.max() <= 25 / 255


@pytest.mark.parametrize(
    "change",
    [
        {"generator": {"data_consistency": "hard"}},
        {"loss": {"adversarial": "wasserstein"}},
        {"training": {"zero_stage": 3}},
        {"signal": {"mode": "complex", "coils": "rss"}},
    ],
)
def test_what_does_not_fit_a_denoiser_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="idpcnn"):
        small_recipe(system="idpcnn", **change)
