"""PET in place of a measurement: counts, units, random streams, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from larmor.recon.physics.pet import blurred, pet_images
from larmor.recon.physics.projection import back_project, project
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.pet import PetConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError

SAMPLES = np.array([[0, 3], [1, 3]])
CONFIG = PetConfig(num_angles=60, pixel_mm=4, counts=1e5, full_counts=1e6)


def maps(size: int = 48) -> np.ndarray:
    """(2, size, size): an ellipse of activity with a hot spot, and its attenuation per cm."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    inside = (rows / (0.42 * size)) ** 2 + (columns / (0.36 * size)) ** 2 < 1
    spot = (rows - 4) ** 2 + columns**2 < (size / 8) ** 2
    return np.stack([inside + 3.0 * spot, 0.096 * inside]).astype(np.float32)


def images() -> Tensor:
    return torch.from_numpy(maps())[None].repeat(2, 1, 1, 1)


def error(found: Tensor, target: Tensor) -> float:
    return float((found - target).square().mean().sqrt() / target.square().mean().sqrt())


def test_more_counts_are_nearer_to_the_truth_and_without_noise_it_is_met() -> None:
    truth = pet_images(images(), SAMPLES, CONFIG.model_copy(update={"full_counts": None}))[0]
    target, found, sinogram = pet_images(images(), SAMPLES, CONFIG)
    many = pet_images(images(), SAMPLES, CONFIG.model_copy(update={"counts": 1e9, "full_counts": None}))[1]
    clean = back_project(project(truth, 60)[:, 0])[:, None]
    assert 2.5 < error(found, clean) / error(target, clean) < 4, "ten times the counts: √10"
    assert error(many, clean) < 0.01, "attenuation and background are taken out again"
    assert sinogram.shape == (2, 1, 60, 48)


def test_the_reconstruction_is_in_the_units_of_the_activity() -> None:
    target, found, _ = pet_images(images(), SAMPLES, CONFIG)
    for image in (target, found):
        torch.testing.assert_close(image.sum(), images()[:, 0].sum(), rtol=0.05, atol=0)


def test_the_counts_are_poisson() -> None:
    """Of a sinogram that is measured again and again, the variance is the mean, in counts."""
    config = PetConfig(num_angles=8, pixel_mm=4, counts=2e4, full_counts=None, background=0)
    samples = np.array([[epoch, 0] for epoch in range(300)])
    flat = torch.from_numpy(np.stack([maps(24)[0], np.zeros((24, 24), np.float32)]))[None].expand(300, -1, -1, -1)
    sinograms = pet_images(flat, samples, config)[2][:, 0]
    scale = 2e4 / float(sinograms.mean(dim=0).sum())
    counts = sinograms * scale
    seen = counts.mean(dim=0) > 20
    torch.testing.assert_close(
        (counts.var(dim=0) / counts.mean(dim=0))[seen].mean(), torch.tensor(1.0), rtol=0.05, atol=0
    )


def test_draws_follow_seed_epoch_and_slice_alone() -> None:
    _, first, _ = pet_images(images(), SAMPLES, CONFIG)
    _, swapped, _ = pet_images(images(), SAMPLES[::-1].copy(), CONFIG)
    torch.testing.assert_close(first, swapped.flip(0), rtol=0, atol=1e-6)
    assert not torch.equal(first[0], first[1]), "another epoch has other noise"
    _, other, _ = pet_images(images(), SAMPLES, CONFIG.model_copy(update={"seed": 1}))
    assert not torch.equal(first, other)


def sample_of(crop: tuple[int, int]) -> Sample:
    kspace = torch.from_numpy(image_to_kspace(maps()))[None].repeat(2, 1, 1, 1)
    batch = Batch.of(kspace.numpy(), SAMPLES)
    signal = SignalConfig(mode="pet", pet=CONFIG)
    return prepare(batch, crop, MaskConfig(), torch.device("cpu"), signal=signal)


@pytest.mark.parametrize("crop", [(48, 48), (40, 44)])
def test_a_sample_has_the_size_of_the_crop_and_the_scale_of_its_input(crop: tuple[int, int]) -> None:
    sample = sample_of(crop)
    assert sample.target.shape == sample.zero_filled.shape == (2, 1, *crop)
    assert sample.mask.shape == (2, 1, *crop)
    assert float(sample.zero_filled.abs().amax()) == pytest.approx(1)
    assert sample.kspace.dtype == torch.complex64


def test_other_images_than_two_are_refused() -> None:
    with pytest.raises(InputError, match=r"activity and attenuation, not 1; make them with `larmor pet simulate`"):
        pet_images(images()[:, :1], SAMPLES, CONFIG)


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"system": "drgan", "signal": {"mode": "pet"}, **sections})


def test_what_works_on_kspace_is_refused() -> None:
    assert recipe().signal.channels == 1
    for sections, message in (
        ({"generator": {"data_consistency": "hard"}}, "works on measured k-space, and signal.mode=pet has none"),
        ({"system": "larmor"}, "works on measured k-space, and signal.mode=pet has none"),
        ({"mask": {"sampling_ratio": 0.3}}, "mask: of no use with signal.mode=pet"),
        ({"signal": {"mode": "pet", "pet": {"counts": 1e7}}}, "not above counts"),
    ):
        with pytest.raises(ValidationError, match=message):
            recipe(**sections)


@pytest.mark.parametrize("fwhm", [0.0, 2.0, 3.0])
def test_smoothing_keeps_the_activity_and_has_its_width(fwhm: float) -> None:
    point = torch.zeros(1, 1, 41, 41)
    point[..., 20, 20] = 1
    found = blurred(point, fwhm)[0, 0]
    assert float(found.sum()) == pytest.approx(1, abs=1e-4)
    variance = float((found.sum(0) * (torch.arange(41) - 20) ** 2).sum())
    assert variance == pytest.approx(fwhm**2 / (8 * math.log(2)), rel=0.01, abs=1e-6)
