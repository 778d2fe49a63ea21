"""What a model sees of measured k-space is what it saw in training, where the target was known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from recon.inference import Physics, reconstruct_sample
from recon.masks import MaskConfig, make_mask
from recon.measured import measured_sample
from recon.model import Model
from recon.samples import prepare
from recon.signal import SignalConfig
from storage.loader import Batch
from storage.volumes import image_to_kspace
from tests.helpers import coil_scan, ellipsoid, small_recipe

CPU = torch.device("cpu")
SIZE = (40, 36)
SAMPLES = np.array([(0, 0), (0, 1)])
MASK = MaskConfig(kind="gaussian2d", sampling_ratio=0.15)


def model_of(signal: SignalConfig, consistency: str) -> Model:
    recipe = small_recipe(
        data={"url": "unused", "crop": SIZE},
        signal=signal.model_dump(),
        generator={"width": 4, "data_consistency": consistency},
    )
    return Model(torch.nn.Identity(), Physics(SIZE, MASK, signal), recipe, {}, Path("model"))


@pytest.mark.parametrize("consistency", ["none", "hard"])
@pytest.mark.parametrize("mode", ["magnitude", "complex sense", "complex rss"])
def test_it_is_what_training_sees(mode: str, consistency: str) -> None:
    """The same zero-filled image, k-space and units: nothing of the target is in them."""
    if (mode, consistency) == ("complex rss", "hard"):
        pytest.skip("there is no such model")
    kind, _, coils = mode.partition(" ")
    signal = SignalConfig.model_validate({"mode": kind, **({"coils": coils} if coils else {})})
    bright = np.array([1, 70], np.float32)[:, None, None, None]
    maps = None
    if kind == "magnitude":
        kspace = image_to_kspace(3 + ellipsoid((36, 6, 40))[:, 2:4].transpose(1, 2, 0))[:, None] * bright
    else:
        scan, maps = coil_scan(3, 2, *SIZE)
        kspace = scan * bright
    whole = prepare(Batch.of(kspace, SAMPLES, maps), SIZE, MASK, CPU, signal=signal)
    measured = measured_sample(
        Batch.of(kspace * make_mask(MASK, SIZE), SAMPLES, maps), model_of(signal, consistency), CPU
    )
    torch.testing.assert_close(measured.zero_filled, whole.zero_filled, rtol=0, atol=1e-5)
    torch.testing.assert_close(measured.scale, whole.scale)
    if consistency == "hard" or kind == "complex":
        torch.testing.assert_close(measured.kspace, whole.kspace, rtol=0, atol=1e-4)
    # what a method makes of both comes out in the same intensities
    results = [
        reconstruct_sample({"doubled": lambda sample: 2 * sample.zero_filled}, each, (0, 1))
        for each in (measured, whole)
    ]
    bright_images = []
    for result in results:
        low, high = result.scale.T[:, :, None, None]
        bright_images.append(result.images["doubled"] * (high - low) + low)
    np.testing.assert_allclose(bright_images[0], bright_images[1], rtol=1e-3, atol=1e-2)
