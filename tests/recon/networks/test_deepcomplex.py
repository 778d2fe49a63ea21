"""DeepcomplexMRI: all coils together, exact where it was measured, without a sensitivity map."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels
from larmor.recon.recipe.recipe import Recipe

SMALL = {"width": 4, "cascades": 2}


def recipe_of(num_coils: int = 12, generator: dict[str, Any] | None = None) -> Recipe:
    return Recipe.model_validate(
        {"system": "deepcomplexmri", "signal": {"num_coils": num_coils}, "generator": generator or {}}
    )


def make(num_coils: int = 3, trained: bool = True) -> ConsistentGenerator:
    """A narrow one; `trained`: with weights that change the image."""
    torch.manual_seed(0)
    recipe = recipe_of(num_coils, SMALL)
    generator = build_generator(recipe.generator, recipe.signal.channels)
    assert isinstance(generator, ConsistentGenerator)
    if trained:
        with torch.no_grad():
            for parameter in generator.parameters():
                parameter.normal_(std=0.1)
    return generator.eval()


def coils(num_coils: int = 3, size: tuple[int, int] = (19, 24), batch: int = 2) -> Tensor:
    """(batch, coil, height, width) complex images that have nothing to do with each other: no maps explain them."""
    return torch.randn(batch, num_coils, *size, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))


def measured(images: Tensor, every: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    """(zero_filled, kspace, mask); every so many-th column is measured."""
    mask = (torch.arange(images.shape[-1]) % every == 0).expand(len(images), 1, *images.shape[-2:])
    kspace = fft2c(images) * mask
    return complex_to_channels(ifft2c(kspace)), kspace, mask


@pytest.mark.parametrize(("num_coils", "parameters"), [(12, 694_000), (1, 567_060)])
def test_it_has_the_published_size(num_coils: int, parameters: int) -> None:
    recipe = recipe_of(num_coils)
    with torch.device("meta"):
        generator = build_generator(recipe.generator, recipe.signal.channels)
    assert sum(parameter.numel() for parameter in generator.parameters()) == parameters


def test_its_defaults_are_the_published_ones() -> None:
    recipe = recipe_of()
    assert (recipe.signal.mode, recipe.signal.coils, recipe.signal.channels) == ("complex", "all", 24)
    assert (recipe.loss.content, recipe.loss.adversarial, recipe.loss.b) == ("complex_l1", "none", 0)
    assert recipe.generator_optimizer.learning_rate == 1e-4
    assert recipe.generator_optimizer.beta1 == 0.9


@torch.no_grad()
def test_an_untrained_one_is_nearly_the_identity() -> None:
    torch.manual_seed(0)
    recipe = recipe_of(12)
    inputs = measured(coils(12, (32, 32), 1))
    found = build_generator(recipe.generator, recipe.signal.channels)(*inputs)
    assert 0 < (found - inputs[0]).norm() < 1e-2 * inputs[0].norm()


@pytest.mark.parametrize("size", [(19, 24), (32, 32), (40, 27)])
@torch.no_grad()
def test_every_measured_point_of_every_coil_is_returned(size: tuple[int, int]) -> None:
    inputs = measured(coils(size=size))
    found = fft2c(channels_to_complex(make()(*inputs)))
    torch.testing.assert_close(found * inputs[2], inputs[1], rtol=0, atol=1e-5)
    assert (found * ~inputs[2]).abs().max() > 1e-2, "and the others are predicted"


@torch.no_grad()
def test_with_everything_measured_the_target_is_returned() -> None:
    images = coils()
    torch.testing.assert_close(make()(*measured(images, every=1)), complex_to_channels(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_no_maps_are_needed_and_the_order_of_the_coils_counts() -> None:
    generator, images = make(), coils()
    assert not recipe_of().signal.needs_maps
    found = generator(*measured(images))
    turned = generator(*measured(images.flip(1)))
    back = complex_to_channels(channels_to_complex(turned).flip(1))
    assert (found - back).abs().max() > 1e-2


@torch.no_grad()
def test_a_reconstruction_does_not_depend_on_the_batch() -> None:
    generator, inputs = make(), measured(coils(batch=3))
    alone = torch.cat([generator(*(part[row : row + 1] for part in inputs)) for row in range(3)])
    torch.testing.assert_close(generator(*inputs), alone, rtol=0, atol=1e-5)


def test_every_parameter_gets_a_gradient() -> None:
    generator = make()
    generator(*measured(coils())).square().mean().backward()
    assert [name for name, value in generator.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_it_learns_what_coils_have_in_common() -> None:
    """Two coils that see the same image: what one measured of a column tells the other."""
    torch.manual_seed(0)
    image = nn.functional.avg_pool2d(torch.randn(4, 2, 16, 16), 3, stride=1, padding=1)
    images = channels_to_complex(image).repeat(1, 3, 1, 1) * torch.tensor([1.0, 0.5, 0.8j])[:, None, None]
    inputs, target = measured(images), complex_to_channels(images)
    generator = make(trained=False).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=1e-2)
    losses = []
    for _ in range(150):
        loss = (generator(*inputs) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (
            {"signal": {"mode": "magnitude", "coils": "sense"}},
            r"deepcomplex .*set signal\.mode=complex and .*coils=all",
        ),
        ({"signal": {"coils": "sense"}}, r"signal\.coils=sense gives it others"),
        ({"signal": {"mode": "magnitude"}}, r"coils=all needs the phase .*set mode=complex"),
        ({"signal": {"num_coils": 0}}, r"greater than or equal to 1"),
        ({"generator": {"start": {"method": "wavelet"}}}, r"start\.method=wavelet needs the sensitivity maps"),
    ],
)
def test_images_of_another_kind_are_refused(given: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        Recipe.model_validate({"system": "deepcomplexmri", **given})


def test_a_loss_of_complex_pixels_is_refused_for_magnitudes() -> None:
    with pytest.raises(ValidationError, match=r"complex_l1 compares complex images.*or loss\.content=l1"):
        Recipe.model_validate({"loss": {"content": "complex_l1"}})
    sense = Recipe.model_validate({"loss": {"content": "complex_l1"}, "signal": {"mode": "complex"}})
    assert sense.signal.channels == 2


def test_no_call_takes_maps() -> None:
    """The network itself sees the coils' images alone; consistency puts back each coil's own points."""
    block = make().networks[0]
    assert list(inspect.signature(block.forward).parameters) == ["image", "_measurement"]
