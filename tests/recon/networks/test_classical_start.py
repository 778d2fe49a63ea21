"""Compressed sensing on the device: as good as SigPy's, the same in any batch, without a gradient."""

from __future__ import annotations

from typing import Any, Literal

import pytest
import torch
from skimage.data import shepp_logan_phantom
from skimage.transform import resize
from torch import Tensor

from larmor.recon.evaluation.compressed_sensing import CompressedSensingConfig, compressed_sensing
from larmor.recon.models.portable import portable
from larmor.recon.networks.classical_start import (
    TotalVariation,
    classical_start,
    difference_adjoint,
    differences,
    thresholds,
)
from larmor.recon.networks.data_consistency import ConsistentGenerator, Measured
from larmor.recon.networks.networks import build_generator
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.sense import complex_to_channels, sense_expand, sense_reduce
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.settings import GeneratorConfig, StartConfig
from larmor.storage.objects.errors import InputError

Method = Literal["wavelet", "total_variation", "alternating"]
METHODS: list[Method] = ["wavelet", "total_variation", "alternating"]


def heads(size: tuple[int, int] = (64, 96), count: int = 1) -> Tensor:
    phantom = torch.from_numpy(resize(shepp_logan_phantom(), size)).float()
    return torch.stack([phantom.roll(5 * number, -1) for number in range(count)]).unsqueeze(1)


def a_mask(size: tuple[int, int], ratio: float = 0.3) -> Tensor:
    return torch.from_numpy(make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=ratio), size))[None, None]


def decibels(found: Tensor, target: Tensor) -> float:
    return float(-10 * torch.log10((found - target).square().mean()))


def start_of(target: Tensor, mask: Tensor, **settings: Any) -> Tensor:
    kspace = fft2c(target) * mask
    measured = Measured(kspace, mask.expand(len(target), -1, -1, -1), None, 1)
    return classical_start(ifft2c(kspace).abs(), measured.put_back, StartConfig(**settings))


@pytest.mark.parametrize("method", METHODS)
def test_it_is_far_above_the_zero_filled_image(method: Method) -> None:
    target, mask = heads(), a_mask((64, 96))
    zero_filled = ifft2c(fft2c(target) * mask).abs()
    assert decibels(start_of(target, mask, method=method), target) > decibels(zero_filled, target) + 8


@pytest.mark.parametrize("method", ["wavelet", "total_variation"])
def test_it_is_no_worse_than_sigpys_solution_of_the_same_problem(method: Any) -> None:
    target, mask = heads(), a_mask((64, 96))
    theirs = compressed_sensing(fft2c(target) * mask, mask, CompressedSensingConfig(kind=method))
    ours = start_of(target, mask, method=method, iterations=100)
    assert decibels(ours, target) > decibels(theirs, target) - 1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("size", [(32, 48), (33, 20)])
def test_a_batch_does_not_matter_bit_for_bit(method: Method, size: tuple[int, int]) -> None:
    target, mask = heads(size, 3), a_mask(size)
    together = start_of(target, mask, method=method, iterations=8)
    alone = torch.cat([start_of(image[None], mask, method=method, iterations=8) for image in target])
    assert torch.equal(together, alone)


@pytest.mark.parametrize("coils", [1, 3])
def test_complex_images_of_one_coil_or_several(coils: int) -> None:
    size = (32, 48)
    turns = torch.linspace(0, 3, size[1]).expand(1, 1, *size)
    target = torch.polar(heads(size), turns)
    maps = None
    if coils > 1:
        maps = torch.randn(1, coils, 1, 1, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
        maps = (maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)).expand(1, coils, *size).contiguous()
    mask = a_mask(size, 0.4)
    kspace = fft2c(sense_expand(target, maps)) * mask
    zero_filled = complex_to_channels(sense_reduce(ifft2c(kspace), maps))
    found = classical_start(zero_filled, Measured(kspace, mask, maps, 2).put_back, StartConfig(method="alternating"))
    assert decibels(found, complex_to_channels(target)) > decibels(zero_filled, complex_to_channels(target)) + 5


def test_a_magnitude_is_not_negative_and_has_no_gradient() -> None:
    target = heads((32, 32)).requires_grad_()
    found = start_of(target, a_mask((32, 32)), method="alternating")
    assert found.min() >= 0
    assert not found.requires_grad


def test_differences_and_their_adjoint() -> None:
    rng = torch.Generator().manual_seed(0)
    image, field = torch.randn((2, 2, 5, 6), generator=rng), torch.randn((2, 4, 5, 6), generator=rng)
    torch.testing.assert_close((differences(image) * field).sum(), (image * difference_adjoint(field)).sum())


def test_total_variation_flattens_noise_and_keeps_an_edge() -> None:
    clean = torch.zeros(1, 1, 32, 32)
    clean[..., 16:] = 1
    noisy = clean + 0.05 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(0))
    denoise, found = TotalVariation(), noisy
    for _ in range(20):  # few inner iterations: the dual is kept from call to call
        found = denoise(noisy, 0.1)
    assert (found - clean).norm() < 0.5 * (noisy - clean).norm()


def test_thresholds_fall_to_the_weight_in_the_first_half() -> None:
    falling = thresholds(3e-4, 10)
    assert falling[0] == pytest.approx(0.05)
    assert falling[5:] == pytest.approx([3e-4] * 5)
    assert falling == sorted(falling, reverse=True)
    assert thresholds(0.1, 4) == pytest.approx([0.1] * 4), "never below the weight"


def test_the_generator_starts_there_and_takes_a_start_that_is_known() -> None:
    size = (32, 48)
    target, mask = heads(size, 2), a_mask(size)
    config = GeneratorConfig(
        name="residual_unet", width=4, norm="none", data_consistency="hard", start=StartConfig(method="wavelet")
    )
    generator = build_generator(config)
    assert isinstance(generator, ConsistentGenerator)
    kspace = fft2c(target) * mask
    measurement = ifft2c(kspace).abs(), kspace, mask.expand(2, -1, -1, -1)
    start = generator.start(*measurement)
    torch.testing.assert_close(start, start_of(target, mask, method="wavelet"))
    assert torch.equal(generator(*measurement), generator(*measurement, None, start))
    other = generator(*measurement, None, torch.zeros_like(start))
    assert not torch.allclose(other, generator(*measurement))


def test_several_coils_without_maps_are_refused() -> None:
    generator = build_generator(GeneratorConfig(name="residual_unet", width=4, start=StartConfig(method="wavelet")), 2)
    kspace, mask = torch.zeros(1, 3, 16, 16, dtype=torch.complex64), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    with pytest.raises(InputError, match=r"needs the sensitivity maps of the coils.*--sensitivity-maps"):
        generator(torch.zeros(1, 2, 16, 16), kspace, mask)


@pytest.mark.parametrize("channels", [1, 2])
def test_the_portable_form_computes_the_same_from_the_start_on(channels: int) -> None:
    size = (30, 44)
    config = GeneratorConfig(
        name="residual_unet",
        width=4,
        norm="none",
        data_consistency="hard",
        cascades=2,
        start=StartConfig(method="alternating", iterations=6),
    )
    generator = build_generator(config, channels)
    for parameter in generator.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    target = heads(size) if channels == 1 else complex_to_channels(torch.complex(heads(size), 0.3 * heads(size)))
    whole = target if channels == 1 else torch.complex(target[:, :1], target[:, 1:])
    kspace = fft2c(whole) * a_mask(size)
    zero_filled = ifft2c(kspace).abs() if channels == 1 else complex_to_channels(ifft2c(kspace))
    with torch.no_grad():
        expected = generator(zero_filled, kspace, a_mask(size))
        start = generator.start(zero_filled, kspace, a_mask(size))  # type: ignore[operator]
        found = portable(generator)(start, torch.view_as_real(kspace), a_mask(size))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
