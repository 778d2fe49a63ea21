"""Noise in the measurement: its distribution, and that it is reproducible and leaves the target as it is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from pydantic import ValidationError

from larmor.recon.physics.noise import measurement_noise
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch
from tests.helpers import random_kspace

CPU = torch.device("cpu")
FULL = MaskConfig(kind="gaussian2d", sampling_ratio=1.0)
THIRD = MaskConfig(kind="gaussian2d", sampling_ratio=0.3)
LEVEL = 0.05


def prepared(mask: MaskConfig, samples: list[tuple[int, int]], num_coils: int = 1, **signal: Any) -> Sample:
    kspace = np.concatenate([random_kspace(1, (num_coils, 24, 30), index) for _, index in samples])
    return prepare(Batch.of(kspace, np.array(samples)), (24, 30), mask, CPU, signal=SignalConfig(**signal))


def disc(size: int, value: float) -> Batch:
    """A bright disc on air."""
    rows, columns = np.mgrid[:size, :size] - size // 2
    image = np.where(rows**2 + columns**2 < (size // 4) ** 2, value, 0).astype(np.float32)
    return Batch.of(image_to_kspace(image)[None, None].astype(np.complex64), np.array([(0, 0)]))


@pytest.mark.parametrize("coils", [1, 3])
@pytest.mark.parametrize("signal", [{}, {"mode": "complex", "coils": "rss"}])
def test_without_noise_nothing_changes(coils: int, signal: dict[str, Any]) -> None:
    samples = [(0, 3), (1, 4)]
    plain, zero = prepared(THIRD, samples, coils, **signal), prepared(THIRD, samples, coils, noise=(0, 0), **signal)
    for name in ("target", "zero_filled", "kspace", "mask", "scale"):
        assert torch.equal(getattr(plain, name), getattr(zero, name))


def test_noise_is_in_the_measured_points_alone_and_not_in_the_target() -> None:
    noisy, clean = (prepared(THIRD, [(0, 3)], noise=(level, level)) for level in (LEVEL, 0))
    assert (noisy.kspace[~noisy.mask] == 0).all()
    scaled = [sample.target * sample.scale[:, 1].view(-1, 1, 1, 1) for sample in (noisy, clean)]
    torch.testing.assert_close(*scaled)
    assert (noisy.kspace * noisy.scale[0, 1] - clean.kspace * clean.scale[0, 1])[noisy.mask].abs().min() > 0


def test_noise_depends_on_seed_epoch_and_slice_alone() -> None:
    noise: dict[str, Any] = {"noise": (0.01, 0.1)}
    together = prepared(THIRD, [(0, 3), (1, 3), (0, 4)], **noise)
    for place, sample in enumerate([(0, 3), (1, 3), (0, 4)]):
        alone = prepared(THIRD, [sample], **noise)
        assert torch.equal(together.kspace[place : place + 1], alone.kspace)
    assert not torch.equal(together.kspace[0], together.kspace[1]), "an epoch has noise of its own"
    other = prepared(THIRD, [(0, 3)], noise_seed=1, **noise)
    assert not torch.equal(together.kspace[:1], other.kspace)


def test_a_coil_that_is_not_there_has_no_noise() -> None:
    kspace = torch.from_numpy(random_kspace(2, (3, 8, 8), 0))
    kspace[0, 2] = 0
    samples, ones = np.array([(0, 0), (0, 1)]), torch.ones(2)
    noise = measurement_noise(SignalConfig(noise=(0.1, 0.1)), samples, kspace, ones)
    assert (noise[0, 2] == 0).all()
    assert noise[1, 2].abs().min() > 0
    fewer = measurement_noise(SignalConfig(noise=(0.1, 0.1)), samples[:1], kspace[:1, :2], ones[:1])
    assert torch.equal(fewer, noise[:1, :2]), "whatever the other slices of a batch have"


def test_magnitudes_are_rician() -> None:
    """Over air the mean is σ√(π/2), and E[m²] = A² + 2σ² wherever the image is A (Gudbjartsson & Patz 1995)."""
    size, value = 256, 40.0
    sample = prepare(disc(size, value), (size, size), FULL, CPU, signal=SignalConfig(noise=(LEVEL, LEVEL)))
    image = (sample.zero_filled * sample.scale[0, 1])[0, 0] / value
    inside = (sample.target[0, 0] * sample.scale[0, 1]) > value / 2
    count = int((~inside).sum())
    assert image[~inside].mean() == pytest.approx(LEVEL * math.sqrt(math.pi / 2), abs=4 * LEVEL / math.sqrt(count))
    assert image[~inside].square().mean() == pytest.approx(2 * LEVEL**2, rel=0.03)
    assert image[inside].square().mean() == pytest.approx(1 + 2 * LEVEL**2, rel=0.005)


def test_levels_are_drawn_uniformly_for_each_image() -> None:
    samples = np.array([(0, index) for index in range(400)])
    kspace, largest = torch.ones(400, 1, 16, 16, dtype=torch.complex64), torch.full((400,), 2.0)
    noise = measurement_noise(SignalConfig(noise=(0.1, 0.3)), samples, kspace, largest)
    levels = torch.view_as_real(noise).square().mean(dim=(1, 2, 3, 4)).sqrt() / 2
    assert levels.min() == pytest.approx(0.1, abs=0.02)
    assert levels.max() == pytest.approx(0.3, abs=0.03)
    assert levels.mean() == pytest.approx(0.2, abs=0.01)


@pytest.mark.parametrize("noise", [(-0.1, 0.1), (0.2, 0.1), (0, 2), (0, float("nan"))])
def test_noise_that_is_no_range_is_refused(noise: tuple[float, float]) -> None:
    with pytest.raises(ValidationError, match="is no range of standard deviations"):
        SignalConfig(noise=noise)
