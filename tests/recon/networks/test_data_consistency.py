"""Data consistency: measured points are put back, the rest stays, and an error never grows."""

from __future__ import annotations

import math
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from larmor.recon.networks.data_consistency import ConsistentGenerator, DataConsistency, Measured
from larmor.recon.physics.fourier import fft2c, mirrored
from larmor.recon.physics.sense import channels_to_complex, sense_expand, undersample
from tests.helpers import property_test

Kind = Literal["soft", "hard"]
KINDS: list[Kind] = ["soft", "hard"]
sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**31)


def random_image(channels: int, size: tuple[int, int], seed: int) -> Tensor:
    return torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def random_maps(coils: int, size: tuple[int, int], seed: int) -> Tensor:
    """(2, coil, height, width) with Σ|maps|² = 1."""
    maps = torch.randn(2, coils, *size, dtype=torch.complex64, generator=torch.Generator().manual_seed(seed))
    return maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)


def random_mask(size: tuple[int, int], seed: int) -> Tensor:
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(seed)) < 0.5


def spectrum(image: Tensor, maps: Tensor | None = None) -> Tensor:
    whole = channels_to_complex(image) if image.shape[1] == 2 else image.to(torch.complex64)
    return fft2c(sense_expand(whole, maps))


@torch.no_grad()
def apply(kind: Kind, *arguments: Any) -> Tensor:
    image, kspace, mask, *maps = arguments
    return DataConsistency(kind)(image, Measured(kspace, mask, maps[0] if maps else None, image.shape[1]))


@property_test
@given(size=sizes, seed=seeds, channels=st.sampled_from([1, 2]))
def test_hard_puts_the_measured_points_back_and_leaves_the_others(
    size: tuple[int, int], seed: int, channels: int
) -> None:
    image, target, mask = (
        random_image(channels, size, seed),
        random_image(channels, size, seed + 1),
        random_mask(size, 1),
    )
    result = apply("hard", image, undersample(spectrum(target), mask), mask)
    known = mask | mirrored(mask) if channels == 1 else mask
    expected = torch.where(known, spectrum(target), spectrum(image))
    assert (spectrum(result) - expected).abs().max() <= 1e-6 * max(1.0, float(expected.abs().max()))
    again = apply("hard", result, undersample(spectrum(target), mask), mask)
    torch.testing.assert_close(again, result, rtol=0, atol=2e-6)


@property_test
@given(size=sizes, seed=seeds)
def test_a_point_and_its_mirror_image_that_disagree_are_averaged(size: tuple[int, int], seed: int) -> None:
    image, whole = random_image(1, size, seed), torch.ones(2, 1, *size, dtype=torch.bool)
    noisy = spectrum(random_image(2, size, seed + 1))
    expected = (noisy + mirrored(noisy).conj()) / 2
    torch.testing.assert_close(spectrum(apply("hard", image, noisy, whole)), expected, rtol=0, atol=1e-5)


@property_test
@given(
    size=sizes,
    seed=seeds,
    channels=st.sampled_from([1, 2]),
    coils=st.integers(0, 3),
    kind=st.sampled_from(KINDS),
)
def test_an_error_never_grows(size: tuple[int, int], seed: int, channels: int, coils: int, kind: Kind) -> None:
    image, target = random_image(channels, size, seed), random_image(channels, size, seed + 1)
    mask, maps = random_mask(size, seed), random_maps(coils, size, seed) if coils else None
    result = apply(kind, image, undersample(spectrum(target, maps), mask), mask, maps)
    assert result.shape == image.shape
    before, after = (torch.linalg.vector_norm(value - target, dim=(1, 2, 3)) for value in (image, result))
    assert (after <= before * (1 + 1e-5) + 1e-5).all()


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("coils", [0, 1, 4])
def test_everything_measured_gives_the_target_and_nothing_measured_the_image(channels: int, coils: int) -> None:
    size = (8, 7)
    image, target = random_image(channels, size, 0), random_image(channels, size, 1)
    maps = random_maps(coils, size, 2) if coils else None
    whole, nothing = torch.ones(2, 1, *size, dtype=torch.bool), torch.zeros(2, 1, *size, dtype=torch.bool)
    kspace = spectrum(target, maps)
    torch.testing.assert_close(apply("hard", image, kspace, whole, maps), target, rtol=0, atol=1e-5)
    torch.testing.assert_close(apply("soft", image, kspace, whole, maps), (image + target) / 2, rtol=0, atol=1e-5)
    for kind in KINDS:
        empty = torch.zeros_like(kspace)
        torch.testing.assert_close(apply(kind, image, empty, nothing, maps), image, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_measured_zero_frequency_moves_the_mean(kind: Kind) -> None:
    """To the measured mean, or half of the way; every pixel by the same amount."""
    size = (6, 8)
    image, mask = random_image(1, size, 0), torch.zeros(2, 1, *size, dtype=torch.bool)
    mask[..., 3, 4] = True
    kspace = torch.zeros(2, 1, *size, dtype=torch.complex64)
    kspace[..., 3, 4] = 0.25 * math.sqrt(48)
    step = (0.25 - image.mean(dim=(1, 2, 3), keepdim=True)) * (1.0 if kind == "hard" else 0.5)
    torch.testing.assert_close(apply(kind, image, kspace, mask), image + step, rtol=0, atol=1e-6)


@property_test
@given(size=sizes, seed=seeds, log_weight=st.floats(-8, 8))
def test_soft_lies_between_the_image_and_hard(size: tuple[int, int], seed: int, log_weight: float) -> None:
    image, mask = random_image(2, size, seed), random_mask(size, seed)
    kspace = undersample(spectrum(random_image(2, size, seed + 1)), mask)
    layer = DataConsistency("soft")
    assert layer.log_weight is not None
    share = 1 / (1 + math.exp(-log_weight))
    with torch.no_grad():
        layer.log_weight.fill_(log_weight)
        result = layer(image, Measured(kspace, mask, None, 2))
    hard = apply("hard", image, kspace, mask)
    torch.testing.assert_close(result, (1 - share) * image + share * hard, rtol=0, atol=1e-5)


def test_the_weight_of_soft_starts_at_one_and_learns() -> None:
    size = (8, 8)
    image, target, mask = random_image(2, size, 0), random_image(2, size, 1), random_mask(size, 2)
    kspace = undersample(spectrum(target), mask)
    assert list(DataConsistency("hard").parameters()) == []
    layer = DataConsistency("soft")
    (log_weight,) = layer.parameters()
    assert log_weight.exp() == 1
    assert log_weight.ndim == 1, "DeepSpeed broadcasts no parameter without an axis"
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    losses = []
    for _ in range(5):
        loss = (layer(image, Measured(kspace, mask, None, 2)) - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert log_weight.exp() > 1, "these measurements have no noise"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 2])
def test_gradients_pass_to_the_image(kind: Kind, channels: int) -> None:
    """The layer is affine and, for one coil, its own adjoint but for the constant."""
    size = (6, 5)
    mask = random_mask(size, 1)
    kspace = undersample(spectrum(random_image(channels, size, 2)), mask)
    image = random_image(channels, size, 0).requires_grad_()
    direction = random_image(channels, size, 3)
    (gradient,) = torch.autograd.grad(
        DataConsistency(kind)(image, Measured(kspace, mask, None, channels)), image, direction
    )
    expected = apply(kind, direction, torch.zeros_like(kspace), mask)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_low_precision_stays_outside(kind: Kind) -> None:
    """bfloat16 images, as from a network with lowered weights: all arithmetic is float32."""
    size = (16, 12)
    image, mask = random_image(1, size, 0).bfloat16(), random_mask(size, 1)
    kspace = undersample(spectrum(random_image(1, size, 2)), mask)
    result = DataConsistency(kind).bfloat16()(image, Measured(kspace, mask, None, 1))
    assert result.dtype == torch.bfloat16
    assert torch.equal(result, apply(kind, image.float(), kspace, mask).bfloat16())


def test_a_consistent_generator_corrects_what_its_network_gives() -> None:
    class Darker(nn.Module):
        def forward(self, zero_filled: Tensor, *_measurement: Tensor | None) -> Tensor:
            return zero_filled / 2

    size = (8, 8)
    target, mask = random_image(2, size, 0), random_mask(size, 1)
    for maps in (None, random_maps(3, size, 2)):
        kspace = undersample(spectrum(target, maps), mask)
        arguments = (kspace, mask) if maps is None else (kspace, mask, maps)
        result = ConsistentGenerator([Darker()], "hard")(target, *arguments)
        torch.testing.assert_close(result, apply("hard", target / 2, kspace, mask, maps))
        twice = ConsistentGenerator([Darker()], "hard", iterations=2)(target, *arguments)
        torch.testing.assert_close(twice, apply("hard", result / 2, kspace, mask, maps))
