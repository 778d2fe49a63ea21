"""SAT-Net: attention over all positions, in a plane or in a slab of slices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from larmor.recon.networks.networks import build_generator
from larmor.recon.networks.sat_net import MOST_KEYS, SatNet, SelfAttention, pooled
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.settings import GeneratorConfig
from tests.helpers import random_images


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def make_network(stack: int = 1, gamma: float = 1.0, levels: int = 2, norm: str = "none", **settings: int) -> SatNet:
    torch.manual_seed(0)
    network = SatNet(4, 1, stack, norm, levels=levels, **settings).double()  # type: ignore[arg-type]
    nn.init.normal_(network.last.weight, std=0.1)
    for module in network.modules():
        if isinstance(module, SelfAttention):
            nn.init.constant_(module.gamma, gamma)
    return network


def answers(network: SatNet, image: Tensor, pixel: tuple[int, ...]) -> Tensor:
    """The gradient of one pixel of the result at the image."""
    image = image.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(network(image)[pixel], image)
    return gradient


@pytest.mark.parametrize(("gamma", "reaches"), [(1.0, True), (0.0, False)])
def test_attention_reaches_the_opposite_corner(gamma: float, reaches: bool) -> None:
    gradient = answers(make_network(gamma=gamma), random_images(1, 64, 64).double(), (0, 0, 63, 63))
    assert bool(gradient[0, 0, 0, 0] != 0) == reaches


@pytest.mark.parametrize(("first", "layers"), [(0, 6), (1, 2), (2, 0)])
def test_attention_begins_at_a_level(first: int, layers: int) -> None:
    network = SatNet(4, levels=2, attention_from=first)
    assert sum(isinstance(module, SelfAttention) for module in network.modules()) == layers


@torch.no_grad()
@pytest.mark.parametrize("dims", [2, 3])
def test_attention_weights_sum_to_one(dims: int) -> None:
    """Of values that are the same everywhere the weighted sum is that value."""
    torch.manual_seed(0)
    attention = SelfAttention(dims, 8)
    nn.init.ones_(attention.gamma)
    value, last = attention.value, attention.last
    assert isinstance(value, nn.Conv2d | nn.Conv3d)
    nn.init.zeros_(value.weight)
    image = torch.randn(2, 8, *(4, 12, 10)[-dims:])
    assert value.bias is not None
    expected = last(value.bias.view(1, -1, *[1] * dims))
    torch.testing.assert_close(attention(image) - image, expected.expand_as(image), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "shape", [(256, 256), (97, 131), (8, 8), (32, 320, 320), (8, 256, 256), (2048, 4, 4), (9, 3, 3)]
)
def test_there_are_few_keys_whatever_the_size(shape: tuple[int, ...]) -> None:
    image = torch.ones(1, 1, *shape)
    few = pooled(image)
    assert few[0, 0].numel() <= MOST_KEYS
    torch.testing.assert_close(few, torch.ones_like(few))
    if len(shape) == 3 and shape[1] * shape[2] > 4 and shape[0] <= 32:
        assert few.shape[2] == shape[0], "within the plane first"


def test_a_slice_answers_to_its_neighbour_and_not_to_another_slab() -> None:
    image = random_images(6, 16, 16).double()
    gradient = answers(make_network(stack=3, gamma=0), image, (1, 0, 8, 8)).abs().amax(dim=(1, 2, 3))
    assert (gradient > 0).tolist() == [True, True, True, False, False, False]
    gradient = answers(make_network(stack=1), image, (1, 0, 8, 8)).abs().amax(dim=(1, 2, 3))
    assert (gradient > 0).tolist() == [False, True, False, False, False, False]


@torch.no_grad()
@pytest.mark.parametrize("stack", [1, 3])
@pytest.mark.parametrize("norm", ["group", "instance", "none"])
@pytest.mark.parametrize("size", [(32, 24), (17, 31)])
def test_slabs_do_not_depend_on_each_other(stack: int, norm: str, size: tuple[int, int]) -> None:
    network = make_network(stack, norm=norm, levels=3)
    image = random_images(2 * stack, *size).double()
    image[stack:] *= 10
    alone = torch.cat([network(part) for part in image.split(stack)])
    assert alone.shape == image.shape
    assert (alone - image).abs().amax(dim=(1, 2, 3)).min() > 1e-4
    torch.testing.assert_close(network(image), alone)


@torch.no_grad()
@pytest.mark.parametrize("stack", [1, 4])
@pytest.mark.parametrize("channels", [1, 2])
def test_an_untrained_network_returns_its_input(stack: int, channels: int) -> None:
    image = random_images(stack, 33, 20).repeat(1, channels, 1, 1)
    config = GeneratorConfig(name="sat_net", width=4)
    assert torch.equal(build_generator(config, channels, stack)(image), image)


@pytest.mark.parametrize("stack", [1, 2])
@pytest.mark.parametrize("norm", ["group", "instance"])
def test_every_parameter_gets_a_gradient(stack: int, norm: str) -> None:
    network = make_network(stack, norm=norm, levels=3)
    network(random_images(2 * stack, 16, 16).double()).square().mean().backward()
    missing = [name for name, value in network.named_parameters() if value.grad is None or not value.grad.any()]
    # softmax does not see what is added to all of its arguments
    assert [name for name in missing if not name.endswith("key.bias")] == []


@pytest.mark.parametrize(("stack", "parameters"), [(1, 3_644_175), (8, 9_470_415)])
def test_parameters_at_full_width(stack: int, parameters: int) -> None:
    recipe = Recipe.model_validate({"system": "sat_net", "data": {"stack": stack}})
    with torch.device("meta"):
        assert count(build_generator(recipe.generator, 1, stack)) == parameters
