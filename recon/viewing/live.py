"""Slices that are read, undersampled and reconstructed when they are looked at."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from larmor.recon.evaluation.methods import classical_method
from larmor.recon.inference.inference import Method, Physics, network_method, reconstruct_sample
from larmor.recon.inference.residual import Residual
from larmor.recon.inference.slices_page import TARGET, slice_content
from larmor.recon.models.measured import measured_sample
from larmor.recon.models.model import Model
from larmor.recon.models.residual import has_residual, measured_residual
from larmor.recon.models.scans import Scan, Slices
from larmor.recon.physics.feed import DeviceBatch, to_device
from larmor.recon.physics.masks import with_ratio
from larmor.recon.physics.samples import Sample, prepare
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.storage.loading.loader import Batch
from larmor.storage.objects.errors import InputError

UNDERSAMPLED = MaskConfig(kind="gaussian2d", sampling_ratio=0.3)
"""What is shown of a data set without a model."""
_CPU = torch.device("cpu")
_MEASURED = "as it was measured"


class Gallery(Protocol):
    """What a page shows: stacks by name. `content` of one tells its `count` of slices, the `letters` of their
    directions, and whether there is a `volume` file; `slice` is one of them for JSON. Both raise `InputError`."""

    title: str
    names: list[str]

    def content(self, stack: int) -> dict[str, Any]: ...

    def slice(self, stack: int, index: int) -> dict[str, Any]: ...

    def volume(self, stack: int) -> Path | None: ...

    def close(self) -> None: ...


class StoredGallery:
    """Slices that pages hold (see `slices_page.read_page`), with the volume file of each where there is one."""

    def __init__(self, title: str, stacks: Sequence[Mapping[str, Any]], volumes: Mapping[str, Path]) -> None:
        self.title, self.names = title, [str(stack["name"]) for stack in stacks]
        self._stacks, self._volumes = stacks, volumes

    def content(self, stack: int) -> dict[str, Any]:
        found = self._stacks[stack]
        has_volume = self.names[stack] in self._volumes
        return {"count": len(found["slices"]), "letters": found["letters"], "volume": has_volume}

    def slice(self, stack: int, index: int) -> dict[str, Any]:
        return dict(self._stacks[stack]["slices"][index])

    def volume(self, stack: int) -> Path | None:
        return self._volumes.get(self.names[stack])

    def close(self) -> None:
        """Nothing is open."""


@dataclass(frozen=True)
class Recipes:
    """What is made of a slice: undersampled as `physics` says, and reconstructed by `model` and the classical methods
    of these names. Without a model and `physics`, scans are shown as they are."""

    model: Model | None = None
    classical: Sequence[str] = ()
    physics: Physics | None = None

    def methods(self, physics: Physics) -> dict[str, Method]:
        found = {name: classical_method(name, physics) for name in self.classical}
        return found | ({"reconstruction": network_method(self.model.generator)} if self.model else {})


class LiveGallery:
    """The scans of `open_scans`, of which one at a time is open; `volumes` are NIfTI files by the name of a scan."""

    def __init__(
        self,
        title: str,
        scans: AbstractContextManager[Sequence[Scan]],
        recipes: Recipes,
        volumes: Mapping[str, Path] | None = None,
    ) -> None:
        self._scans_open, self._one_open = ExitStack(), ExitStack()
        self._scans = self._scans_open.enter_context(scans)
        self.title, self.names = title, [scan.name for scan in self._scans]
        self._recipes, self._volumes = recipes, volumes or {}
        if recipes.physics:
            recipes.methods(recipes.physics)  # a name that is none is told at once
        self._open: tuple[int, Slices] | None = None

    def content(self, stack: int) -> dict[str, Any]:
        slices = self._slices(stack)
        letters = slices.volume.letters if slices.volume else None
        return {"count": slices.num_slices, "letters": letters, "volume": self.volume(stack) is not None}

    def slice(self, stack: int, index: int) -> dict[str, Any]:
        slices = self._slices(stack)
        images, words, residual = self._images(slices, index)
        return {**slice_content(f"slice {index}", images, bits=16, residual=residual), "note": words}

    def volume(self, stack: int) -> Path | None:
        return self._volumes.get(self.names[stack])

    def close(self) -> None:
        self._one_open.close()
        self._scans_open.close()

    def _slices(self, stack: int) -> Slices:
        if self._open is None or self._open[0] != stack:
            self._open = None
            self._one_open.close()
            self._open = (stack, self._one_open.enter_context(self._scans[stack].open()))
        return self._open[1]

    def _images(self, slices: Slices, index: int) -> tuple[dict[str, np.ndarray], str, Residual | None]:
        """By name, what was done to them in words, and what the model changed of the measurement."""
        model, physics = self._recipes.model, self._recipes.physics
        together = physics.stack if physics else 1
        if slices.num_slices < together:
            raise InputError(f"has {slices.num_slices} slices, and the model sees {together} together (data.stack)")
        first = min(index, slices.num_slices - together)
        batch = slices.read(range(first, first + together))
        if physics is None:
            return {"image": _whole(batch)}, "", None
        if slices.measured and model is None:
            return {"zero_filled": _whole(batch)}, _MEASURED, None
        moved = slices.coils(to_device(batch, _CPU))
        size = slices.size_of(moved, physics.crop) if model else slices.size or moved.size
        sample, words = self._sample(moved, size, slices.measured)
        places = tuple(range(first, first + together))
        outputs: dict[str, Tensor] = {}

        def keep(name: str, output: Tensor, _sample: Sample) -> None:
            outputs[name] = output

        found = reconstruct_sample(self._recipes.methods(physics), sample, places, keep)
        row = index - first
        if model and has_residual(model.recipe, slices.measured):
            found = replace(found, residual=measured_residual(sample, [outputs["reconstruction"]]))
        found = found if slices.size else found.cut(moved.size)
        images = {physics.title(name): images[row] for name, images in found.images.items()}
        residual = found.residual and found.residual.rows([row])
        return images if slices.measured else {TARGET: found.target[row], **images}, words, residual

    def _sample(self, batch: DeviceBatch, size: tuple[int, int], measured: bool) -> tuple[Sample, str]:
        model, physics = self._recipes.model, self._recipes.physics
        assert physics is not None
        if measured:
            assert model is not None
            return measured_sample(batch, model, _CPU, size), _MEASURED
        first = (int(batch.samples[0, 0]), int(batch.samples[0, 1]))
        # the ratio that this slice has, not the range of which it was drawn
        noiseless = replace(physics, signal=physics.signal.with_noise(0, 0), mask=with_ratio(physics.mask, first))
        sample = prepare(batch, size, noiseless.mask, _CPU, signal=noiseless.signal, stack=physics.stack)
        return sample, noiseless.label(size)


def _whole(batch: Batch) -> np.ndarray:
    """The magnitude of the first slice, with the largest value 1."""
    from larmor.recon.physics.samples import magnitude

    image = magnitude(to_device(batch, _CPU).groups[0].kspace)[0, 0].numpy()
    return image / max(float(image.max()), 1e-30)
