"""Samples of several coils: target, zero-filled image and k-space belong together through the maps."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch

from larmor.recon.networks.data_consistency import DataConsistency, Measured
from larmor.recon.physics.augment import augment
from larmor.recon.physics.fourier import fft2c, ifft2c
from larmor.recon.physics.samples import Sample, denormalize, prepare
from larmor.recon.physics.sense import channels_to_complex, complex_to_channels, sense_expand, sense_reduce
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.settings import AugmentConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError
from tests.helpers import coil_scan

CPU = torch.device("cpu")
SENSE = SignalConfig(mode="complex", coils="sense")
MASK = MaskConfig(kind="gaussian2d", sampling_ratio=0.4)
SIZE = (40, 36)


def batch_of(*coils: int) -> Batch:
    """One slice for each number of coils."""
    scans = [coil_scan(number, 1, *SIZE, seed=seed) for seed, number in enumerate(coils)]
    samples = np.array([(1, place) for place in range(len(coils))])
    return Batch.gather([kspace[0] for kspace, _ in scans], samples, maps=[maps[0] for _, maps in scans])


def prepared(batch: Batch, crop: tuple[int, int] = SIZE, settings: AugmentConfig | None = None) -> Sample:
    change = partial(augment, config=settings, seed=7) if settings else None
    return prepare(batch, crop, MASK, CPU, change, SENSE)


CROPS = [SIZE, (30, 28), (48, 40), (31, 50)]


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("coils", [(4, 4), (4, 1, 2)])
def test_the_measurement_is_that_of_the_target(coils: tuple[int, ...], crop: tuple[int, int]) -> None:
    sample = prepared(batch_of(*coils), crop)
    assert sample.maps is not None
    assert sample.maps.shape == sample.kspace.shape == (len(coils), 4, *crop)
    assert sample.target.shape == sample.zero_filled.shape == (len(coils), 2, *crop)
    target = channels_to_complex(sample.target)
    largest = channels_to_complex(sample.zero_filled).abs().amax(dim=(1, 2, 3))
    torch.testing.assert_close(largest, torch.ones(len(coils)))
    measured = fft2c(sense_expand(target, sample.maps)) * sample.mask
    torch.testing.assert_close(sample.kspace, measured, rtol=0, atol=2e-5)
    zero_filled = complex_to_channels(sense_reduce(ifft2c(sample.kspace), sample.maps))
    torch.testing.assert_close(sample.zero_filled, zero_filled, rtol=0, atol=1e-6)


def test_undersampling_through_the_coils_and_back_is_adjoint() -> None:
    """⟨A x, y⟩ = ⟨x, Aᴴ y⟩ for the maps and masks that a sample carries, padded coils included."""
    sample = prepared(batch_of(4, 2))
    rng = torch.Generator().manual_seed(0)
    x = torch.randn((2, 1, *SIZE), dtype=torch.complex64, generator=rng)
    y = torch.randn(sample.kspace.shape, dtype=torch.complex64, generator=rng)
    forward = fft2c(sense_expand(x, sample.maps)) * sample.mask
    backward = sense_reduce(ifft2c(y * sample.mask), sample.maps)
    torch.testing.assert_close(torch.vdot(forward.flatten(), y.flatten()), torch.vdot(x.flatten(), backward.flatten()))


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_data_consistency_leaves_the_target_alone_and_helps_the_zero_filled_image(kind: str) -> None:
    sample = prepared(batch_of(4, 2, 1))
    layer = DataConsistency(kind)  # type: ignore[arg-type]
    measured = Measured(sample.kspace, sample.mask, sample.maps, sample.target.shape[1])
    torch.testing.assert_close(layer(sample.target, measured), sample.target, rtol=0, atol=1e-5)
    before = (sample.zero_filled - sample.target).square().sum(dim=(1, 2, 3))
    after = (layer(sample.zero_filled, measured) - sample.target).square().sum(dim=(1, 2, 3))
    assert bool((after[:2] < before[:2]).all()), "coils say more than a zero-filled image keeps"
    torch.testing.assert_close(after[2], before[2]), "of one coil it has all"


@pytest.mark.parametrize(
    ("settings", "limit"), [(AugmentConfig(flip=1.0), 1e-5), (AugmentConfig(rotation=20, shift=0.1, zoom=0.1), 0.02)]
)
def test_maps_move_with_the_image(settings: AugmentConfig, limit: float) -> None:
    batch = batch_of(4, 2, 1)
    still, moved = prepared(batch), prepared(batch, settings=settings)
    assert moved.maps is not None
    assert not torch.allclose(moved.target, still.target, atol=0.1)
    norm = torch.linalg.vector_norm(moved.maps, dim=1)
    torch.testing.assert_close(norm, (norm > 0.5).float(), rtol=0, atol=1e-5)
    predicted = fft2c(sense_expand(channels_to_complex(moved.target), moved.maps)) * moved.mask
    error = torch.linalg.vector_norm(predicted - moved.kspace) / torch.linalg.vector_norm(moved.kspace)
    assert error < limit
    if limit < 1e-3:
        bright = [denormalize(sample.target, sample.scale) for sample in (moved, still)]
        torch.testing.assert_close(bright[0], bright[1].flip(-1), rtol=1e-5, atol=1e-3)


def test_a_slices_sample_does_not_depend_on_its_batch() -> None:
    whole, alone = prepared(batch_of(4, 2)), prepared(batch_of(4))
    torch.testing.assert_close(whole.target[:1], alone.target)
    torch.testing.assert_close(whole.kspace[:1], alone.kspace)


def test_coils_without_maps_are_refused() -> None:
    kspace, _ = coil_scan(2, 1, *SIZE)
    with pytest.raises(InputError, match=r"2 coils needs their sensitivity maps; convert .* --sensitivity-maps"):
        prepare(Batch.of(kspace, np.array([(0, 0)])), SIZE, MASK, CPU, signal=SENSE)
    one, _ = coil_scan(1, 1, *SIZE)
    assert prepare(Batch.of(one, np.array([(0, 0)])), SIZE, MASK, CPU, signal=SENSE).maps is None
