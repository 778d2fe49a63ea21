"""What a short training has to show of the systems that say what they are trained on."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.signal import SignalConfig
from larmor.recon.training.gan import Gan
from larmor.storage.formats.volumes import image_to_kspace
from larmor.storage.loading.loader import Batch
from tests.helpers import small_recipe

pytestmark = pytest.mark.slow
CPU = torch.device("cpu")
SIZE = 48
BATCH = 4


def heads(seed: int, count: int) -> Batch:
    """A few ellipses within an ellipse, on air."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[:SIZE, :SIZE] - SIZE // 2
    images = np.zeros((count, 1, SIZE, SIZE), np.float32)
    for image in images[:, 0]:
        for brightness, reach in ((0.6, 0.36), *(((random.uniform(-0.4, 0.4)), random.uniform(0.05, 0.2)),) * 4):
            centre = random.uniform(-0.15, 0.15, 2) * SIZE * (reach < 0.3)
            turn, squash = random.uniform(0, math.pi), random.uniform(0.6, 1)
            along = (rows - centre[0]) * math.cos(turn) + (columns - centre[1]) * math.sin(turn)
            across = (columns - centre[1]) * math.cos(turn) - (rows - centre[0]) * math.sin(turn)
            image[along**2 + (across / squash) ** 2 < (reach * SIZE) ** 2] += brightness
    samples = np.stack([np.full(count, seed), np.arange(count)], axis=1)
    return Batch.of(image_to_kspace(images.clip(0)).astype(np.complex64), samples)


def trained(system: str, steps: int, **sections: Any) -> tuple[Recipe, torch.nn.Module]:
    torch.set_num_threads(1)
    training = {"num_steps": steps, "global_batch_size": BATCH, "backend": "plain", "zero_stage": 0}
    recipe = small_recipe(system=system, training={"schedule": "cosine", **training}, **sections)
    gan = Gan(recipe, CPU)
    for step in range(steps):
        gan.set_learning_rates(step)
        gan.train_generator([prepare(heads(step, BATCH), (SIZE, SIZE), recipe.mask, CPU, signal=recipe.signal)])
    return recipe, gan.whole.eval()


def error(image: Tensor, sample: Sample) -> float:
    return float((image - sample.target).square().mean())


def test_one_model_removes_rician_noise_of_every_level_without_being_told() -> None:
    """At every level it is nearer to the target than its input, and air is darker than the mean of Rician air."""
    recipe, generator = trained(
        "rician_cnn",
        300,
        generator={"width": 16},
        mask={"kind": "gaussian2d", "sampling_ratio": 1.0},
        signal={"noise": (0.0, 0.1)},
    )
    for level in (0.02, 0.05, 0.1):
        signal = recipe.signal.with_noise(level, level)
        sample = prepare(heads(10**6, 8), (SIZE, SIZE), recipe.mask, CPU, signal=signal)
        with torch.no_grad():
            found = generator(*sample.measurement)
        assert error(found, sample) < error(sample.zero_filled, sample), level
        air = sample.target < 1e-4
        largest = float(sample.target.amax(dim=(1, 2, 3)).mean())
        assert float(sample.zero_filled[air].mean()) == pytest.approx(
            level * largest * math.sqrt(math.pi / 2), rel=0.05
        )
        assert float(found[air].mean()) < 0.8 * float(sample.zero_filled[air].mean()), level


def test_a_denoiser_that_saw_no_mask_serves_every_mask() -> None:
    _, generator = trained("idpcnn", 300, generator={"width": 16, "turns": 60})
    ratios = {
        "gaussian2d": (0.2, 0.4),
        "radial": (0.2, 0.4),
        "gaussian1d": (0.3, 0.5),
    }  # of 10 columns nothing is gained
    for kind, tried in ratios.items():
        for ratio in tried:
            mask = MaskConfig(kind=kind, sampling_ratio=ratio)
            sample = prepare(heads(10**6, 4), (SIZE, SIZE), mask, CPU, signal=SignalConfig())
            with torch.no_grad():
                found = generator(*sample.measurement)
            assert error(found, sample) < 0.8 * error(sample.zero_filled, sample), (kind, ratio)
