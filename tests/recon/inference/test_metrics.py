"""Figures of quality against scikit-image and against fastMRI's definitions written out."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import correlate, gaussian_filter, uniform_filter
from scipy.signal import convolve2d
from skimage.metrics import mean_squared_error, normalized_root_mse, peak_signal_noise_ratio, structural_similarity

from larmor.recon.inference.metrics import LARGEST_PSNR, slice_metrics, volume_metrics
from larmor.recon.recipe.metric import HIGHER_IS_BETTER, METRICS, PRESETS, TABLE_METRICS, brief_figures, check_metric
from larmor.storage.objects.errors import InputError

ROOT = Path(__file__).resolve().parents[3]


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


def edges_by_definition(image: np.ndarray) -> np.ndarray:
    """MATLAB's `imfilter(image, fspecial('log', 15, 1.5))`."""
    x, y = np.meshgrid(np.arange(-7, 8), np.arange(-7, 8))
    square, sigma = x**2 + y**2, 1.5
    gauss = np.exp(-square / (2 * sigma**2))
    log = gauss / gauss.sum() * (square - 2 * sigma**2) / sigma**4
    return correlate(image.astype(np.float64), log - log.mean(), mode="constant")


def gmsd_by_definition(target: np.ndarray, found: np.ndarray, data_range: float) -> float:
    """The authors' MATLAB program (GMSD.m), which takes images of 0 to 255: `conv2(…, 'same')`, every second pixel."""
    prewitt = np.array([[1, 0, -1]] * 3) / 3
    magnitudes = []
    for image in (target, found):
        # conv2's 'same' begins one pixel later than SciPy's for an even kernel
        full = convolve2d(255 * image.astype(np.float64) / data_range, np.full((2, 2), 0.25))
        small = full[1:, 1:][: image.shape[0], : image.shape[1]][::2, ::2]
        magnitudes.append(np.hypot(*(convolve2d(small, kernel, mode="same") for kernel in (prewitt, prewitt.T))))
    first, second = magnitudes
    return float(np.std((2 * first * second + 170) / (first**2 + second**2 + 170)))


@pytest.mark.parametrize("shape", [(32, 26), (31, 26), (33, 47), (7, 7)])
@pytest.mark.parametrize("data_range", [1.0, 0.6])
def test_edges_and_gradients_are_rated_as_published(shape: tuple[int, int], data_range: float) -> None:
    target, found = pair(*shape)
    rated = slice_metrics(target, found, data_range)
    error = edges_by_definition(target.astype(float) - found)
    hfen = np.linalg.norm(error) / np.linalg.norm(edges_by_definition(target))
    assert rated["hfen"] == pytest.approx(hfen, rel=1e-4)
    assert rated["gmsd"] == pytest.approx(gmsd_by_definition(target, found, data_range), rel=1e-6)


@pytest.mark.parametrize("name", ["hfen", "gmsd"])
def test_a_blur_is_worse_than_a_shading_of_the_same_psnr(name: str) -> None:
    """What PSNR cannot tell apart: lost texture, and an error without any."""
    target = pair(64, 64)[0].astype(np.float64)
    blurred = gaussian_filter(target, 1.0)
    shading = np.linspace(-1, 1, 64)[:, None] * np.ones((1, 64))
    shaded = target + shading * np.sqrt(np.mean((blurred - target) ** 2) / np.mean(shading**2))
    blurs, shades = slice_metrics(target, blurred), slice_metrics(target, shaded)
    assert blurs["psnr"] == pytest.approx(shades["psnr"])
    assert blurs[name] > 2 * shades[name]


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
    log = [np.stack([edges_by_definition(image) for image in images]) for images in (error, target)]
    assert rated["hfen"] == pytest.approx(np.linalg.norm(log[0]) / np.linalg.norm(log[1]), rel=1e-4)
    gmsd = [gmsd_by_definition(t, f, peak) for t, f in zip(target, found, strict=True)]
    assert rated["gmsd"] == pytest.approx(np.mean(gmsd), rel=1e-5)


def test_the_brightness_of_a_volume_does_not_matter() -> None:
    target, found = pair(3, 16, 16)
    dim, bright = volume_metrics(target, found), volume_metrics(100 * target, 100 * found)
    for name in ("psnr", "ssim", "nmse", "hfen", "gmsd"):
        assert dim[name] == pytest.approx(bright[name], rel=1e-5)
    assert bright["mse"] == pytest.approx(1e4 * dim["mse"], rel=1e-5)


@pytest.mark.parametrize("rate", [slice_metrics, volume_metrics])
def test_identical_images_are_perfect(rate: object) -> None:
    target = pair(12, 16)[0] if rate is slice_metrics else pair(2, 12, 16)[0]
    expected = {"psnr": LARGEST_PSNR, "ssim": 1.0, "mse": 0.0, "rmse": 0.0, "nmse": 0.0, "hfen": 0.0, "gmsd": 0.0}
    assert rate(target, target.copy()) == pytest.approx(expected)  # type: ignore[operator]
    nearly = np.where(target == target.max(), np.nextafter(target, np.float32(0)), target)
    assert 130 < rate(target, nearly)["psnr"] <= LARGEST_PSNR  # type: ignore[operator]


@pytest.mark.parametrize("rate", [slice_metrics, volume_metrics])
def test_what_is_not_a_number_is_not_perfect(rate: object) -> None:
    target, found = pair(12, 16) if rate is slice_metrics else pair(2, 12, 16)
    found.flat[17] = np.nan
    assert np.isnan(list(rate(target, found).values())).all()  # type: ignore[operator]


def test_an_empty_target_has_no_relative_error() -> None:
    rated = slice_metrics(np.zeros((9, 9)), np.ones((9, 9)))
    assert (rated["nmse"], rated["hfen"]) == (np.inf, np.inf)


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


def test_one_table_names_every_metric() -> None:
    target, found = pair(2, 16, 16)
    assert set(METRICS) == set(slice_metrics(target[0], found[0])) == set(volume_metrics(target, found))
    assert set(TABLE_METRICS) == {*METRICS, "dice"}
    assert (METRICS["psnr"].heading, METRICS["hfen"].heading) == ("PSNR (dB)", "HFEN")
    assert METRICS["gmsd"].write(0.123456) == "0.1235"


def test_a_line_has_the_metrics_that_are_there() -> None:
    row = {"step": 4.0, "val/hfen": 0.5, "val/psnr": 30.123, "val/rmse": 0.1}
    assert brief_figures(row) == "PSNR 30.12 dB, HFEN 0.5000"
    assert brief_figures({"step": 4.0}) == ""


def test_an_unknown_metric_is_refused() -> None:
    assert check_metric("val/gmsd") == check_metric("gmsd") == "gmsd"
    with pytest.raises(InputError, match=r"'lpips' is not a validation metric; choose one of psnr, ssim, .*hfen, gmsd"):
        check_metric("lpips")


def test_the_documents_table_is_this_one() -> None:
    text = (ROOT / "docs" / "methods.md").read_text()
    for name, metric in TABLE_METRICS.items():
        better = "higher" if metric.higher_is_better else "lower"
        assert f"| `{name}` | {metric.heading} | {better} | {metric.definition} |" in text


def test_whoever_only_names_metrics_imports_nothing() -> None:
    """`larmor pull` runs without PyTorch, SciPy and scikit-image; `larmor --help` without NumPy."""
    heavy = "'numpy', 'scipy', 'skimage', 'torch'"
    look = f"import sys, larmor, larmor.recon.recipe.metric; print(*{{{heavy}}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", look], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
