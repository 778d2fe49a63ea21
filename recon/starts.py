"""The starts of a training's slices: made once for both halves of a step, and kept where every epoch has the same."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from recon.data_consistency import ConsistentGenerator
from recon.recipe import Recipe
from recon.samples import Sample


class Starts:
    """Gives samples their `start`, where the generator of `recipe` has a classical one.

    A slice's start does not depend on what it is computed together with, so that it is the same, bit for bit on the
    CPU, whether it was kept or made anew.
    """

    def __init__(self, generator: torch.nn.Module, recipe: Recipe) -> None:
        self._generator = generator if isinstance(generator, ConsistentGenerator) else None
        self._is_fixed = not (recipe.mask.per_slice or recipe.augment.enabled)
        self._room = recipe.generator.start.cache_bytes if self._is_fixed else 0
        self._kept: dict[int, Tensor] = {}

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
