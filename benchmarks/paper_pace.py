"""How many images each system can see in a given time: measured on the device, corrected as the grid fills."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from cluster.grid import Cell
from recon.gan import Gan
from recon.recipe import Recipe
from recon.samples import prepare
from storage.loader import Batch
from storage.reader import SliceReader

_WARM_UP, _MEASURED = 2, 4  # generator steps


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
    return (time.perf_counter() - began) / (_MEASURED * size)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Pace:
    """Shares what is left of the time among the cells that are left, so that every system sees equally many images.

    `per_image`: height and width → seconds in which every system trains on one image, for two sizes or one; those
    between are interpolated by their pixels. `fixed`: what a cell takes besides, a guess until one is filled.
    """

    per_image: dict[tuple[int, int], float]
    fixed: float
    _spent: list[float] = field(default_factory=list)

    def cost(self, cell: Cell) -> float:
        """Seconds in which all systems train on one image."""
        pixels, costs = zip(*sorted((h * w, seconds) for (h, w), seconds in self.per_image.items()), strict=True)
        return float(np.interp(cell.size[0] * cell.size[1], pixels, costs))

    def num_images(self, cells: Sequence[Cell], seconds: float, batch: int) -> int:
        """For each system in each of `cells`, to be done in `seconds`; whole batches, 0 if there is no time."""
        free = seconds - self.fixed * len(cells)
        return max(0, int(free / sum(map(self.cost, cells))) // batch * batch)

    def took(self, cell: Cell, num_images: int, seconds: float) -> None:
        """Learn from a cell that is filled."""
        self._spent.append(max(0.0, seconds - num_images * self.cost(cell)))
        self.fixed = max(self._spent)
