"""BART's .cfl/.hdr pairs: complex64 in column-major order, its dimensions in a text file beside it.

Source: https://mrirecon.github.io/bart (README, "Data format") and BART's `src/misc/mri.h` for the
dimensions. BART's k-space is centred; `bart fft -u` is the orthonormal transform.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.formats.partitions import new_volume, partitions_to_slices
from larmor.storage.formats.source import Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

SUFFIXES = (".cfl", ".hdr")
READ, PHASE1, PHASE2, COIL, SLICE = 0, 1, 2, 3, 13
DIMENSIONS = (
    *("read", "phase1", "phase2", "coil", "maps", "TE", "coefficient", "coefficient2", "iteration", "cshift"),
    *("time", "time2", "level", "slice", "average", "batch"),
)


def pair(name: str) -> tuple[str, str]:
    """The two names (data, header) of the pair that the path or URL `name` belongs to.

    Raises `InputError` for a name with another suffix.
    """
    stem, dot, suffix = name.rpartition(".")
    if f"{dot}{suffix.lower()}" in SUFFIXES:
        data, header = ((text.upper() if suffix.isupper() else text) for text in SUFFIXES)
        return stem + data, stem + header
    raise InputError(f"{name}: not the name of a BART file; expected {' or '.join(SUFFIXES)}")


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> Source:
    """The slices of one pair, given by either file or both; `options` do not apply.

    (height, width) is BART's (read, phase1). Slices are those of dimension 13; with a dimension 2 above 1
    (3-D encoding) each of them gives as many slices as there are partitions, by the inverse FFT.

    Raises `InputError` for a missing half, a size that does not fit, or a dimension that is not understood.
    """
    names = {pair(str(path)) for path in files}
    if len(names) != 1:
        raise InputError(f"{len(names)} BART pairs are given for one scan; give the .cfl and the .hdr of one")
    data, header = (Path(name) for name in names.pop())
    sizes = _read_dimensions(header)
    order = (SLICE, PHASE2, COIL, READ, PHASE1)
    num_slabs, depth, num_coils, height, width = (sizes[axis] for axis in order)
    stored = np.moveaxis(_map(data, sizes), order, range(len(order)))
    stored = stored.reshape(num_slabs, depth, num_coils, height, width)  # the other sizes are 1: still a view
    slice_shape = (num_coils, height, width)

    slab: dict[int, np.ndarray] = {}  # the one transformed last

    def read(index: int) -> np.ndarray:
        number, partition = divmod(index, depth)
        if depth == 1:
            return stored[number, 0]
        if number not in slab:
            slab.clear()
            slab[number] = _to_slices(data, stored[number])
        return slab[number][partition]

    return MeasuredKspace(data, read, num_slabs * depth, slice_shape, release=slab.clear)


def write_cfl(stem: Path, array: np.ndarray) -> None:
    """Write `stem`.cfl and `stem`.hdr, the axes of `array` in BART's order of dimensions."""
    sizes = (*array.shape, *[1] * (len(DIMENSIONS) - array.ndim))
    header, data = (stem.with_name(stem.name + suffix) for suffix in (".hdr", ".cfl"))
    header.write_text(f"# Dimensions\n{' '.join(map(str, sizes))}\n")
    data.write_bytes(array.astype("<c8").tobytes(order="F"))


def read_cfl(stem: Path) -> np.ndarray:
    """`stem`.cfl, mapped, with all 16 dimensions; raises `InputError` as `open_source` does."""
    data, header = (Path(name) for name in pair(f"{stem}.cfl"))
    return _map(data, _read_dimensions(header))


def _read_dimensions(header: Path) -> tuple[int, ...]:
    """The 16 sizes. Only the line after `# Dimensions` is read: the others hold the user's command and paths."""
    if not header.is_file():
        raise InputError(f"{header}: no such file; a BART scan is a .cfl and a .hdr of one name, put it beside")
    lines = header.read_bytes()[: 2**20].decode("utf-8", "replace").splitlines()
    try:
        line = lines[[line.strip() for line in lines].index("# Dimensions") + 1]
        sizes = tuple(int(word) for word in line.split())
    except (ValueError, IndexError) as error:
        raise InputError(f"{header}: has no line of whole numbers after '# Dimensions'; write it with BART") from error
    if not sizes or min(sizes) < 1:
        raise InputError(f"{header}: states the dimensions {sizes}; each must be 1 or more")
    sizes += (1,) * (len(DIMENSIONS) - len(sizes))
    for number, size in enumerate(sizes):
        if size > 1 and number not in (READ, PHASE1, PHASE2, COIL, SLICE):
            name = DIMENSIONS[number] if number < len(DIMENSIONS) else "unknown"
            raise InputError(
                f"{header}: dimension {number} ({name}) is {size}; only read, phase1, phase2, coil and slice may be "
                f"above 1, take one with `bart slice {number} 0` or combine them with `bart avg`"
            )
    return sizes[: len(DIMENSIONS)]


def _map(data: Path, sizes: tuple[int, ...]) -> np.ndarray:
    expected = math.prod(sizes) * np.dtype("<c8").itemsize
    if not data.is_file():
        raise InputError(f"{data}: no such file; a BART scan is a .cfl and a .hdr of one name, put it beside")
    found = data.stat().st_size
    if found != expected:
        raise InputError(
            f"{data}: has {found} bytes, its header's dimensions {sizes} need {expected}; truncated? fetch it again"
        )
    return np.memmap(data, "<c8", mode="r", shape=sizes, order="F")


def _to_slices(data: Path, slab: np.ndarray) -> np.ndarray:
    """(partition, coil, height, width) k-space → the same with slices along axis 0."""
    volume = new_volume(slab.shape)
    for partition, kspace in enumerate(slab):
        # the transform would spread one bad value over all slices
        if not np.isfinite(kspace).all():
            raise InputError(f"{data}: partition {partition} has values that are not finite; repair the file")
        volume[partition] = kspace
    partitions_to_slices(volume)
    return volume
