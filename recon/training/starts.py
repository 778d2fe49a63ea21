"""The starts of a training's slices: made once for both halves of a step, and kept where every epoch has the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace

import torch
from torch import Tensor

from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.physics.samples import Sample
from larmor.recon.recipe.recipe import Recipe

_kept_by_process: dict[str, dict[int, Tensor]] = {}  # of the newest training alone: the trials of a sweep share it


class Starts:
    """Gives samples of the split `identity` their `start`, where the generator of `recipe` has a classical one.

    A slice's start does not depend on what it is computed together with, so that it is the same, bit for bit on the
    CPU, whether it was kept or made anew. What is kept serves the next training of this process too if data, mask and
    start are the same.
    """

    def __init__(self, generator: torch.nn.Module, recipe: Recipe, identity: str) -> None:
        self._generator = generator if isinstance(generator, ConsistentGenerator) else None
        # stacks overlap, and an image's units are those of its stack
        changing = recipe.mask.differs or recipe.augment.enabled or recipe.signal.noisy
        is_fixed = not (changing or recipe.data.stack > 1)
        key = _key(recipe, identity)
        if key not in _kept_by_process:
            _kept_by_process.clear()
        self._kept = _kept_by_process.setdefault(key, {}) if is_fixed else {}
        used = sum(image.numel() * image.element_size() for image in self._kept.values())
        self._room = recipe.generator.start.cache_bytes - used if is_fixed else 0

    def add(self, sample: Sample) -> Sample:
        """The sample with its start; as it is where there is none."""
        if self._generator is None or not self._generator.start_config.enabled:
            return sample
        indices = [int(index) for _, index in sample.samples]
        missing = [row for row, index in enumerate(indices) if index not in self._kept]
        start = torch.empty_like(sample.zero_filled)
        if missing:
            rows = torch.tensor(missing, device=start.device)
            made = self._generator.start(
                sample.zero_filled[rows],
                sample.kspace[rows],
                sample.mask[rows],
                None if sample.maps is None else sample.maps[rows],
            )
            start[rows] = made
            for row, image in zip(missing, made, strict=True):
                self._keep(indices[row], image)
        for row, index in enumerate(indices):
            if row not in missing:
                start[row] = self._kept[index].to(start.device)
        return replace(sample, start=start)

    def _keep(self, index: int, image: Tensor) -> None:
        size = image.numel() * image.element_size()
        if size <= self._room:
            self._kept[index] = image.to("cpu", copy=True)
            self._room -= size


def _key(recipe: Recipe, identity: str) -> str:
    parts = [recipe.signal, recipe.mask, recipe.generator.start.model_copy(update={"cache_bytes": 0})]
    said = [identity, recipe.data.crop, *(part.model_dump(mode="json") for part in parts)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
