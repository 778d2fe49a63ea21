"""NIfTI volumes, plain or compressed by gzip or bzip2."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.compressed import open_unpacked, read_to_end
from larmor.storage.formats.grid import Grid
from larmor.storage.formats.nifti_header import LARGEST_HEADER, NiftiHeader, parse_header
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.formats.volume_array import gather_slabs, slab_depth
from larmor.storage.formats.volumes import Volume, VolumeSource, canonical_volume
from larmor.storage.objects.errors import InputError

SUFFIXES = (".nii", ".nii.gz", ".nii.bz2")


def subject_of(path: Path) -> str:
    """The volume's name: the file name without its NIfTI suffix."""
    name = path.name
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return name[: -len(suffix)]
    raise InputError(f"{path}: not a NIfTI file name; expected one of {', '.join(SUFFIXES)}")


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> VolumeSource:
    """The slices of one NIfTI file, or the frames of one slice of a series. Raises `InputError` as `read_volume`."""
    (path,) = files
    if ref.part:
        from larmor.storage.formats.nifti_series import open_part

        return open_part(path, ref.part, options)
    return VolumeSource(read_volume(path, options.single), options)


def read_volume(path: Path, single: bool = False) -> Volume:
    """Read one 3-D NIfTI file, with `single` also a 2-D one, check it, and turn it to the canonical orientation (RAS+).

    Raises `InputError` for a file that is missing, is not NIfTI, is cut short, has an impossible header, is
    not 3-D, holds non-finite values or anything but one real number per voxel, or is constant.
    """
    subject_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return read_voxels(path, path, single)


def read_voxels(path: Path, header_path: Path, single: bool = False) -> Volume:
    """The volume whose voxels lie in `path`, and whose header in `header_path`. Raises as `read_volume` does."""
    from nibabel.orientations import OrientationError

    header = read_header(header_path)
    stored = header.stored
    shape = own = tuple(int(size) for size in stored.get_data_shape())
    if single and len(shape) == 2:
        shape = (*shape, 1)
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
        series = "; choose --plane native for the frames of a series" if len(shape) == 4 else ""
        raise InputError(f"{path}: has shape {shape}; one 3-D volume is expected{series}")
    check_voxels(path, header)
    stored.set_data_shape(shape)
    data = gather(path, shape[:3], _slabs(path, stored))
    try:
        return canonical_volume(data, header.affine, header.notes, Grid(own, header.affine, stored))
    except (OrientationError, np.linalg.LinAlgError, OverflowError) as error:
        raise InputError(f"{path}: its header is invalid ({error}); export the volume again") from error


def check_voxels(path: Path, header: NiftiHeader) -> None:
    """Raises `InputError` for an impossible shape, and for anything but one real number per voxel."""
    shape, kind = tuple(header.stored.get_data_shape()), header.stored.get_data_dtype()
    if min(shape) < 1:
        raise InputError(f"{path}: its header is invalid (shape {shape}); export the volume again")
    if kind.kind not in "iuf":
        raise InputError(f"{path}: has voxels of type {kind}; one real number each is expected")


def gather(path: Path, shape: tuple[int, int, int], slabs: Iterator[np.ndarray]) -> np.ndarray:
    """`gather_slabs` of a NIfTI file. Raises `InputError` for a file that is cut short or damaged, too."""
    try:
        return gather_slabs(path, shape, slabs)
    except InputError:
        raise
    except (EOFError, zlib.error, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error


def read_header(path: Path) -> NiftiHeader:
    """The checked header of a file. Raises `InputError` for one that is none, or makes no sense."""
    try:
        with open_unpacked(path) as file:
            return parse_header(path, file.read(LARGEST_HEADER))
    except gzip.BadGzipFile as error:
        raise InputError(f"{path}: does not match its suffix ({error}); a NIfTI file is expected") from error
    except (EOFError, zlib.error, OSError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error


def _slabs(path: Path, header: Any) -> Iterator[np.ndarray]:
    """The voxels that nibabel's `header` describes, (x, y, depth) at a time, scaled, in one pass over the file."""
    from nibabel.arrayproxy import ArrayProxy

    with open_unpacked(path) as file:
        # over our own file, for nibabel would open and decompress it again for every slab
        proxy = ArrayProxy(file, header)
        depth = slab_depth(proxy.shape)
        for first in range(0, proxy.shape[2], depth):
            planes = slice(first, min(first + depth, proxy.shape[2]))
            yield proxy[(slice(None), slice(None), planes, *[0] * (len(proxy.shape) - 3))]
        read_to_end(path, file)
