"""Reconstruct slices of a data set: what validation, evaluation and `reconstruct` share."""

from __future__ import annotations

import time
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from larmor.recon.engines.precision import lowered
from larmor.recon.inference.residual import Residual
from larmor.recon.networks.guided import takes_guide
from larmor.recon.physics.coils import coils_of_split
from larmor.recon.physics.feed import to_device
from larmor.recon.physics.samples import (
    MAGNITUDE,
    Sample,
    centre_fit,
    denormalize,
    display,
    normalize,
    normalize_by,
    prepare,
)
from larmor.recon.recipe.mask_config import MaskConfig
from larmor.recon.recipe.signal import SignalConfig
from larmor.storage.dataset.constant import is_constant
from larmor.storage.loading.loader import Batch
from larmor.storage.loading.reader import SliceReader
from larmor.storage.objects.errors import InputError

ZERO_FILLED = "zero_filled"
Method = Callable[[Sample], Tensor]
"""A sample → images (batch, channels, height, width) as its target."""
Note = Callable[[str, Tensor, Sample], object]
"""Is told of the images of each method, after their time was taken."""


@dataclass(frozen=True)
class Reconstructed:
    """A batch of results: magnitudes (batch, height, width) float32, scaled so that the target has the range [0, 1].

    `images` and `seconds` have an entry for each method, `images` one for `zero_filled` as well; what is brighter than
    the target's maximum is above 1, what is darker than its minimum below 0. `scale` (batch, 2): minimum and maximum
    of the target, which map them back; `seconds` is the time of the method alone, for the batch. `residual` is what was
    changed of the measurement, where it is known.
    """

    indices: tuple[int, ...]
    target: np.ndarray
    images: Mapping[str, np.ndarray]
    scale: np.ndarray
    seconds: Mapping[str, float]
    residual: Residual | None = None

    @property
    def shows(self) -> np.ndarray:
        """(batch,) bool: False for a target that is constant, of which there are no figures."""
        return ~is_constant(self.scale[:, 0], self.scale[:, 1])

    def cut(self, size: tuple[int, int]) -> Reconstructed:
        """The same without what the images were padded by, or cut, about their centre."""
        if self.target.shape[1:] == size:
            return self
        images = {name: centre_fit(torch.from_numpy(image), size).numpy() for name, image in self.images.items()}
        target = centre_fit(torch.from_numpy(self.target), size).numpy()
        return replace(self, target=target, images=images, residual=self.residual and self.residual.cut(size))

    def without(self, seen: Container[int]) -> Reconstructed:
        """The same without the slices `seen` and without repeats, and without their part of the time."""
        first = {index: row for row, index in reversed(list(enumerate(self.indices))) if index not in seen}
        rows = sorted(first.values())
        if len(rows) == len(self.indices):
            return self
        part = len(rows) / len(self.indices)
        return Reconstructed(
            tuple(self.indices[row] for row in rows),
            self.target[rows],
            {name: images[rows] for name, images in self.images.items()},
            self.scale[rows],
            {name: seconds * part for name, seconds in self.seconds.items()},
            self.residual and self.residual.rows(rows),
        )


@dataclass(frozen=True)
class Physics:
    """How slices are undersampled: `crop` (height, width) of the image, the mask, and what an image is."""

    crop: tuple[int, int]
    mask: MaskConfig
    signal: SignalConfig = MAGNITUDE
    stack: int = 1

    def title(self, method: str) -> str:
        """What a method is called: what MRI calls zero-filled is filtered back-projection of few counts in PET."""
        return "FBP" if method == ZERO_FILLED and self.signal.mode == "pet" else method

    def label(self, size: tuple[int, int]) -> str:
        """Size (height, width), mask and kind of image in words."""
        words = ["×".join(map(str, size))]
        if self.signal.mode == "pet":
            return ", ".join(["simulated FDG PET", *words, self.signal.pet.label])
        mask = self.mask
        words.append(f"file {mask.file}" if mask.kind == "file" else f"{mask.kind} {mask.ratio_in_words}")
        if mask.seed:
            words.append(f"seed {mask.seed}")
        if mask.per_slice:
            words.append("a mask per slice")
        if self.stack > 1:
            words.append(f"stacks of {self.stack}")
        if self.signal.mode == "complex":
            words.append(f"complex ({self.signal.coils})")
        low, high = (100 * level for level in self.signal.noise)
        if high:
            words.append(f"noise {high:g} %" if low == high else f"noise {low:g} to {high:g} %")
        if self.signal.guide:
            words.append("with a guide")
        return ", ".join(words)


def network_method(generator: nn.Module) -> Method:
    """A generator as a method, in the precision of its weights."""
    guided = takes_guide(generator)

    def reconstruct(sample: Sample) -> Tensor:
        dtype = next(generator.parameters()).dtype
        known = sample if guided else replace(sample, guide=None)  # a table may have both kinds
        return generator(*lowered(known.measurement, dtype)).float()

    return reconstruct


def reconstruct_split(
    methods: Mapping[str, Method],
    reader: SliceReader,
    indices: Sequence[int],
    physics: Physics,
    batch_size: int,
    device: torch.device,
    note: Note | None = None,
) -> Iterator[Reconstructed]:
    """Undersample and reconstruct the slices `indices` of a split, in order, about `batch_size` at a time.

    Stacks of `physics.stack` follow each other in `indices` (see `in_stacks`); a slice that is in two is given once.
    """
    seen: set[int] = set()
    for chosen, sample in undersampled_split(reader, indices, physics, batch_size, device):
        yield reconstruct_sample(methods, sample, chosen, note).without(seen)
        seen.update(chosen)


def undersampled_split(
    reader: SliceReader, indices: Sequence[int], physics: Physics, batch_size: int, device: torch.device
) -> Iterator[tuple[tuple[int, ...], Sample]]:
    """The slices `indices` of a split as samples on the device, in order, `batch_size` at a time, with their places.

    Stacks stay whole: a batch holds as many as have room in `batch_size`, and one at least.
    """
    coils, size = coils_of_split(reader, physics.signal), whole_stacks(batch_size, physics.stack)
    for first in range(0, len(indices), size):
        chosen = tuple(int(index) for index in indices[first : first + size])
        batch = coils(to_device(Batch.read(reader, np.array([(0, index) for index in chosen])), device))
        yield chosen, prepare(batch, physics.crop, physics.mask, device, signal=physics.signal, stack=physics.stack)


def whole_stacks(batch_size: int, stack: int) -> int:
    """The images of a batch of whole stacks, about `batch_size`."""
    return max(1, batch_size // stack) * stack


@dataclass(frozen=True)
class Rated:
    """As `Reconstructed`, on the device: `target` (batch, height, width), `images` alike, `scale` (batch, 2)."""

    target: Tensor
    images: Mapping[str, Tensor]
    scale: Tensor
    seconds: Mapping[str, float]

    @property
    def shows(self) -> np.ndarray:
        """As `Reconstructed.shows`."""
        return shows(_array(self.scale))


def shows(scale: np.ndarray) -> np.ndarray:
    """Whether each image whose minimum and maximum (batch, 2) these are shows anything."""
    low, high = scale.T
    return ~is_constant(low, high)


def reconstruct_sample(
    methods: Mapping[str, Method], sample: Sample, indices: tuple[int, ...], note: Note | None = None
) -> Reconstructed:
    """Run every method on one prepared batch; results are float32 on the CPU."""
    found = rate_sample(methods, sample, note)
    images = {name: _array(image) for name, image in found.images.items()}
    return Reconstructed(indices, _array(found.target), images, _array(found.scale), found.seconds)


@torch.no_grad()
def rate_sample(methods: Mapping[str, Method], sample: Sample, note: Note | None = None, timed: bool = True) -> Rated:
    """Run every method on one prepared batch; results stay on its device, which is waited for only if `timed`."""
    target, scale = normalize(_intensities(sample.target, sample), sample.stack)
    images, seconds = {ZERO_FILLED: _rated(sample.zero_filled, sample, scale)}, {}
    for name, method in methods.items():
        if timed:
            _synchronize(sample.target.device)
        began = time.perf_counter()
        output = method(sample)
        if timed:
            _synchronize(sample.target.device)
        seconds[name] = time.perf_counter() - began
        images[name] = _rated(output, sample, scale)
        if note:
            note(name, output, sample)
    return Rated(target[:, 0], images, scale, seconds)


def _intensities(images: Tensor, sample: Sample) -> Tensor:
    """Magnitudes (batch, 1, height, width) in the source's intensities, of images in the sample's units."""
    return denormalize(display(images).unsqueeze(1), sample.scale.to(images.device))


def _rated(images: Tensor, sample: Sample, scale: Tensor) -> Tensor:
    """Images in the sample's units as (batch, height, width) in those of the target's range `scale`."""
    return normalize_by(_intensities(images, sample), scale)[:, 0]


def check_finite(result: Reconstructed, name_of: Callable[[int], str]) -> None:
    """Raises `InputError` for images with NaN or infinite values: no figure and no file may be made of them.

    `name_of` says what the slice with an index is called.
    """
    for place, index in enumerate(result.indices):
        if not np.isfinite([result.target[place], result.images[ZERO_FILLED][place]]).all():
            raise InputError(
                f"{name_of(index)} holds values that are not finite; `larmor verify` shows what is broken in a data set"
            )
        for method, images in result.images.items():
            if not np.isfinite(images[place]).all():
                raise InputError(
                    f"{method} gives values that are not finite for {name_of(index)}; pull another checkpoint of the "
                    "run (larmor pull), or train the model again at lower learning rates"
                )


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
