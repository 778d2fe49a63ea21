"""Compressed sensing returns what was measured fully, and gains where it was not."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from torch import Tensor

from larmor.recon.evaluation.compressed_sensing import CompressedSensingConfig, compressed_sensing
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.samples import centre_fit, normalize
from larmor.recon.physics.sense import sense_expand, sense_reduce, undersample
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.examples.phantom import phantom_volume
from larmor.storage.objects.errors import InputError

KINDS = ("wavelet", "total_variation")


def config(**changes: object) -> CompressedSensingConfig:
    return CompressedSensingConfig.model_validate({"num_iterations": 40, **changes})


@pytest.fixture(scope="module")
def phantom() -> Tensor:
    """A coronal slice of a phantom (1, 1, 128, 128) in [0, 1]."""
    volume = phantom_volume(np.random.default_rng(0))
    image = torch.from_numpy(volume[:, 64, ::-1].T.copy())[None, None]
    return normalize(centre_fit(image, (128, 128)))[0]


@pytest.fixture(scope="module")
def mask() -> Tensor:
    pattern = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.3), (128, 128))
    return torch.from_numpy(pattern)[None, None]


def random_image(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def coil_maps(num_coils: int, height: int, width: int) -> Tensor:
    """Smooth complex maps (1, coil, height, width), whose squares sum to 1."""
    y, x = torch.meshgrid(torch.linspace(-1, 1, height), torch.linspace(-1, 1, width), indexing="ij")
    angles = torch.arange(num_coils) * 2 * torch.pi / num_coils
    distance = (y - angles.sin()[:, None, None]) ** 2 + (x - angles.cos()[:, None, None]) ** 2
    maps = torch.polar(torch.exp(-distance / 2), angles[:, None, None] + x)
    return (maps / torch.linalg.vector_norm(maps, dim=0))[None]


def psnr(target: Tensor, image: Tensor) -> float:
    return float(-10 * torch.log10((target - image).square().mean()))


def roughness(image: Tensor) -> float:
    return float(image.diff(dim=-1).abs().sum() + image.diff(dim=-2).abs().sum())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(32, 24), (33, 27)])
def test_everything_measured_gives_the_image_back(kind: str, size: tuple[int, int]) -> None:
    pytest.importorskip("sigpy")
    image = random_image(2, 1, *size)
    everything = torch.ones(2, 1, *size, dtype=torch.bool)
    found = compressed_sensing(fft2c(image), everything, config(kind=kind, weight=0, num_iterations=20))
    assert (found.shape, found.dtype, found.device.type) == ((2, 1, *size), torch.float32, "cpu")
    torch.testing.assert_close(found, image, atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_complex_image_gives_its_magnitude_back(kind: str) -> None:
    pytest.importorskip("sigpy")
    image = torch.polar(random_image(1, 1, 32, 24), 6 * random_image(1, 1, 32, 24, seed=1))
    everything = torch.ones(1, 1, 32, 24, dtype=torch.bool)
    settings = config(kind=kind, weight=0, num_iterations=20, signal="complex")
    found = compressed_sensing(fft2c(image), everything, settings)
    torch.testing.assert_close(found, image.abs(), atol=1e-3, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("signal", "gain"), [("magnitude", 8), ("complex", 4)])
def test_several_decibels_are_gained_over_zero_filled(
    phantom: Tensor, mask: Tensor, kind: str, signal: str, gain: float
) -> None:
    pytest.importorskip("sigpy")
    kspace = undersample(fft2c(phantom), mask)
    found = compressed_sensing(kspace, mask, config(kind=kind, signal=signal))
    assert psnr(phantom, found) > psnr(phantom, ifft2c(kspace).abs()) + gain


@pytest.mark.parametrize("kind", KINDS)
def test_coils_are_combined_by_their_maps(phantom: Tensor, mask: Tensor, kind: str) -> None:
    pytest.importorskip("sigpy")
    maps = coil_maps(4, 128, 128)
    kspace = undersample(fft2c(sense_expand(phantom, maps)), mask)
    found = compressed_sensing(kspace, mask, config(kind=kind, signal="complex"), maps)
    one_coil = compressed_sensing(undersample(fft2c(phantom), mask), mask, config(kind=kind, signal="complex"))
    assert found.shape == phantom.shape
    assert psnr(phantom, found) > psnr(phantom, sense_reduce(ifft2c(kspace), maps).abs()) + 4
    assert psnr(phantom, found) > psnr(phantom, one_coil)  # four coils see more than one
    # maps and k-space three times as large make the same problem, if the weight is nine times as large
    settings = config(kind=kind, signal="complex", weight=9 * config().weight)
    torch.testing.assert_close(compressed_sensing(3 * kspace, mask, settings, 3 * maps), found, atol=1e-4, rtol=0)


def test_coils_without_maps_are_combined_by_the_root_sum_of_squares(phantom: Tensor, mask: Tensor) -> None:
    pytest.importorskip("sigpy")
    kspace = undersample(fft2c(sense_expand(phantom, coil_maps(2, 128, 128))), mask)
    settings = config(signal="complex", num_iterations=5)
    parts = [compressed_sensing(kspace[:, [coil]], mask, settings) for coil in range(2)]
    expected = torch.cat(parts, dim=1).square().sum(dim=1, keepdim=True).sqrt()
    torch.testing.assert_close(compressed_sensing(kspace, mask, settings), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_the_result_depends_on_its_arguments_alone(phantom: Tensor, mask: Tensor, kind: str) -> None:
    pytest.importorskip("sigpy")
    settings = config(kind=kind, num_iterations=5)
    kspace = fft2c(phantom)
    np.random.seed(1)
    state = np.random.get_state(legacy=False)["state"]["key"].copy()
    found = compressed_sensing(undersample(kspace, mask), mask, settings)
    np.testing.assert_array_equal(np.random.get_state(legacy=False)["state"]["key"], state)
    # neither on what stands where nothing was measured, nor on the rest of the batch
    batch = torch.cat([kspace.flip(-1), torch.where(mask, kspace, torch.nan)])
    assert torch.equal(compressed_sensing(batch, mask.expand(2, -1, -1, -1), settings)[1:], found)


@pytest.mark.parametrize("kind", KINDS)
def test_a_larger_weight_gives_a_smoother_image(phantom: Tensor, mask: Tensor, kind: str) -> None:
    pytest.importorskip("sigpy")
    kspace = undersample(fft2c(phantom), mask)
    settings = [config(kind=kind, weight=weight) for weight in (1e-4, 1e-3, 1e-2)]
    found = [roughness(compressed_sensing(kspace, mask, setting)) for setting in settings]
    assert found == sorted(found, reverse=True)
    assert found[0] > 1.1 * found[2]


@pytest.mark.parametrize("kind", KINDS)
def test_a_faint_image_is_found_too(phantom: Tensor, mask: Tensor, kind: str) -> None:
    pytest.importorskip("sigpy")
    kspace = undersample(fft2c(phantom), mask) / 1000
    found = 1000 * compressed_sensing(kspace, mask, config(kind=kind, weight=1e-6))
    assert psnr(phantom, found) > psnr(phantom, 1000 * ifft2c(kspace).abs()) + 4


def test_no_signal_gives_no_image() -> None:
    pytest.importorskip("sigpy")
    mask = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    for kind in KINDS:
        found = compressed_sensing(torch.zeros(1, 1, 16, 16, dtype=torch.complex64), mask, config(kind=kind))
        assert torch.equal(found, torch.zeros(1, 1, 16, 16))


def test_what_does_not_fit_is_refused() -> None:
    kspace, mask = torch.zeros(2, 3, 16, 16, dtype=torch.complex64), torch.ones(2, 1, 16, 16, dtype=torch.bool)
    with pytest.raises(InputError, match=r"a mask of \(2, 1, 16, 16\)"):
        compressed_sensing(kspace[:1], mask, config())
    with pytest.raises(InputError, match="signal=magnitude with 3 coils"):
        compressed_sensing(kspace, mask, config())
    with pytest.raises(InputError, match="signal=magnitude with 1 coils"):
        compressed_sensing(kspace[:, :1], mask, config(), kspace[:, :1])
    with pytest.raises(InputError, match=r"maps of shape \(2, 1, 16, 16\) do not fit"):
        compressed_sensing(kspace, mask, config(signal="complex"), kspace[:, :1])
    pytest.importorskip("sigpy")
    with pytest.raises(InputError, match="wavelet 'db99' is unknown"):
        compressed_sensing(kspace[:, :1], mask, config(wavelet="db99"))


def test_without_sigpy_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigpy", None)
    kspace, mask = torch.zeros(1, 1, 16, 16, dtype=torch.complex64), torch.ones(1, 1, 16, 16, dtype=torch.bool)
    with pytest.raises(InputError, match=r"needs SigPy .* pip install 'larmor-mri\[classical\]'"):
        compressed_sensing(kspace, mask, config())


@pytest.mark.parametrize("wrong", [{"kind": "curvelet"}, {"weight": -1}, {"num_iterations": 0}, {"wavelets": "db4"}])
def test_settings_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        config(**wrong)
