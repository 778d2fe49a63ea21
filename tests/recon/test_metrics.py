"""Figures of quality against scikit-image and against fastMRI's definitions written out."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.ndimage import uniform_filter
from skimage.metrics import mean_squared_error, normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from recon.metrics import HIGHER_IS_BETTER, LARGEST_PSNR, METRICS, PRESETS, slice_metrics, volume_metrics


def pair(*shape: int, brightness: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    target = uniform_filter(rng.random(shape), 3)
    found = np.clip(target + rng.normal(0, 0.05, shape), 0, 1)
    return (brightness * target).astype(np.float32), (brightness * found).astype(np.float32)


def ssim_by_definition(target: np.ndarray, found: np.ndarray, data_range: float) -> float:
    """Wang et al. with a uniform window of 7, unbiased variances, K1 = 0.01, K2 = 0.03, no padding."""
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    values = []
    for top in range(target.shape[0] - 6):
        for left in range(target.shape[1] - 6):
            x = target[top : top + 7, left : left + 7].astype(np.float64).ravel()
            y = found[top : top + 7, left : left + 7].astype(np.float64).ravel()
            ((var_x, cov), (_, var_y)) = np.cov(x, y)
            luminance = (2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1)
            values.append(luminance * (2 * cov + c2) / (var_x + var_y + c2))
    return float(np.mean(values))


@pytest.mark.parametrize("data_range", [1.0, 0.6])
def test_a_slice_is_rated_as_scikit_image_does(data_range: float) -> None:
    target, found = pair(32, 27)
    rated = slice_metrics(target, found, data_range)
    assert set(rated) == set(METRICS) == set(HIGHER_IS_BETTER)
    assert rated["psnr"] == pytest.approx(peak_signal_noise_ratio(target, found, data_range=data_range), rel=1e-6)
    expected = structural_similarity(target.astype(float), found.astype(float), data_range=data_range)
    assert rated["ssim"] == pytest.approx(expected, rel=1e-6)
    assert rated["ssim"] == pytest.approx(ssim_by_definition(target, found, data_range), rel=1e-5)
    assert rated["mse"] == pytest.approx(mean_squared_error(target, found), rel=1e-6)
    assert rated["rmse"] == pytest.approx(mean_squared_error(target, found) ** 0.5, rel=1e-6)
    assert rated["nmse"] == pytest.approx(normalized_root_mse(target, found) ** 2, rel=1e-5)


def test_a_volume_is_rated_as_fastmri_does() -> None:
    target, found = pair(4, 20, 24, brightness=350.0)
    target *= np.array([0.2, 1, 0.7, 0.4], np.float32)[:, None, None]
    found *= np.array([0.2, 1, 0.7, 0.4], np.float32)[:, None, None]
    peak, error = float(target.max()), target.astype(np.float64) - found
    rated = volume_metrics(target, found)
    assert rated["mse"] == pytest.approx(np.mean(error**2), rel=1e-6)
    assert rated["rmse"] == pytest.approx(np.sqrt(np.mean(error**2)), rel=1e-6)
    assert rated["nmse"] == pytest.approx(
        np.linalg.norm(error) ** 2 / np.linalg.norm(target.astype(np.float64)) ** 2, rel=1e-6
    )
    assert rated["psnr"] == pytest.approx(20 * np.log10(peak) - 10 * np.log10(np.mean(error**2)), rel=1e-6)
    ssim = [ssim_by_definition(t, f, peak) for t, f in zip(target, found, strict=True)]
    assert rated["ssim"] == pytest.approx(np.mean(ssim), rel=1e-5)


def test_the_brightness_of_a_volume_does_not_matter() -> None:
    target, found = pair(3, 16, 16)
    dim, bright = volume_metrics(target, found), volume_metrics(100 * target, 100 * found)
    for name in ("psnr", "ssim", "nmse"):
        assert dim[name] == pytest.approx(bright[name], rel=1e-5)
    assert bright["mse"] == pytest.approx(1e4 * dim["mse"], rel=1e-5)


@pytest.mark.parametrize("rate", [slice_metrics, volume_metrics])
def test_identical_images_are_perfect(rate: object) -> None:
    target = pair(12, 16)[0] if rate is slice_metrics else pair(2, 12, 16)[0]
    expected = {"psnr": LARGEST_PSNR, "ssim": 1.0, "mse": 0.0, "rmse": 0.0, "nmse": 0.0}
    assert rate(target, target.copy()) == pytest.approx(expected)  # type: ignore[operator]
    nearly = np.where(target == target.max(), np.nextafter(target, np.float32(0)), target)
    assert 130 < rate(target, nearly)["psnr"] <= LARGEST_PSNR  # type: ignore[operator]


@pytest.mark.parametrize("rate", [slice_metrics, volume_metrics])
def test_what_is_not_a_number_is_not_perfect(rate: object) -> None:
    target, found = pair(12, 16) if rate is slice_metrics else pair(2, 12, 16)
    found.flat[17] = np.nan
    assert np.isnan(list(rate(target, found).values())).all()  # type: ignore[operator]


def test_an_empty_target_has_no_relative_error() -> None:
    assert slice_metrics(np.zeros((9, 9)), np.ones((9, 9)))["nmse"] == np.inf


@pytest.mark.parametrize("name", METRICS)
def test_directions_agree_with_more_noise(name: str) -> None:
    target, found = pair(24, 24)
    worse = np.clip(found + np.random.default_rng(1).normal(0, 0.2, found.shape), 0, 1)
    better = slice_metrics(target, found)[name] > slice_metrics(target, worse)[name]
    assert better == HIGHER_IS_BETTER[name]


def test_inputs_are_not_changed() -> None:
    target, found = pair(12, 12)
    copies = target.copy(), found.copy()
    slice_metrics(target, found)
    assert np.array_equal(target, copies[0])
    assert np.array_equal(found, copies[1])


def test_every_preset_is_explained() -> None:
    assert set(PRESETS) == {"paper", "fastmri"}
    assert all("data range" in text and "SSIM window 7" in text for text in PRESETS.values())
