"""Batches on their way to the device: page-locked memory and copies beside the computation on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from larmor.storage.loading.loader import Allocate, Batch


@dataclass(frozen=True)
class DeviceGroup:
    """A `SliceGroup` on the device: k-space (n, coil, height, width) complex64, rows (n,); maps and guide as k-space,
    or None."""

    kspace: Tensor
    rows: np.ndarray
    maps: Tensor | None = None
    guide: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """Those that are there."""
        return tuple(tensor for tensor in (self.kspace, self.maps, self.guide) if tensor is not None)


@dataclass(frozen=True)
class DeviceBatch:
    """A `Batch` on the device."""

    groups: tuple[DeviceGroup, ...]
    samples: np.ndarray

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) of the first slice."""
        height, width = self.groups[0].kspace.shape[-2:]
        return int(height), int(width)


def to_device(batch: Batch, device: torch.device) -> DeviceBatch:
    """Copy a batch; from page-locked memory without waiting for the copy."""

    def copied(array: np.ndarray) -> Tensor:
        return torch.from_numpy(array).to(device, non_blocking=True)

    def beside(array: np.ndarray | None) -> Tensor | None:
        return None if array is None else copied(array)

    groups = (
        DeviceGroup(copied(group.kspace), group.rows, beside(group.maps), beside(group.guide)) for group in batch.groups
    )
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
        for tensor in (tensor for group in moved.groups for tensor in group.tensors):
            tensor.record_stream(torch.cuda.current_stream(device))
        ahead = moved
    if ahead is not None:
        yield ahead
