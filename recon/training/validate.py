"""Validation during training: the same figures whatever the number of ranks."""

from __future__ import annotations

import numpy as np
from torch import nn

from larmor.recon.inference.device_metrics import slice_metrics_on_device
from larmor.recon.inference.inference import Physics, network_method, rate_sample, undersampled_split
from larmor.recon.recipe.metric import METRICS
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.worker import Worker
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError


def validation_indices(num_slices: int, wanted: int | None) -> np.ndarray:
    """All slices, or `wanted` evenly spaced ones."""
    count = min(num_slices, wanted or num_slices)
    return np.linspace(0, num_slices - 1, count).round().astype(int)


def validate(generator: nn.Module, reader: SliceReader, recipe: Recipe, worker: Worker, step: int) -> dict[str, float]:
    """Mean of each metric (preset `paper`) over the validation slices that are not constant, as `val/psnr`, …

    Each rank reconstructs its share. All run equally many forwards (with ZeRO 3 a forward is a collective
    call): short shares are filled up with repeats that are not counted. `step` is what the worker is told.

    Raises `InputError`, on all ranks alike, if every slice is constant.
    """
    worker.progress(step, "validation")
    indices = validation_indices(reader.info.num_slices, recipe.training.validation_slices)
    mine = indices[worker.rank :: worker.world_size]
    longest = -(-len(indices) // worker.world_size)
    padded = np.concatenate([mine, np.repeat(indices[:1], longest - len(mine))])
    physics = Physics(recipe.data.crop, recipe.mask, recipe.signal)
    batch_size = recipe.micro_batch_size(worker.world_size)
    was_training = generator.training
    generator.eval()
    rows: list[tuple[int, dict[str, float] | None]] = []  # None: the target shows nothing
    methods = {"generator": network_method(generator)}
    for chosen, sample in undersampled_split(reader, padded.tolist(), physics, batch_size, worker.device):
        worker.progress(step, "validation")
        found = rate_sample(methods, sample)
        figures = slice_metrics_on_device(found.target, found.images["generator"])
        rated = zip(chosen, found.shows, figures, strict=True)
        rows += [(index, row if shows else None) for index, shows, row in rated]
    generator.train(was_training)
    by_slice = {index: row for part in worker.gather(rows[: len(mine)]) for index, row in part}
    # in the order of the slices, so that the figure does not depend on who computed what
    shown = [row for index in indices if (row := by_slice[int(index)]) is not None]
    if not shown:
        height, width = physics.crop
        raise InputError(
            f"{reader.info.name}: none of its {len(indices)} slices shows anything within {height}×{width}; raise "
            "data.crop, or validate with other volumes"
        )
    return {f"val/{name}": float(np.mean([row[name] for row in shown])) for name in METRICS}
