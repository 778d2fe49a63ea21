"""BART solves the same problem, where it is installed; where it is not, the error says so."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from torch import Tensor

from larmor.recon.evaluation.bart import bart_available, bart_compressed_sensing
from larmor.recon.evaluation.compressed_sensing import CompressedSensingConfig, compressed_sensing
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.masks import make_mask
from larmor.recon.physics.sense import sense_expand, undersample
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.objects.errors import InputError

needs_bart = pytest.mark.skipif(not bart_available(), reason="the BART toolbox is not installed")
SIZE = (64, 48)


def config(**changes: object) -> CompressedSensingConfig:
    return CompressedSensingConfig.model_validate({"num_iterations": 60, **changes})


@pytest.fixture
def image() -> Tensor:
    """(2, 1, 64, 48) in [0, 1]: two boxes each, of different size."""
    images = torch.zeros(2, 1, *SIZE)
    for number in range(2):
        images[number, 0, 10 : 50 - 8 * number, 8:40] = 0.5
        images[number, 0, 20:30, 16 : 24 + 4 * number] = 1.0
    return images


@pytest.fixture
def mask() -> Tensor:
    pattern = make_mask(MaskConfig(kind="gaussian2d", sampling_ratio=0.4), SIZE)
    return torch.from_numpy(pattern)[None, None].expand(2, -1, -1, -1)


def psnr(target: Tensor, found: Tensor) -> float:
    return float(-10 * torch.log10((target - found).square().mean()))


@needs_bart
@pytest.mark.parametrize("kind", ["wavelet", "total_variation"])
@pytest.mark.parametrize("signal", ["magnitude", "complex"])
def test_everything_measured_gives_the_image_back(image: Tensor, kind: str, signal: str) -> None:
    found = bart_compressed_sensing(
        fft2c(image), torch.ones(2, 1, *SIZE, dtype=torch.bool), config(kind=kind, signal=signal, weight=1e-6)
    )
    assert (found.shape, found.dtype) == (image.shape, torch.float32)
    torch.testing.assert_close(found, image, atol=2e-3, rtol=0)


@needs_bart
@pytest.mark.parametrize("kind", ["wavelet", "total_variation"])
def test_several_decibels_are_gained_over_zero_filled(image: Tensor, mask: Tensor, kind: str) -> None:
    kspace = undersample(fft2c(image), mask)
    found = bart_compressed_sensing(kspace, mask, config(kind=kind, weight=1e-3))
    assert psnr(image, found) > psnr(image, ifft2c(kspace).abs()) + 4
    assert torch.equal(found, bart_compressed_sensing(kspace, mask, config(kind=kind, weight=1e-3)))


@needs_bart
def test_coils_are_combined_by_their_maps(image: Tensor, mask: Tensor) -> None:
    ramp = torch.linspace(0.1, 1.4, SIZE[1]).expand(SIZE)
    maps = torch.stack([ramp.cos(), 1j * ramp.sin()])[None].expand(2, -1, -1, -1)
    kspace = undersample(fft2c(sense_expand(image, maps)), mask)
    settings = config(signal="complex", weight=1e-3)
    found = bart_compressed_sensing(kspace, mask, settings, maps)
    assert psnr(image, found) > psnr(image, bart_compressed_sensing(kspace, mask, settings))


@needs_bart
def test_bart_and_sigpy_agree(image: Tensor, mask: Tensor) -> None:
    pytest.importorskip("sigpy")
    kspace = undersample(fft2c(image), mask)
    settings = config(signal="complex", weight=3e-3, wavelet="haar", num_iterations=200)
    ours, theirs = compressed_sensing(kspace, mask, settings), bart_compressed_sensing(kspace, mask, settings)
    assert psnr(ours, theirs) > psnr(image, ours)
    assert psnr(ours, theirs) > 50


def test_without_bart_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    monkeypatch.setenv("PATH", "")
    assert not bart_available()
    with pytest.raises(InputError, match=r"bart is not on the PATH; install the BART toolbox"):
        bart_compressed_sensing(fft2c(image), torch.ones(2, 1, *SIZE, dtype=torch.bool), config())


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("echo begin >&2; echo 'ERROR: out of luck' >&2; exit 3", "failed with status 3: ERROR: out of luck"),
        ("exit 1", "failed with status 1: no message"),
        ("exit 0", r"image\.hdr: no such file"),
    ],
)
def test_a_failure_is_told_in_barts_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Tensor, program: str, message: str
) -> None:
    fake = tmp_path / "bart"
    fake.write_text(f"#!/bin/sh\n{program}\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    with pytest.raises(InputError, match=message):
        bart_compressed_sensing(fft2c(image), torch.ones(2, 1, *SIZE, dtype=torch.bool), config())


def test_a_wavelet_that_bart_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, image: Tensor) -> None:
    fake = tmp_path / "bart"
    fake.write_text("#!/bin/sh\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(InputError, match="BART does not know the wavelet 'db4'; choose one of haar, db1, db2"):
        bart_compressed_sensing(fft2c(image), torch.ones(2, 1, *SIZE, dtype=torch.bool), config(wavelet="db4"))
