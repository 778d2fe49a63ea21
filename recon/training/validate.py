"""Validation during training: the same figures whatever the number of ranks."""

from __future__ import annotations

import numpy as np
from torch import nn

from larmor.recon.inference.device_metrics import measured_metrics, named_metrics
from larmor.recon.inference.inference import Physics, network_method, rate_sample, shows, undersampled_split
from larmor.recon.inference.own_metrics import own_figures
from larmor.recon.physics.transfer import HostCopy
from larmor.recon.recipe.metric import METRICS
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.pictures import Shown, joined
from larmor.recon.training.worker import Worker
from larmor.storage.dataset.dataset import SplitInfo
from larmor.storage.loading.reader import SliceReader
from larmor.storage.loading.stacks import in_stacks
from larmor.storage.objects.errors import InputError


def validation_indices(num_slices: int, wanted: int | None) -> np.ndarray:
    """All slices, or `wanted` evenly spaced ones."""
    count = min(num_slices, wanted or num_slices)
    return np.linspace(0, num_slices - 1, count).round().astype(int)


def validation_stacks(info: SplitInfo, wanted: int | None, size: int) -> np.ndarray:
    """(num_stacks, size): all slices in stacks (see `in_stacks`), or evenly spaced stacks of `wanted` slices in all."""
    if size == 1:
        return validation_indices(info.num_slices, wanted)[:, None]
    stacks = np.concatenate([in_stacks(info.slices_of(volume), size) for volume in info.volumes])
    return stacks[validation_indices(len(stacks), None if wanted is None else max(1, wanted // size))]


def validate(generator: nn.Module, reader: SliceReader, recipe: Recipe, worker: Worker, step: int) -> dict[str, float]:
    """Mean of each metric over the validation slices that are not constant, as `val/psnr`, …: preset `paper`, and the
    metrics of one's own.

    Each rank reconstructs its share. All run equally many forwards (with ZeRO 3 a forward is a collective
    call): short shares are filled up with repeats that are not counted. `step` is what the worker is told. It is shown
    what `training.validation_images` of the slices look like, the same ones each time.

    Raises `InputError`, on all ranks alike, if every slice is constant.
    """
    worker.progress(step, "validation")
    size = recipe.data.stack
    stacks = validation_stacks(reader.info, recipe.training.validation_slices, size)
    mine = stacks[worker.rank :: worker.world_size]
    longest = -(-len(stacks) // worker.world_size)
    padded = np.concatenate([mine, np.repeat(stacks[:1], longest - len(mine), axis=0)]).reshape(-1)
    physics = Physics(recipe.data.crop, recipe.mask, recipe.signal, size)
    batch_size = size * recipe.micro_batch_size(worker.world_size)
    was_training = generator.training
    generator.eval()
    rated: list[tuple[tuple[int, ...], HostCopy, HostCopy, dict[int, dict[str, float]]]] = []
    num_rated = 0
    images = Shown(len(stacks), recipe.training.validation_images, size, worker)
    methods = {"generator": network_method(generator)}
    for indices, sample in undersampled_split(reader, padded.tolist(), physics, batch_size, worker.device):
        worker.progress(step, "validation")
        found = rate_sample(methods, sample, timed=False)  # a GPU works on it while the next batch is read
        made, own = found.images["generator"], recipe.training.own_metrics
        places = found.shows.nonzero()[0].tolist() if own else ()
        more = {place: own_figures(own, found.target[place], made[place]) for place in places}
        rated.append((indices, HostCopy(found.scale), HostCopy(measured_metrics(found.target, made)), more))
        images.add(num_rated, found, "generator")
        num_rated += len(indices)
    generator.train(was_training)
    rows: list[tuple[int, dict[str, float] | None]] = []  # None: the target shows nothing
    for indices, scale, measured, more in rated:
        figures = enumerate(zip(indices, shows(scale.result.numpy()), named_metrics(measured.result), strict=True))
        rows += [(index, row | more.get(place, {}) if shown else None) for place, (index, shown, row) in figures]
    gathered = worker.gather((rows[: mine.size], images.strips))
    parts = [part for part, _ in gathered]
    if (picture := joined([strips for _, strips in gathered])) is not None:
        worker.show(picture)
    by_slice: dict[int, dict[str, float] | None] = {}
    for number in range(len(stacks)):
        # in the order of the stacks, so that the figure does not depend on who computed what
        first = number // worker.world_size * size
        for index, row in parts[number % worker.world_size][first : first + size]:
            by_slice.setdefault(index, row)
    shown_rows = [row for row in by_slice.values() if row is not None]
    if not shown_rows:
        height, width = physics.crop
        raise InputError(
            f"{reader.info.name}: none of its {len(by_slice)} slices shows anything within {height}×{width}; raise "
            "data.crop, or validate with other volumes"
        )
    names = (*METRICS, *recipe.training.own_metrics)
    return {f"val/{name}": float(np.mean([row[name] for row in shown_rows])) for name in names}
