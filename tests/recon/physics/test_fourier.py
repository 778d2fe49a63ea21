"""The centred FFT: unitary, with the zero frequency where it is said to be."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from larmor.recon.physics.fourier import fft2c, ifft2c, mirrored
from larmor.storage.formats.volumes import image_to_kspace

SIZES = [(8, 8), (7, 9), (8, 5), (1, 6), (32, 33)]


def random_complex(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, dtype=torch.complex64, generator=generator)


@pytest.mark.parametrize("size", SIZES)
def test_the_inverse_is_the_adjoint(size: tuple[int, int]) -> None:
    image, kspace = random_complex(3, 2, *size), random_complex(3, 2, *size, seed=1)
    left = torch.vdot(fft2c(image).flatten(), kspace.flatten())
    right = torch.vdot(image.flatten(), ifft2c(kspace).flatten())
    torch.testing.assert_close(left, right, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size", SIZES)
def test_both_ways_keep_the_norm_and_undo_each_other(size: tuple[int, int]) -> None:
    image = random_complex(2, 1, *size)
    for there, back in ((fft2c, ifft2c), (ifft2c, fft2c)):
        torch.testing.assert_close(torch.linalg.vector_norm(there(image)), torch.linalg.vector_norm(image))
        torch.testing.assert_close(back(there(image)), image, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_point_in_the_centre_has_a_constant_spectrum(size: tuple[int, int]) -> None:
    height, width = size
    point = torch.zeros(size)
    point[height // 2, width // 2] = 1
    expected = torch.full(size, (height * width) ** -0.5, dtype=torch.complex64)
    torch.testing.assert_close(fft2c(point), expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(ifft2c(point), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_a_constant_image_has_only_the_zero_frequency(size: tuple[int, int]) -> None:
    height, width = size
    expected = torch.zeros(size, dtype=torch.complex64)
    expected[height // 2, width // 2] = (height * width) ** 0.5
    torch.testing.assert_close(fft2c(torch.ones(size)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("size", [(8, 8), (7, 9)])
@pytest.mark.parametrize("shift", [(1, 0), (0, -2), (3, 2)])
def test_a_shifted_point_is_a_wave(size: tuple[int, int], shift: tuple[int, int]) -> None:
    height, width = size
    point = torch.zeros(size)
    point[height // 2 + shift[0], width // 2 + shift[1]] = 1
    ky, kx = np.arange(height) - height // 2, np.arange(width) - width // 2
    phase = shift[0] * ky[:, None] / height + shift[1] * kx[None, :] / width
    expected = np.exp(-2j * np.pi * phase) / np.sqrt(height * width)
    np.testing.assert_allclose(fft2c(point).numpy(), expected, atol=1e-6)


def test_it_is_the_transform_that_data_are_stored_with() -> None:
    image = torch.rand(2, 9, 12, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(fft2c(image).numpy(), image_to_kspace(image.numpy()), atol=1e-5)


@pytest.mark.parametrize("size", SIZES)
def test_a_real_image_has_conjugates_at_the_negative_frequencies(size: tuple[int, int]) -> None:
    kspace = fft2c(torch.rand(2, 3, *size, dtype=torch.float64))
    torch.testing.assert_close(mirrored(kspace).conj(), kspace)
