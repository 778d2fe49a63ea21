"""What a training image costs, measured on the device."""

from __future__ import annotations

import time

import numpy as np
import torch

from recon.gan import Gan
from recon.recipe import Recipe
from recon.samples import prepare
from storage.loader import Batch
from storage.reader import SliceReader

_WARM_UP, _MEASURED = 5, 4  # generator steps; the fourth is recorded where CUDA graphs are wanted


def seconds_per_image(recipe: Recipe, reader: SliceReader, device: torch.device) -> float:
    """Of training, as the loop does it, without the wait for data: mean over a few steps after the first ones."""
    size = recipe.training.global_batch_size
    indices = [index % reader.info.num_slices for index in range(size)]
    batch = Batch.gather(reader.read(indices), np.array([(0, index) for index in indices]))
    gan = Gan(recipe, device)
    began = 0.0
    for step in range(_WARM_UP + _MEASURED):
        if step == _WARM_UP:
            _wait(device)
            began = time.perf_counter()
        samples = [prepare(batch, recipe.data.crop, recipe.mask, device, signal=recipe.signal)]
        if gan.critic:
            gan.train_critic(samples, step)
        gan.train_generator(samples)
    _wait(device)
    gan.close()
    return (time.perf_counter() - began) / (_MEASURED * size)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
