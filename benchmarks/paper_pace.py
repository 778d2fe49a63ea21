"""What a training image costs at full width: `python benchmarks/paper_pace.py --device cuda [--size 64x128]`.

For each system of the paper's grid, on noise: milliseconds per image of a training step, how much of it the host takes
to launch the work, and the operations per second that come of it. `--set` changes any key for all,
such as `training.channels_last=true`.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from larmor.recon.engines.device import choose_device
from larmor.recon.physics.samples import prepare
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.flops import flops_per_step
from larmor.recon.training.gan import Gan
from larmor.storage.loading.loader import Batch

_WARM_UP, _MEASURED = 5, 4  # generator steps; the fourth is recorded where CUDA graphs are wanted


class Cost(NamedTuple):
    """Seconds of one image in training, and of these until the host has launched it."""

    seconds: float
    launched: float


def cost_of_image(recipe: Recipe, device: torch.device) -> Cost:
    """Of training, as the loop does it, without the wait for data: mean over a few steps after the first ones."""
    size, rng = recipe.training.global_batch_size, np.random.default_rng(0)
    noise = rng.standard_normal((size, 1, *recipe.data.crop), dtype=np.float32).astype(np.complex64)
    batch = Batch.of(noise, np.array([(0, index) for index in range(size)]))
    gan = Gan(recipe, device)
    began = 0.0
    for step in range(_WARM_UP + _MEASURED):
        if step == _WARM_UP:
            _wait(device)
            began = time.perf_counter()
        samples = [prepare(batch, recipe.data.crop, recipe.mask, device, signal=recipe.signal)]
        gan.train_critics(samples, step)
        gan.train_generator(samples)
    launched = time.perf_counter() - began
    _wait(device)
    seconds = time.perf_counter() - began
    gan.close()
    return Cost(seconds / (_MEASURED * size), launched / (_MEASURED * size))


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def main() -> None:
    from larmor.cluster.comparison.grid import cells, experiments, load_grid
    from larmor.cluster.experiments.experiment import parse_override

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--systems", nargs="*", default=[], help="all of the grid's if not given")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    options = parser.parse_args()
    grid, device = load_grid("paper", {}), choose_device(options.device)
    grid = grid.model_copy(update={"overrides": {**grid.overrides, **dict(map(parse_override, options.set))}})
    cell = next(each for each in cells(grid) if str(each).startswith(options.size))
    print(
        f"{torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}, {cell}"
    )
    print(f"{'':<20} ms/image  of it launching  TFLOP/s")
    for name, recipe in experiments(grid, cell, "pace", "none", "none").items():
        if not options.systems or name in options.systems:
            cost = cost_of_image(recipe, device)
            rate = flops_per_step(recipe) / recipe.training.global_batch_size / cost.seconds / 1e12
            print(f"{name:<20} {1000 * cost.seconds:8.2f}  {1000 * cost.launched:15.2f}  {rate:7.3g}", flush=True)


if __name__ == "__main__":
    main()
