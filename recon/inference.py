"""Reconstruct slices of a data set with a generator: what validation, evaluation and `reconstruct` share."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from recon.engine import lowered
from recon.masks import MaskConfig
from recon.samples import MAGNITUDE, Sample, display, prepare
from recon.signal import SignalConfig
from storage.loader import Batch
from storage.reader import SliceReader


@dataclass(frozen=True)
class Reconstructed:
    """A batch of results. Images are magnitudes (batch, height, width) float32 in the target's range [0, 1];
    `scale` (batch, 2) maps them back; `seconds` is the time of the generator alone, for the batch."""

    indices: tuple[int, ...]
    target: np.ndarray
    zero_filled: np.ndarray
    reconstruction: np.ndarray
    scale: np.ndarray
    seconds: float


@dataclass(frozen=True)
class Physics:
    """How slices are undersampled: `crop` (height, width) of the image, the mask, and what an image is."""

    crop: tuple[int, int]
    mask: MaskConfig
    signal: SignalConfig = MAGNITUDE


def reconstruct_split(
    generator: nn.Module,
    reader: SliceReader,
    indices: Sequence[int],
    physics: Physics,
    batch_size: int,
    device: torch.device,
) -> Iterator[Reconstructed]:
    """Undersample and reconstruct the slices `indices` of a split, in order, `batch_size` at a time."""
    for first in range(0, len(indices), batch_size):
        chosen = tuple(int(index) for index in indices[first : first + batch_size])
        batch = Batch.gather(reader.read(chosen), np.array([(0, index) for index in chosen]))
        sample = prepare(batch, physics.crop, physics.mask, device, signal=physics.signal)
        yield reconstruct_sample(generator, sample, chosen)


@torch.no_grad()
def reconstruct_sample(generator: nn.Module, sample: Sample, indices: tuple[int, ...]) -> Reconstructed:
    """Run the generator on one prepared batch; results are float32 on the CPU."""
    dtype = next(generator.parameters()).dtype
    _synchronize(sample.target.device)
    began = time.perf_counter()
    output = generator(*lowered(sample.measurement, dtype)).float()
    _synchronize(sample.target.device)
    seconds = time.perf_counter() - began
    return Reconstructed(
        indices=indices,
        target=_array(display(sample.target)),
        zero_filled=_array(display(sample.zero_filled)),
        reconstruction=_array(display(output)),
        scale=_array(sample.scale),
        seconds=seconds,
    )


def _array(tensor: Any) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
