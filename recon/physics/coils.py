"""All coils together, without sensitivity maps: as many coils for every scan, and images that have a phase."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import replace
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor

from larmor.recon.physics.feed import DeviceBatch, DeviceGroup
from larmor.recon.physics.transfer import sent
from larmor.recon.recipe.signal import SignalConfig, check_phase
from larmor.storage.loading.reader import SliceReader

_CALIBRATION = 24  # height and width of the centre of k-space that the compression is computed from
_SLICES = 5  # of a scan, evenly spaced

ReadSlices = Callable[[Sequence[int]], Sequence[np.ndarray]]
"""Numbers of slices of a split or of a scan → the k-space of each, (coil, height, width)."""
Change = Callable[[DeviceBatch], DeviceBatch]

# of a reader, by number of coils: validation, and evaluation volume by volume, begin anew with the same reader
_known: WeakKeyDictionary[SliceReader, dict[int, dict[Hashable, np.ndarray]]] = WeakKeyDictionary()


def compression_matrix(centres: Sequence[np.ndarray], num_coils: int) -> np.ndarray:
    """(num_coils, coil) complex64 with orthonormal rows: the virtual coils that hold most of the signal of `centres`,
    each (coil, height, width), in order of their strength.

    The phase of a virtual coil is fixed by the measured coil that it has most of, whose share is positive.

    Source: Huang et al., A software channel compression technique for faster reconstruction with many channels, Magn.
    Reson. Imaging 26:133-141 (2008).
    """
    samples = np.concatenate([centre.reshape(len(centre), -1) for centre in centres], axis=1).astype(np.complex128)
    _, vectors = np.linalg.eigh(samples @ samples.conj().T)  # ascending
    rows = vectors[:, ::-1][:, :num_coils].conj().T
    largest = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    return (rows * (largest.conj() / np.abs(largest))).astype(np.complex64)


class VirtualCoils:
    """Compresses slices of more than `num_coils` coils to so many; others it leaves as they are.

    All slices of a scan, which `scan_of` names for a slice, have one matrix, from the centres of the slices that
    `slices_of` names for the scan. It is computed where the scan is first met. So what is made of a slice depends on
    its scan alone, not on batch, order or rank.
    """

    def __init__(
        self,
        num_coils: int,
        read: ReadSlices,
        scan_of: Callable[[int], Hashable],
        slices_of: Callable[[Hashable], Sequence[int]],
        known: dict[Hashable, np.ndarray] | None = None,
    ) -> None:
        self._num_coils, self._read, self._scan_of, self._slices_of = num_coils, read, scan_of, slices_of
        self._matrices: dict[Hashable, np.ndarray] = {} if known is None else known

    def __call__(self, batch: DeviceBatch) -> DeviceBatch:
        """The batch, whose samples are (epoch, number of the slice), with at most `num_coils` coils."""
        return replace(batch, groups=tuple(self._compressed(group, batch.samples) for group in batch.groups))

    def _compressed(self, group: DeviceGroup, samples: np.ndarray) -> DeviceGroup:
        if group.kspace.shape[1] <= self._num_coils:
            return group
        matrices = np.stack([self.matrix(int(index)) for index in samples[group.rows, 1]])
        kspace = compressed(group.kspace, sent(torch.from_numpy(matrices), group.kspace.device))
        return DeviceGroup(kspace, group.rows, guide=group.guide)

    def matrix(self, index: int) -> np.ndarray:
        """The compression (num_coils, coil) of the scan that slice `index` belongs to."""
        scan = self._scan_of(index)
        if scan not in self._matrices:
            indices = self._slices_of(scan)
            places = np.unique(np.linspace(0, len(indices) - 1, min(_SLICES, len(indices))).round().astype(int))
            centres = [_centre(kspace) for kspace in self._read([int(indices[place]) for place in places])]
            self._matrices[scan] = compression_matrix(centres, self._num_coils)
        return self._matrices[scan]


def compressed(kspace: Tensor, matrices: Tensor) -> Tensor:
    """(batch, coil, height, width) and (batch, virtual coil, coil) complex → (batch, virtual coil, height, width)."""
    return torch.einsum("bvc,bchw->bvhw", matrices, kspace)


def _centre(kspace: np.ndarray) -> np.ndarray:
    top, left = (max(0, size // 2 - _CALIBRATION // 2) for size in kspace.shape[1:])
    return kspace[:, top : top + _CALIBRATION, left : left + _CALIBRATION]


def coils_of_split(reader: SliceReader, signal: SignalConfig) -> Change:
    """What slices of a split, whose volumes are its scans, go through where `signal` has the images of all coils;
    otherwise they stay as they are.

    Raises `InputError` for a split made from images, which have no phase.
    """
    if not signal.keeps_coils:
        return _unchanged
    info = reader.info
    check_phase(signal, info.name, info.image_volumes)

    def volume_of(index: int) -> str:
        return info.volumes[int(info.volume[index])]

    def slices_of(volume: Hashable) -> Sequence[int]:
        return info.slices_of(str(volume)).tolist()

    known = _known.setdefault(reader, {}).setdefault(signal.num_coils, {})
    return VirtualCoils(signal.num_coils, reader.read, volume_of, slices_of, known)


def _unchanged(batch: DeviceBatch) -> DeviceBatch:
    return batch


def coils_of_scan(read: ReadSlices, num_slices: int, signal: SignalConfig) -> Change:
    """As `coils_of_split`, of one scan's slices, numbered from 0."""
    if not signal.keeps_coils:
        return _unchanged
    return VirtualCoils(signal.num_coils, read, lambda _: 0, lambda _: range(num_slices))
