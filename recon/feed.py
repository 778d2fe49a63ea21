"""Batches on their way to the device: page-locked memory and copies beside the computation on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from storage.loader import Allocate, Batch


@dataclass(frozen=True)
class DeviceBatch:
    """A `Batch` on the device: for each shape k-space (n, coil, height, width) complex64 and rows (n,)."""

    groups: tuple[tuple[Tensor, np.ndarray], ...]
    samples: np.ndarray


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch; from page-locked memory without waiting for the copy."""
    groups = ((torch.from_numpy(group.kspace).to(device, non_blocking=True), group.rows) for group in batch.groups)
    return DeviceBatch(tuple(groups), batch.samples)


def page_locked(device: torch.device) -> Allocate | None:
    """What a loader allocates batches with for this device; None: ordinary memory."""
    if device.type != "cuda":
        return None

    def allocate(shape: tuple[int, ...]) -> np.ndarray:
        return torch.empty(shape, dtype=torch.complex64, pin_memory=True).numpy()

    return allocate


def feed(batches: Iterator[Batch], device: torch.device) -> Iterator[DeviceBatch]:
    """Batches on the device, in order. On a GPU each is copied while the one before it is computed with."""
    if device.type != "cuda":
        for batch in batches:
            yield to_device(batch, device)
        return
    stream = torch.cuda.Stream(device)
    ahead: DeviceBatch | None = None
    for batch in batches:
        with torch.cuda.stream(stream):
            moved = to_device(batch, device)
        if ahead is not None:
            yield ahead
        torch.cuda.current_stream(device).wait_stream(stream)
        for kspace, _ in moved.groups:
            kspace.record_stream(torch.cuda.current_stream(device))
        ahead = moved
    if ahead is not None:
        yield ahead
