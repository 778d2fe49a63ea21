"""The second contrast of a sample: its own units, moved as the image, the same in every batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from larmor.recon.physics.augment import changes
from larmor.recon.physics.guide import in_own_units
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.settings import AugmentConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.loading.loader import Batch
from tests.helpers import coil_scan, random_images, random_kspace

CPU = torch.device("cpu")
MASK = MaskConfig(kind="gaussian2d", sampling_ratio=0.3)
GUIDED = SignalConfig(guide=True)
SAMPLES = np.array([(1, 4), (1, 9), (2, 3)])


def tissue() -> Tensor:
    """(3, 1, 20, 24): bright disks in dark air."""
    rows, columns = torch.meshgrid(torch.linspace(-1, 1, 20), torch.linspace(-1, 1, 24), indexing="ij")
    return random_images(3, 20, 24) * (rows**2 + columns**2 < 0.5)


def test_neither_brightness_nor_air_nor_a_spike_matters() -> None:
    images = tissue()
    found = in_own_units(images)
    torch.testing.assert_close(in_own_units(images * torch.tensor([3.0, 1e4, 1e-3]).view(-1, 1, 1, 1)), found)
    wide = in_own_units(torch.nn.functional.pad(images, (30, 30, 9, 9)))
    torch.testing.assert_close(wide[..., 9:-9, 30:-30], found)
    spiked = images.clone()
    spiked[:, :, 10, 12] = 10
    torch.testing.assert_close(in_own_units(spiked)[:, :, :9], found[:, :, :9], rtol=0.05, atol=0.05)
    assert ((found > 1).flatten(1).sum(1) <= 0.06 * (images > 0).flatten(1).sum(1)).all()


def test_an_image_of_zeros_stays() -> None:
    assert torch.equal(in_own_units(torch.zeros(2, 1, 5, 5)), torch.zeros(2, 1, 5, 5))


def test_the_guide_moves_with_the_image() -> None:
    """A slice that guides itself still does after motion; brightness changes the image alone."""
    kspace = coil_scan(1, 3, 24, 20)[0]
    config = AugmentConfig(flip=0.5, rotation=20, shift=0.1, zoom=0.1, elastic=0.02, contrast=0.5, bias=0.5)
    move, recolour = changes(config, seed=3)
    batch = Batch.of(kspace, SAMPLES, guide=kspace)
    sample = prepare(batch, (24, 20), MASK, CPU, move, GUIDED)
    still = prepare(batch, (24, 20), MASK, CPU, None, GUIDED)
    assert sample.guide is not None
    assert still.guide is not None
    assert not torch.allclose(sample.guide, still.guide, atol=0.05)
    for target, guide in zip(sample.target, sample.guide, strict=True):
        torch.testing.assert_close(guide / guide.amax(), target / target.amax(), rtol=0, atol=1e-5)
    coloured = prepare(batch, (24, 20), MASK, CPU, move, GUIDED, intensity=recolour)
    assert coloured.guide is not None
    assert torch.equal(coloured.guide, sample.guide)
    assert not torch.allclose(coloured.target, sample.target)


@pytest.mark.parametrize("coils", [1, 3])
def test_all_else_is_what_it_is_without(coils: int) -> None:
    signal = {"mode": "complex" if coils > 1 else "magnitude"}
    kspace, maps = coil_scan(coils, 3, 24, 20)
    given = None if coils == 1 else maps
    guide = random_kspace(3, kspace.shape[1:])
    plain = prepare(Batch.of(kspace, SAMPLES, given), (20, 20), MASK, CPU, signal=SignalConfig.model_validate(signal))
    guided = SignalConfig.model_validate({**signal, "guide": True})
    sample = prepare(Batch.of(kspace, SAMPLES, given, guide), (20, 20), MASK, CPU, signal=guided)
    assert sample.guide is not None
    assert sample.guide.shape == (3, 1, 20, 20)
    for name in ("target", "zero_filled", "kspace", "mask", "scale"):
        assert torch.equal(getattr(sample, name), getattr(plain, name))
    assert len(plain.measurement) == (3 if coils == 1 else 4)
    assert sample.measurement[-1] is sample.guide
    assert len(sample.measurement) == 6


def test_neither_the_batch_nor_the_place_in_it_matters() -> None:
    kspace, guide = random_kspace(3, (1, 24, 20)), random_kspace(3, (1, 24, 20), seed=1)
    whole = prepare(Batch.of(kspace, SAMPLES, guide=guide), (16, 20), MASK, CPU, signal=GUIDED).guide
    for row in range(3):
        part = [row]
        one = prepare(Batch.of(kspace[part], SAMPLES[part], guide=guide[part]), (16, 20), MASK, CPU, signal=GUIDED)
        assert whole is not None
        assert one.guide is not None
        assert torch.equal(one.guide[0], whole[row])
