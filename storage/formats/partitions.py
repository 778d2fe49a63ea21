"""3-D k-space to slices: the inverse FFT along the partition axis, on disk where memory is short."""

from __future__ import annotations

import math
import tempfile

import numpy as np

from larmor.storage.formats.centred_fft import to_image

LARGEST_IN_MEMORY = 256 * 2**20  # bytes; a larger volume is mapped from a temporary file
BLOCK = 32 * 2**20  # bytes that one step of the transform reads


def new_volume(shape: tuple[int, int, int, int]) -> np.ndarray:
    """Zeros (partition, coil, height, width) complex64; above `LARGEST_IN_MEMORY` in a file without a name."""
    num_bytes = math.prod(shape) * np.dtype(np.complex64).itemsize
    if num_bytes <= LARGEST_IN_MEMORY:
        return np.zeros(shape, np.complex64)
    # the mapping holds its own descriptor: the file is gone with the last reference to the array
    with tempfile.TemporaryFile(prefix="larmor-volume-") as file:
        return np.memmap(file, np.complex64, mode="w+", shape=shape)


def partitions_to_slices(volume: np.ndarray) -> None:
    """Centred orthonormal inverse FFT along axis 0 of (partition, coil, height, width), in place, in blocks."""
    depth, num_coils, height, width = volume.shape
    rows = max(1, BLOCK // (depth * width * volume.itemsize))
    for coil in range(num_coils):
        for top in range(0, height, rows):
            block = volume[:, coil, top : top + rows]
            block[...] = to_image(np.array(block), axes=(0,))
