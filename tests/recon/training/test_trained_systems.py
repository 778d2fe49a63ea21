"""What a short training has to show of the systems that say what they are trained on."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from larmor.recon.networks.conv_lstm import ConvLstmStage
from larmor.recon.physics.fourier import fft2c
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.recipe.signal import SignalConfig
from larmor.recon.training.gan import Gan
from larmor.storage.examples.cine import cine_frames, draw_heart
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


def trained(
    system: str,
    steps: int,
    samples: Callable[[Recipe, int], Sample] | None = None,
    changed: Callable[[Gan], object] = lambda gan: None,
    **sections: Any,
) -> tuple[Recipe, torch.nn.Module]:
    """`samples` gives the batch of a step in place of heads; `changed` is called with the untrained GAN."""
    torch.set_num_threads(1)
    training = {"num_steps": steps, "global_batch_size": BATCH, "backend": "plain", "zero_stage": 0}
    recipe = small_recipe(system=system, training={"schedule": "cosine", **training}, **sections)
    gan = Gan(recipe, CPU)
    changed(gan)
    for step in range(steps):
        gan.set_learning_rates(step)
        gan.train_generator([(samples or head_sample)(recipe, step)])
    return recipe, gan.whole.eval()


def head_sample(recipe: Recipe, step: int) -> Sample:
    return prepare(heads(step, BATCH), (SIZE, SIZE), recipe.mask, CPU, signal=recipe.signal)


def error(image: Tensor, sample: Sample) -> float:
    return float((image - sample.target).square().mean())


RICIAN: dict[str, Any] = {
    "generator": {"width": 16},
    "mask": {"kind": "gaussian2d", "sampling_ratio": 1.0},
    "signal": {"noise": (0.0, 0.1)},
}


def with_gaussian_noise(recipe: Recipe, step: int) -> Sample:
    """Heads with noise of as many levels, but added to the magnitude: half of the air is below zero."""
    clean = prepare(heads(step, BATCH), (SIZE, SIZE), recipe.mask, CPU)
    random = torch.Generator().manual_seed(step)
    level = 0.1 * torch.rand(BATCH, 1, 1, 1, generator=random)
    noisy = clean.target + level * torch.randn(clean.target.shape, generator=random)
    return replace(clean, zero_filled=noisy, kspace=fft2c(noisy.to(torch.complex64)))


def test_a_twin_trained_on_gaussian_noise_keeps_more_of_the_bias_of_rician_air() -> None:
    """The noise model matters: who has seen magnitudes of noise knows best that bright air is dark."""
    recipe, rician = trained("rician_cnn", 300, **RICIAN)
    _, gaussian = trained("rician_cnn", 300, with_gaussian_noise, **RICIAN)
    for level in (0.05, 0.1):
        signal = recipe.signal.with_noise(level, level)
        sample = prepare(heads(10**6, 8), (SIZE, SIZE), recipe.mask, CPU, signal=signal)
        air = sample.target < 1e-4
        with torch.no_grad():
            left, kept = (float(model(*sample.measurement)[air].mean()) for model in (rician, gaussian))
        bias = float(sample.zero_filled[air].mean())
        assert left < 0.2 * bias, (level, left, bias)
        assert kept > 2 * left, (level, kept, left)


def test_one_model_removes_rician_noise_of_every_level_without_being_told() -> None:
    """At every level it is nearer to the target than its input, and air is darker than the mean of Rician air."""
    recipe, generator = trained("rician_cnn", 300, **RICIAN)
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


STACK = 8


def hearts(subject: int, first: int) -> Batch:
    """The middle 64×64 pixels of eight frames of a beating heart, from frame `first` on, as one stack."""
    frames = cine_frames(draw_heart(np.random.default_rng([0, subject])))
    chosen = np.roll(frames, -first, axis=0)[:STACK, None, 32:96, 32:96].astype(np.float32)
    samples = np.stack([np.full(STACK, subject), np.arange(STACK)], axis=1)
    return Batch.of(image_to_kspace(chosen).astype(np.complex64), samples)


def heart_sample(recipe: Recipe, step: int) -> Sample:
    return prepare(hearts(step % 10, step), (64, 64), recipe.mask, CPU, stack=STACK)


def frame_by_frame(gan: Gan) -> None:
    """The same layers and as many weights, but the state of a frame is not that of the one before."""
    for stage in gan.whole.modules():
        if isinstance(stage, ConvLstmStage):
            stage.stack = 1


def test_a_series_is_worth_more_than_its_frames_one_by_one() -> None:
    """With the frames before it a frame is nearer to the target than alone, and with shared views than those are."""

    def result(method: str, changed: Callable[[Gan], object] = lambda gan: None) -> float:
        generator = {"width": 8, "start": {"method": method}}
        recipe, network = trained(
            "conv_lstm", 200, heart_sample, changed, generator=generator, mask={"sampling_ratio": 0.25}
        )
        tests = [heart_sample(recipe, step) for step in (10**6 + 18, 10**6 + 29)]
        with torch.no_grad():
            return sum(error(network(*sample.measurement), sample) for sample in tests) / len(tests)

    alone, series = result("none", frame_by_frame), result("none")
    assert series < 0.9 * alone
