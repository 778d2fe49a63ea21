"""Split Bregman: points held, few iterations as good as many of the others; real, complex, of several coils."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from larmor.recon.networks.classical_start import classical_start, difference_adjoint, differences
from larmor.recon.networks.data_consistency import ConsistentGenerator, Measured
from larmor.recon.networks.networks import build_generator
from larmor.recon.networks.polyphase_wavelets import PolyphaseWavelets
from larmor.recon.networks.split_bregman import difference_spectrum, falling, split_bregman_start
from larmor.recon.networks.wavelets import denoise_wavelets
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.samples import centre_fit, normalize
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels, sense_expand, sense_reduce
from larmor.recon.recipe.settings import GeneratorConfig, StartConfig
from larmor.storage.examples.phantom import phantom_volume
from tests.recon.networks.test_classical_start import a_mask, decibels, heads

SIZE = (64, 96)


def start_of(target: Tensor, mask: Tensor, iterations: int = 25, maps: Tensor | None = None) -> Tensor:
    kspace = fft2c(sense_expand(target, maps)) * mask
    channels = 2 if target.is_complex() else 1
    masks = mask.expand(len(target), -1, -1, -1)
    return split_bregman_start(Measured(kspace, masks, maps, channels), iterations)


@pytest.mark.parametrize("ratio", [0.2, 0.3])
def test_25_iterations_are_better_than_50_of_both_in_turn_on_a_textured_head(ratio: float) -> None:
    volume = phantom_volume(np.random.default_rng(0))
    middle = torch.from_numpy(volume[:, volume.shape[1] // 2, ::-1].T.copy()).float()[None, None]
    target, _ = normalize(centre_fit(middle, (128, 128)))
    mask = a_mask((128, 128), ratio)
    kspace = fft2c(target) * mask
    both = StartConfig(method="alternating", iterations=50)
    theirs = classical_start(ifft2c(kspace).abs(), Measured(kspace, mask, None, 1).put_back, both)
    assert decibels(start_of(target, mask), target) > decibels(theirs, target) + 0.5


def test_a_phase_that_is_known_costs_little() -> None:
    target, mask = heads(SIZE), a_mask(SIZE)
    phase = torch.polar(torch.ones(SIZE), torch.linspace(0, 3, SIZE[1]).expand(SIZE))[None, None]
    kspace = fft2c(target * phase) * mask
    found = split_bregman_start(Measured(kspace, mask, phase, 1), 40)
    zero_filled = ifft2c(kspace).abs()
    assert decibels(found, target) > decibels(zero_filled, target) + 8
    assert found.min() >= 0


@pytest.mark.parametrize("coils", [1, 3])
def test_complex_images_hold_what_was_measured(coils: int) -> None:
    target = torch.polar(heads(SIZE), torch.linspace(0, 3, SIZE[1]).expand(1, 1, *SIZE))
    maps = None
    if coils > 1:
        maps = torch.randn(1, coils, 1, 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        maps = (maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)).expand(1, coils, *SIZE).contiguous()
    mask = a_mask(SIZE, 0.4)
    found = start_of(target, mask, 25, maps)
    zero_filled = sense_reduce(ifft2c(fft2c(sense_expand(target, maps)) * mask), maps)
    assert (
        decibels(found, complex_to_channels(target))
        > decibels(complex_to_channels(zero_filled), complex_to_channels(target)) + 5
    )
    if coils == 1:
        points = fft2c(channels_to_complex(found))
        torch.testing.assert_close(points * mask, fft2c(target) * mask, rtol=0, atol=1e-4)


@pytest.mark.parametrize("size", [(32, 48), (33, 20)])
def test_a_batch_does_not_matter_bit_for_bit(size: tuple[int, int]) -> None:
    target, mask = heads(size, 3), a_mask(size)
    together = start_of(target, mask, 6)
    assert torch.equal(together, torch.cat([start_of(image[None], mask, 6) for image in target]))


def test_it_has_no_gradient_and_reaches_a_whole_measurement() -> None:
    target = heads((32, 32)).requires_grad_()
    found = start_of(target, torch.ones(1, 1, 32, 32, dtype=torch.bool), 3)
    assert not found.requires_grad
    torch.testing.assert_close(found, target.detach(), rtol=0, atol=1e-5)


def test_the_spectrum_is_that_of_the_differences() -> None:
    image = torch.randn((1, 1, 9, 12), generator=torch.Generator().manual_seed(0))
    filtered = torch.fft.ifft2(torch.fft.fft2(image) * difference_spectrum(image.shape[-2:], image)).real
    torch.testing.assert_close(filtered, difference_adjoint(differences(image)), rtol=0, atol=1e-4)


@pytest.mark.parametrize("shape", [(2, 1, 64, 48), (1, 2, 37, 50)])
def test_polyphase_wavelets_are_the_same_wavelets(shape: tuple[int, ...]) -> None:
    image = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    found = PolyphaseWavelets(image)(image, 0.3)
    torch.testing.assert_close(found, denoise_wavelets(image, 0.3), rtol=0, atol=1e-5)


def test_thresholds_fall_by_a_factor() -> None:
    assert falling(3) == pytest.approx([0.1, 0.1 * 0.03**0.5, 0.003])
    assert falling(1) == [0.1]


def test_the_generator_starts_there() -> None:
    config = GeneratorConfig(
        name="residual_unet", width=4, norm="none", data_consistency="hard", start=StartConfig(method="split_bregman")
    )
    generator = build_generator(config)
    assert isinstance(generator, ConsistentGenerator)
    target, mask = heads((32, 48)), a_mask((32, 48))
    kspace = fft2c(target) * mask
    found = generator.start(ifft2c(kspace).abs(), kspace, mask)
    torch.testing.assert_close(found, start_of(target, mask, config.start.iterations))


def test_a_weight_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"weight=0\.001 .*holds exactly; leave weight out"):
        StartConfig(method="split_bregman", weight=1e-3)
