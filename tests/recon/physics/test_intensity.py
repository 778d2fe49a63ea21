"""Contrast and bias fields change magnitudes alone, all coils and frames alike, by (seed, epoch, index)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.polynomial import legendre
from pydantic import ValidationError

from larmor.recon.physics.augment import changes
from larmor.recon.physics.intensity import change_intensity
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.settings import AugmentConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.loading.loader import Batch
from tests.helpers import coil_scan, property_test, random_images, random_kspace

BOTH = AugmentConfig(contrast=0.4, bias=0.2)
CONFIGS = [AugmentConfig(contrast=0.4), AugmentConfig(bias=0.2), BOTH]


def samples_of(count: int, epoch: int = 0) -> np.ndarray:
    return np.stack([np.full(count, epoch), np.arange(count)], axis=1)


def coil_images(count: int, coils: int = 3, height: int = 20, width: int = 26) -> torch.Tensor:
    return torch.from_numpy(random_kspace(count, (coils, height, width)))


@settings(property_test, max_examples=20)
@given(
    st.sampled_from(CONFIGS),
    st.integers(1, 30),
    st.integers(1, 30),
    st.permutations(range(5)),
    st.integers(0, 2**31),
    st.integers(0, 1000),
)
def test_neither_the_batch_nor_the_place_in_it_matters(
    config: AugmentConfig, height: int, width: int, order: list[int], seed: int, epoch: int
) -> None:
    images, samples = random_images(5, height, width), samples_of(5, epoch)
    together = change_intensity(images, samples, config, seed)
    assert torch.equal(change_intensity(images[order], samples[order], config, seed), together[order])
    alone = change_intensity(images[:1], samples[:1], config, seed)
    assert torch.equal(alone[0], together[0])


@pytest.mark.parametrize("config", CONFIGS)
def test_all_coils_have_one_positive_factor_and_keep_their_phase(config: AugmentConfig) -> None:
    images = coil_images(4)
    factor = change_intensity(images, samples_of(4), config, 0) / images
    assert factor.real.min() > 0
    torch.testing.assert_close(factor.imag, torch.zeros_like(factor.imag), rtol=0, atol=1e-5)
    torch.testing.assert_close(factor.real, factor.real[:, :1].expand_as(factor.real), rtol=1e-4, atol=1e-5)
    flat = factor.real[:, 0].flatten(1)
    assert (flat.std(dim=1) > 1e-3).all()
    assert len(flat.mean(dim=1).unique()) == 4, "each slice its own"


def test_contrast_is_a_power_of_the_magnitude_within_its_bounds() -> None:
    images = random_images(60, 12, 14)
    changed = change_intensity(images, samples_of(60), AugmentConfig(contrast=0.4), 0)
    largest = images.amax(dim=(1, 2, 3), keepdim=True)
    torch.testing.assert_close(changed.amax(dim=(1, 2, 3), keepdim=True), largest)
    powers = []
    for before, after in zip(images / largest, changed / largest, strict=True):
        inside = (before > 0.3) & (before < 0.9)
        power = after[inside].log() / before[inside].log()
        assert power.std() < 0.02
        powers.append(float(power.mean()))
    assert 0.55 < min(powers) < 0.75
    assert 1.25 < max(powers) < 1.45


def test_a_bias_field_is_the_exponential_of_a_polynomial_of_degree_3() -> None:
    images = random_images(6, 24, 30) + 0.1
    factors = change_intensity(images, samples_of(6), AugmentConfig(bias=0.2), 0) / images
    y, x = (np.linspace(-1, 1, n) for n in (24, 30))
    terms = legendre.legvander2d(*np.meshgrid(y, x, indexing="ij"), [3, 3]).reshape(24 * 30, 16)
    for factor in factors[:, 0].double().log().numpy():
        found, *_ = np.linalg.lstsq(terms, factor.ravel(), rcond=None)
        assert np.abs(terms @ found - factor.ravel()).max() < 1e-5
        assert np.abs(found).max() <= 0.2 + 1e-5
        assert np.abs(found[1:]).max() > 0.02


def test_the_frames_of_a_stack_are_changed_together() -> None:
    still = random_images(1, 16, 18)
    frames = torch.cat([still, 0.8 * still, 0.5 * still])
    first = np.zeros((3, 2), int)
    field = change_intensity(frames, first, AugmentConfig(bias=0.3), 0)
    torch.testing.assert_close(field[1:], field[:1] * torch.tensor([0.8, 0.5]).view(2, 1, 1, 1))
    curved = change_intensity(frames, first, AugmentConfig(contrast=0.5), 0)
    power = (curved[2].amax() / curved[0].amax()).log() / np.log(0.5)
    torch.testing.assert_close(curved[2], curved[0] * 0.5**power, rtol=0, atol=1e-3)
    assert abs(power - 1) > 0.01


def test_units_of_the_source_do_not_matter_and_nothing_stays_nothing() -> None:
    images, samples = random_images(3, 12, 12), samples_of(3)
    expected = change_intensity(images, samples, BOTH, 0)
    for unit in (1e-9, 1e6):
        torch.testing.assert_close(change_intensity(unit * images, samples, BOTH, 0) / unit, expected)
    nothing = torch.zeros(2, 2, 8, 8, dtype=torch.complex64)
    assert torch.equal(change_intensity(nothing, samples_of(2), BOTH, 0), nothing)


def test_nothing_is_done_by_default_and_the_given_images_are_not_changed() -> None:
    images = random_images(2, 8, 9)
    copy = images.clone()
    assert change_intensity(images, samples_of(2), AugmentConfig(rotation=9), 0) is images
    assert changes(AugmentConfig(), 0) == (None, None)
    move, recolour = changes(AugmentConfig(bias=0.1), 0)
    assert move is None
    assert recolour is not None
    recolour(images, samples_of(2))
    assert torch.equal(images, copy)


def test_what_coils_measure_is_that_of_the_changed_image_and_the_maps_stay() -> None:
    kspace, maps = coil_scan(4, 3, 32, 40)
    batch, signal = Batch.of(kspace, samples_of(3), maps), SignalConfig(mode="complex")
    full, cpu = MaskConfig(sampling_ratio=1.0), torch.device("cpu")
    plain = prepare(batch, (32, 40), full, cpu, signal=signal)
    changed = prepare(batch, (32, 40), full, cpu, signal=signal, intensity=changes(BOTH, 0)[1])
    assert plain.maps is not None
    assert changed.maps is not None
    assert torch.equal(changed.maps, plain.maps)
    torch.testing.assert_close(changed.zero_filled, changed.target, rtol=0, atol=1e-4)
    assert (changed.target - plain.target).abs().max() > 0.02
    before, after = (torch.complex(*sample.target.unbind(1)) for sample in (plain, changed))
    bright = before.abs() > 0.1
    assert (after / before)[bright].imag.abs().max() < 1e-3, "the phase stays"


@pytest.mark.parametrize(
    "wrong", [{"elastic": 0.03}, {"elastic": -0.01}, {"contrast": 1}, {"bias": 1.5}, {"bias": float("nan")}]
)
def test_settings_out_of_bounds_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        AugmentConfig.model_validate(wrong)


@pytest.mark.parametrize("change", [{"contrast": 0.3}, {"bias": 0.1}])
def test_activity_and_attenuation_have_no_contrast(change: dict[str, float]) -> None:
    content = {"system": "drgan", "signal": {"mode": "pet"}}
    Recipe.model_validate({**content, "augment": {"elastic": 0.01}})
    with pytest.raises(ValidationError, match=r"augment\.contrast=.*activity and attenuation.*set both to 0"):
        Recipe.model_validate({**content, "augment": change})
