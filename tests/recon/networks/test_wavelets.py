"""The wavelet transform is orthonormal, and thresholding is the proximal operator that it stands for."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from torch import Tensor

from larmor.recon.networks.wavelets import denoise_wavelets, magnitude, shrink, wavelet_merge, wavelet_split


def image(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_merge_inverts_split_which_keeps_lengths() -> None:
    original = image(2, 2, 12, 20)
    coarse, detail = wavelet_split(original)
    assert detail.shape == (2, 2, 3, 6, 10)
    torch.testing.assert_close(wavelet_merge(coarse, detail), original)
    torch.testing.assert_close(coarse.square().sum() + detail.square().sum(), original.square().sum())


def test_split_and_merge_are_adjoint() -> None:
    left, coarse, detail = image(1, 1, 8, 8), image(1, 1, 4, 4, seed=1), image(1, 1, 3, 4, 4, seed=2)
    bands = wavelet_split(left)
    forward = (bands[0] * coarse).sum() + (bands[1] * detail).sum()
    torch.testing.assert_close(forward, (left * wavelet_merge(coarse, detail)).sum())


def test_the_functions_are_daubechies_2() -> None:
    """What one coefficient stands for is what PyWavelets says."""
    coarse, detail = torch.zeros(1, 1, 8, 8, dtype=torch.float64), torch.zeros(1, 1, 3, 8, 8, dtype=torch.float64)
    coarse[..., 4, 4] = 1
    low = np.asarray(pywt.Wavelet("db2").rec_lo)
    merged = wavelet_merge(coarse, detail)[0, 0].numpy()
    rows, columns = np.nonzero(np.abs(merged) > 1e-12)
    patch = merged[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    np.testing.assert_allclose(patch, np.outer(low, low), atol=1e-9)


def test_slopes_have_no_detail() -> None:
    """Two vanishing moments: detail coefficients of a ramp are 0, but where the periodic image jumps."""
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    _, detail = wavelet_split(ramp)
    assert detail[..., 1:-1, 1:-1].abs().max() < 1e-5


@pytest.mark.parametrize("channels", [1, 2])
def test_shrink_minimises_its_objective(channels: int) -> None:
    """½‖x − c‖² + t · Σ|x| is no smaller anywhere near; a complex number counts by its magnitude."""
    coefficients, threshold = image(1, channels, 6, 5), 0.5

    def objective(x: Tensor) -> Tensor:
        return 0.5 * (x - coefficients).square().sum() + threshold * magnitude(x).sum()

    best = shrink(coefficients, threshold)
    for seed in range(20):
        assert objective(best) <= objective(best + 0.1 * image(1, channels, 6, 5, seed=seed + 1))


def test_denoising_takes_any_size_and_without_a_threshold_changes_nothing() -> None:
    for size in ((16, 32), (17, 30), (5, 7)):
        original = image(1, 1, *size)
        torch.testing.assert_close(denoise_wavelets(original, 0.0), original)
        assert denoise_wavelets(original, 0.5).shape == original.shape


def test_denoising_brings_a_noisy_image_nearer_to_the_clean_one() -> None:
    clean = torch.zeros(1, 1, 64, 64, dtype=torch.float64)
    clean[..., 16:48, 20:40] = 1
    noisy = clean + 0.1 * image(1, 1, 64, 64)
    assert (denoise_wavelets(noisy, 0.2) - clean).norm() < 0.7 * (noisy - clean).norm()
