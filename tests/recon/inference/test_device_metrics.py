"""Validation's metrics on a device against those of tables, which scikit-image computes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from larmor.recon.inference.device_metrics import figures_of, measured_metrics, slice_metrics_on_device
from larmor.recon.inference.metrics import LARGEST_PSNR, slice_metrics
from larmor.recon.recipe.metric import METRICS

RNG = np.random.default_rng(0)


def images(num: int, height: int, width: int) -> np.ndarray:
    return RNG.random((num, height, width)).cumsum(axis=2).astype(np.float32) / width


@pytest.mark.parametrize("shape", [(3, 40, 32), (2, 33, 47), (1, 15, 15)])
@pytest.mark.parametrize("noise", [1e-4, 0.05, 1.0])
def test_they_are_those_of_the_tables(shape: tuple[int, int, int], noise: float) -> None:
    target = images(*shape)
    found = target + noise * RNG.standard_normal(shape).astype(np.float32)
    rated = slice_metrics_on_device(torch.from_numpy(target), torch.from_numpy(found))
    for row, wanted, image in zip(rated, target, found, strict=True):
        assert row == pytest.approx(slice_metrics(wanted, image), rel=1e-6, abs=1e-9)
        assert set(row) == set(METRICS)


def test_an_image_is_rated_by_itself_to_the_bit() -> None:
    target = torch.from_numpy(images(5, 48, 40))
    found = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
    alone = [slice_metrics_on_device(target[n : n + 1], found[n : n + 1])[0] for n in range(5)]
    assert slice_metrics_on_device(target, found) == alone


def test_equal_images_have_the_largest_psnr_and_nan_stays_nan() -> None:
    target = torch.from_numpy(images(2, 20, 20))
    found = target.clone()
    found[1, 3, 3] = torch.nan
    equal, broken = slice_metrics_on_device(target, found)
    assert (equal["psnr"], equal["ssim"], equal["hfen"], equal["gmsd"]) == (LARGEST_PSNR, pytest.approx(1), 0, 0)
    assert all(np.isnan(broken[name]) for name in METRICS)


def test_a_target_without_power_has_no_relative_figure() -> None:
    (row,) = slice_metrics_on_device(torch.zeros(1, 20, 20), torch.ones(1, 20, 20))
    assert row["nmse"] == row["hfen"] == float("inf")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_finds_the_same() -> None:
    target = torch.from_numpy(images(2, 64, 48))
    found = target + 0.1 * torch.randn(target.shape)
    for gpu, cpu in zip(
        slice_metrics_on_device(target.cuda(), found.cuda()), slice_metrics_on_device(target, found), strict=True
    ):
        assert gpu == pytest.approx(cpu, rel=1e-9)


@pytest.mark.parametrize("shape", [(3, 40, 32), (4, 33, 47)])
def test_all_images_at_once_are_rated_as_one_by_one(shape: tuple[int, int, int]) -> None:
    target = torch.from_numpy(images(*shape)).double()
    found = target + 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(figures_of(target, found), measured_metrics(target, found), rtol=1e-12, atol=1e-12)


def test_nothing_is_waited_for_on_a_device() -> None:
    # a tensor without content refuses whatever would need a value on the host
    assert measured_metrics(*torch.empty(2, 3, 40, 32, device="meta")).shape == (3, 5)
