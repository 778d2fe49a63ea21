"""FDA-CNN: its size, its dense blocks, its gates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch import nn

from larmor.recon.networks.fda import AttentionGate, DenseBlock, FdaGenerator, GatedUp
from larmor.recon.recipe.settings import GeneratorConfig
from larmor.recon.recipe.systems import SYSTEMS
from tests.helpers import random_images

SIZES = [(32, 64), (63, 97), (48, 80)]


def make_fda(width: int = 4, channels: int = 1, norm: Any = "group", trained: bool = True) -> FdaGenerator:
    torch.manual_seed(0)
    generator = FdaGenerator(width, channels, norm)
    if trained:
        nn.init.normal_(generator.last.weight, std=0.1)
    return generator.eval()


def features(channels: int, *size: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(2, channels, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", ["group", "instance"])
@pytest.mark.parametrize(("width", "parameters"), [(32, 11_971_864), (8, 754_168)])
def test_it_has_the_published_size(norm: Any, width: int, parameters: int) -> None:
    """The code's 11,979,384 trainable ones have a bias before each normalisation, which cancels it: 7,520 in all."""
    with torch.device("meta"):
        generator = FdaGenerator(width, 1, norm)
    assert sum(parameter.numel() for parameter in generator.parameters()) == parameters
    cancelled = sum(layer.num_channels for layer in generator.modules() if isinstance(layer, nn.GroupNorm))
    if norm == "group" and width == 32:
        assert parameters + cancelled == 11_979_384


def test_the_published_width_is_the_systems() -> None:
    assert SYSTEMS["fda_cnn"]["generator"]["width"] == 32


@pytest.mark.parametrize("channels", [1, 2])
@torch.no_grad()
def test_an_untrained_one_returns_its_input(channels: int) -> None:
    image = random_images(2, 63, 97).repeat(1, channels, 1, 1)
    assert torch.equal(make_fda(channels=channels, trained=False)(image), image)


@torch.no_grad()
def test_a_trained_one_takes_any_size_and_changes_every_part() -> None:
    generator = make_fda()
    for size in SIZES:
        image = random_images(1, *size)
        change = generator(image) - image
        corners = change[..., :3, :3], change[..., :3, -3:], change[..., -3:, :3], change[..., -3:, -3:]
        assert all(corner.abs().max() > 0 for corner in corners)


@pytest.mark.parametrize(("channels", "growth"), [(1, 4), (33, 64)])
@torch.no_grad()
def test_a_dense_block_begins_with_its_input_unchanged(channels: int, growth: int) -> None:
    torch.manual_seed(0)
    given = features(channels, 6, 8)
    found = DenseBlock(channels, growth, "group")(given)
    assert found.shape == (2, channels + growth, 6, 8)
    assert torch.equal(found[:, :channels], given)
    assert (found[:, channels:].flatten(2).std(dim=2) > 0).any()


class TestGate:
    @staticmethod
    def gate() -> AttentionGate:
        torch.manual_seed(0)
        return AttentionGate(below_channels=12, skip_channels=5, inner=8)

    @torch.no_grad()
    def test_it_is_one_map_strictly_between_0_and_1(self) -> None:
        gate, skip, below = self.gate(), 3 * features(5, 12, 16), 3 * features(12, 6, 8, seed=1)
        attention = gate.attention(skip, below)
        assert attention.shape == (2, 1, 6, 8)
        assert ((attention > 0) & (attention < 1)).all()
        assert attention.std() > 0.01, "it tells places apart"

    @torch.no_grad()
    def test_what_is_passed_is_the_skip_times_the_map(self) -> None:
        gate, skip, below = self.gate(), features(5, 12, 16), features(12, 6, 8, seed=1)
        weights = gate.attention(skip, below).repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
        torch.testing.assert_close(gate(skip, below), gate.out(skip * weights))

    @torch.no_grad()
    def test_closing_it_stops_the_skip(self) -> None:
        up = make_fda().decoder[1]
        assert isinstance(up, GatedUp)
        skip, below = features(29, 8, 12), features(64, 4, 6, seed=1)
        assert (up(below, skip) - up(below, 2 * skip)).abs().max() > 1e-2
        nn.init.zeros_(up.gate.psi.weight)
        nn.init.constant_(torch.as_tensor(up.gate.psi.bias), -30.0)
        assert (up(below, skip) - up(below, 2 * skip)).abs().max() < 1e-6
        assert (up(below, skip) - up(2 * below, skip)).abs().max() > 1e-2, "what comes from below still counts"


def test_a_width_that_a_dense_block_cannot_divide_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"width=7 does not divide by 4.*name=fda do; use 8"):
        GeneratorConfig(name="fda", width=7)


def test_it_learns() -> None:
    target = random_images(2, 8, 8).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    generator = make_fda(trained=False).train()
    optimizer = torch.optim.Adam(generator.parameters(), lr=5e-3)
    losses = []
    for _ in range(12):
        loss = (generator(target / 2) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
