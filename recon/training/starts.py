"""The starts of a training's slices: made once for both halves of a step, and kept where every epoch has the same."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from larmor.recon.networks.data_consistency import ConsistentGenerator
from larmor.recon.physics.samples import Sample
from larmor.recon.physics.transfer import HostCopy, sent
from larmor.recon.recipe.recipe import Recipe
from larmor.recon.training.starts_on_disk import StartsOnDisk

_kept_by_process: dict[str, dict[int, Tensor]] = {}  # of the newest training alone: the trials of a sweep share it


class Starts:
    """Gives samples of the split `identity` their `start`, where the generator of `recipe` has a classical one.

    A slice's start does not depend on what it is computed together with, so that it is the same, bit for bit on the
    CPU, whether it was kept or made anew. What is kept serves the next training of this process too if data, mask and
    start are the same. With `folder`, the other workers of the machine and later processes find it on disk.
    """

    def __init__(self, generator: torch.nn.Module, recipe: Recipe, identity: str, folder: Path | None = None) -> None:
        self._generator = generator if isinstance(generator, ConsistentGenerator) else None
        # stacks overlap, and an image's units are those of its stack
        changing = recipe.mask.differs or recipe.augment.enabled or recipe.signal.noisy
        is_fixed = not (changing or recipe.data.stack > 1)
        key = _key(recipe, identity)
        if key not in _kept_by_process:
            _kept_by_process.clear()
        self._kept = _kept_by_process.setdefault(key, {}) if is_fixed else {}
        used = sum(image.numel() * image.element_size() for image in self._kept.values())
        config = recipe.generator.start
        self._room = config.cache_bytes - used if is_fixed else 0
        on_disk = is_fixed and self._has_start and folder is not None and config.disk_cache_bytes > 0
        self._disk = StartsOnDisk.open(folder, config.disk_cache_bytes, key) if on_disk and folder else None
        self._made: tuple[list[int], HostCopy] | None = None  # by the newest call, and not kept yet

    @property
    def _has_start(self) -> bool:
        return self._generator is not None and self._generator.start_config.enabled

    def add(self, sample: Sample) -> Sample:
        """The sample with its start; as it is where there is none."""
        if not self._has_start:
            return sample
        self._write()
        indices, zero_filled = [int(index) for _, index in sample.samples], sample.zero_filled
        found = [self._find(index, zero_filled[row]) for row, index in enumerate(indices)]
        kept = {row: image for row, image in enumerate(found) if image is not None}
        missing = [row for row in range(len(indices)) if row not in kept]
        parts = [sent(torch.stack(list(kept.values())), zero_filled.device)] if kept else []
        if missing:
            parts.append(self._make(sample, sent(torch.tensor(missing), zero_filled.device)))
            if self._room or self._disk:
                self._made = [indices[row] for row in missing], HostCopy(parts[-1])
        if not zero_filled.is_cuda:
            self._write()
        start = torch.cat(parts)
        if kept and missing:
            start = start[sent(torch.tensor([*kept, *missing]).argsort(), zero_filled.device)]
        return replace(sample, start=start)

    def _write(self) -> None:
        """Keep what was made in the call before: a GPU is past it, so that nothing is waited for."""
        if self._made is None:
            return
        indices, copy = self._made
        for index, image in zip(indices, copy.result, strict=True):
            self._keep(index, image, self._disk)
        self._made = None

    def _make(self, sample: Sample, rows: Tensor) -> Tensor:
        assert self._generator is not None
        maps = None if sample.maps is None else sample.maps[rows]
        return self._generator.start(sample.zero_filled[rows], sample.kspace[rows], sample.mask[rows], maps)

    def _find(self, index: int, like: Tensor) -> Tensor | None:
        image = self._kept.get(index)
        if image is None and self._disk is not None:
            image = self._disk.get(index, like)
            if image is not None:
                self._keep(index, image, None)
        return image

    def _keep(self, index: int, image: Tensor, disk: StartsOnDisk | None) -> None:
        if disk is not None:
            disk.put(index, image)
        size = image.numel() * image.element_size()
        if size <= self._room:
            self._kept[index] = image.to("cpu", copy=True)
            self._room -= size


def _key(recipe: Recipe, identity: str) -> str:
    parts = [
        recipe.signal.model_copy(update={"guide": False}),  # which no start looks at
        recipe.mask,
        recipe.generator.start.model_copy(update={"cache_bytes": 0, "disk_cache_bytes": 0}),
    ]
    said = [identity, recipe.data.crop, *(part.model_dump(mode="json") for part in parts)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()
