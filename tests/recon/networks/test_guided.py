"""Networks with a second contrast: it reaches every one that takes it, and those that do not are named."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from larmor.recon.networks.guided import takes_guide
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c
from larmor.recon.recipe.settings import UNGUIDED, GeneratorConfig
from larmor.recon.training.flops import flops_per_image
from tests.helpers import small_recipe

TAKERS: dict[str, dict[str, Any]] = {
    "gan_resnet50": {},
    "dagan": {},
    "unet": {"data_consistency": "hard", "cascades": 2},
    "residual_unet": {"start": {"method": "total_variation", "iterations": 4}, "data_consistency": "soft"},
    "drgan": {},
    "fda": {},
    "dilated": {},
    "similar_patches": {},
    "sat_net": {"data_consistency": "hard"},
    "conv_lstm": {},
}


def measured(batch: int, channels: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Image, k-space, mask and guide."""
    random = torch.Generator().manual_seed(0)
    image = torch.rand((batch, channels, *size), generator=random)
    mask = torch.rand((batch, 1, *size), generator=random) < 0.4
    whole = torch.complex(image[:, :1], image[:, 1:2] if channels > 1 else torch.zeros_like(image))
    return image, fft2c(whole) * mask, mask, torch.rand((batch, 1, *size), generator=random)


def make(name: str, channels: int, trained: bool = True, **settings: Any) -> nn.Module:
    torch.manual_seed(0)
    made = build_generator(GeneratorConfig(name=name, width=4, **settings), channels, stack=2, guide=True).eval()
    if trained:  # last layers start at zero
        with torch.no_grad():
            for parameter in made.parameters():
                parameter.add_(torch.randn(parameter.shape), alpha=0.02)
    return made


def test_the_list_is_whole() -> None:
    names = {name for one in GeneratorConfig.model_fields["name"].metadata for name in getattr(one, "known", ())}
    assert names == {*TAKERS, *UNGUIDED}


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("name", TAKERS)
@torch.no_grad()
def test_the_guide_changes_the_image_of_its_own_slice_alone(name: str, channels: int) -> None:
    image, kspace, mask, guide = measured(4, channels, (34, 30))
    generator = make(name, channels, **TAKERS[name])
    found = generator(image, kspace, mask, None, None, guide)
    assert found.shape == image.shape
    other = guide.clone()
    other[3] = 1 - other[3]  # of the second stack of two
    changed = generator(image, kspace, mask, None, None, other)
    assert (changed[2:] - found[2:]).abs().amax() > 1e-5
    assert torch.allclose(changed[:2], found[:2], atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("name", ["gan_resnet50", "residual_unet", "unet"])
def test_an_untrained_one_returns_its_input(name: str) -> None:
    image, kspace, mask, guide = measured(2, 1, (32, 32))
    generator = make(name, 1, trained=False)
    assert torch.equal(generator(image, kspace, mask, None, None, guide), image)


def test_a_generator_says_whether_it_takes_one() -> None:
    assert takes_guide(make("unet", 1, **TAKERS["unet"]))
    assert not takes_guide(build_generator(GeneratorConfig(name="residual_unet", width=4)))


@pytest.mark.parametrize("system", ["idpcnn", "deepcomplexmri"])
def test_those_that_take_none_are_refused_by_name(system: str) -> None:
    with pytest.raises(ValidationError, match=r"signal\.guide=true, but generator\.name=(idpcnn|deepcomplex)"):
        small_recipe(system=system, signal={"guide": True})


def test_own_networks_are_refused() -> None:
    with pytest.raises(ValidationError, match="one of your own"):
        small_recipe(generator={"name": "my_networks:Net", "width": 4}, signal={"guide": True})


def test_pet_has_none() -> None:
    with pytest.raises(ValidationError, match="no second contrast"):
        small_recipe(system="drgan", signal={"mode": "pet", "guide": True})


@pytest.mark.parametrize("system", ["larmor", "unet"])
def test_operations_are_counted(system: str) -> None:
    plain, guided = (small_recipe(system=system, signal={"guide": guide}) for guide in (False, True))
    assert flops_per_image(plain) < flops_per_image(guided) < 1.5 * flops_per_image(plain)
