"""Coils: expansion and reduction are adjoint, an isometry for normalised maps, and what analysis says of waves."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels, sense_expand, sense_reduce, undersample
from tests.helpers import property_test

sizes = st.tuples(st.integers(1, 9), st.integers(1, 9))
seeds = st.integers(0, 2**31)


def random_complex(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.complex128, generator=torch.Generator().manual_seed(seed))


def normalized_maps(coils: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """(2, coil, height, width) with Σ|maps|² = 1 in every pixel."""
    maps = random_complex(2, coils, *size, seed=seed)
    return maps / torch.linalg.vector_norm(maps, dim=1, keepdim=True)


def random_mask(size: tuple[int, int], seed: int = 0) -> Tensor:
    return torch.rand(2, 1, *size, generator=torch.Generator().manual_seed(seed)) < 0.4


@property_test
@given(size=sizes, coils=st.integers(1, 4), seed=seeds)
def test_measuring_and_zero_filling_are_adjoint(size: tuple[int, int], coils: int, seed: int) -> None:
    """<A x, y> = <x, Aᴴ y> for the coils alone and with Fourier transform and mask, whatever the maps are."""
    maps, mask = random_complex(2, coils, *size, seed=seed), random_mask(size, seed)
    x, y = random_complex(2, 1, *size, seed=seed + 1), random_complex(2, coils, *size, seed=seed + 2)
    pairs = [
        (sense_expand(x, maps), sense_reduce(y, maps)),
        (undersample(fft2c(sense_expand(x, maps)), mask), sense_reduce(ifft2c(undersample(y, mask)), maps)),
    ]
    for forward, backward in pairs:
        assert forward.shape == y.shape
        assert backward.shape == x.shape
        left, right = torch.vdot(forward.flatten(), y.flatten()), torch.vdot(x.flatten(), backward.flatten())
        torch.testing.assert_close(left, right)


@property_test
@given(size=sizes, coils=st.integers(1, 4), seed=seeds)
def test_normalised_maps_keep_the_norm_and_reduction_undoes_expansion(
    size: tuple[int, int], coils: int, seed: int
) -> None:
    maps, image = normalized_maps(coils, size, seed), random_complex(2, 1, *size, seed=seed + 1)
    coil_images = sense_expand(image, maps)
    norms = [torch.linalg.vector_norm(value) for value in (coil_images, fft2c(coil_images), image)]
    torch.testing.assert_close(norms[0], norms[2])
    torch.testing.assert_close(norms[1], norms[2])
    torch.testing.assert_close(sense_reduce(coil_images, maps), image)


def test_one_coil_needs_no_maps() -> None:
    image = random_complex(2, 1, 5, 4)
    ones = torch.ones_like(image)
    assert torch.equal(sense_expand(image, None), sense_expand(image, ones))
    assert torch.equal(sense_reduce(image, None), sense_reduce(image, ones))


@property_test
@given(size=sizes, seed=seeds)
def test_undersampling_keeps_what_the_mask_has_and_nothing_else(size: tuple[int, int], seed: int) -> None:
    kspace, mask = random_complex(2, 3, *size, seed=seed), random_mask(size, seed)
    once = undersample(kspace, mask)
    assert once.dtype == kspace.dtype
    everywhere = mask.expand_as(kspace)
    assert torch.equal(once[everywhere], kspace[everywhere])
    assert not once[~everywhere].any()
    assert torch.equal(undersample(once, mask), once)


@pytest.mark.parametrize("size", [(8, 6), (7, 9)])
@pytest.mark.parametrize("point", [(0, 0), (1, 0), (0, -2), (-3, 1)])
def test_a_point_in_kspace_is_a_plane_wave_in_each_coil(size: tuple[int, int], point: tuple[int, int]) -> None:
    """Of maps that are constant; the zero frequency is the constant image."""
    height, width = size
    rows, columns = (torch.arange(n, dtype=torch.float64) - n // 2 for n in size)
    phase = point[0] * rows[:, None] / height + point[1] * columns / width
    wave = torch.exp(2j * math.pi * phase)[None, None]
    maps = torch.tensor([0.6, 0.8j]).to(wave.dtype).view(1, 2, 1, 1).expand(1, 2, *size)
    expected = torch.zeros(1, 2, *size, dtype=wave.dtype)
    expected[0, :, height // 2 + point[0], width // 2 + point[1]] = maps[0, :, 0, 0] * math.sqrt(height * width)
    torch.testing.assert_close(fft2c(sense_expand(wave, maps)), expected)
    torch.testing.assert_close(sense_reduce(ifft2c(expected), maps), wave)


def test_complex_images_are_two_channels_and_back() -> None:
    image = random_complex(3, 1, 4, 5).to(torch.complex64)
    channels = complex_to_channels(image)
    assert channels.shape == (3, 2, 4, 5)
    assert torch.equal(channels[:, 0], image.real[:, 0])
    assert torch.equal(channels[:, 1], image.imag[:, 0])
    assert torch.equal(channels_to_complex(channels), image)
    flipped = channels.flip(-1)  # not contiguous in every layout
    assert torch.equal(channels_to_complex(flipped.to(memory_format=torch.channels_last)), image.flip(-1))
