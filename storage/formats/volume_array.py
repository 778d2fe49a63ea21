"""Volumes of any size in bounded memory: gathered slab by slab, on disk where they are large."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable, Iterator

import numpy as np

from larmor.storage.objects.errors import InputError

MAX_VOLUME_IN_MEMORY = 256 * 2**20  # bytes of float32
SLAB_BYTES = 8 * 2**20


def slab_depth(shape: tuple[int, ...]) -> int:
    """How many planes (x, y) of a volume are read at once: about `SLAB_BYTES` as float64, at least one."""
    return max(1, SLAB_BYTES // (8 * shape[0] * shape[1]))


def gather_slabs(where: object, shape: tuple[int, int, int], slabs: Iterable[np.ndarray]) -> np.ndarray:
    """`slabs` (x, y, depth), ascending along the last axis, as one read-only float32 array (x, y, z).

    Above `MAX_VOLUME_IN_MEMORY` the array is a map of an unlinked temporary file: its pages are given back
    when memory is short, and the file goes with the last reference to the array.

    Raises `InputError` that names `where` if values are not finite or all the same, or the disk is full.
    """
    checked = _checked(where, shape, slabs)
    if 4 * math.prod(shape) > MAX_VOLUME_IN_MEMORY:
        return _on_disk(where, shape, checked)
    data = np.empty(shape, np.float32, order="F")
    first = 0
    for slab in checked:
        data[..., first : first + slab.shape[2]] = slab
        first += slab.shape[2]
    assert first == shape[2]
    data.flags.writeable = False
    return data


def _on_disk(where: object, shape: tuple[int, int, int], slabs: Iterable[np.ndarray]) -> np.ndarray:
    with tempfile.TemporaryFile(prefix="larmor-volume-") as file:
        for slab in slabs:
            try:
                # written, not mapped: a full disk is then an error and not a crash
                file.write(np.ascontiguousarray(slab.T).data)
                file.flush()
            except OSError as error:
                raise InputError(
                    f"{where}: needs {4 * math.prod(shape) / 2**30:.1f} GiB of temporary space in "
                    f"{tempfile.gettempdir()} ({error.strerror}); make room or set TMPDIR to another folder"
                ) from error
        return np.memmap(file, np.float32, mode="r", shape=shape, order="F")


def _checked(where: object, shape: tuple[int, ...], slabs: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    size, bad, low, high = math.prod(shape), 0, math.inf, -math.inf
    for slab in slabs:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite and is counted
            values = slab.astype(np.float32, copy=False)
        missing = values.size - int(np.count_nonzero(np.isfinite(values)))
        if not missing:
            low, high = min(low, float(values.min())), max(high, float(values.max()))
        bad += missing
        yield values
    if bad:
        raise InputError(f"{where}: {bad} of {size} voxels are not finite (NaN or infinite); repair the volume")
    if not low < high:
        raise InputError(f"{where}: every voxel has the same value; there is no image in it")
