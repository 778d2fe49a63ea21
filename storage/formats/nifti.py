"""NIfTI volumes, plain or compressed by gzip or bzip2."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.compressed import open_unpacked, read_to_end
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
    """The coronal slices of one NIfTI file. Raises `InputError` as `read_volume` does."""
    (path,) = files
    return VolumeSource(read_volume(path), options)


def read_volume(path: Path) -> Volume:
    """Read one 3-D NIfTI file, check it, and turn it to the canonical orientation (RAS+).

    Raises `InputError` for a file that is missing, is not NIfTI, is cut short, has an impossible header, is
    not 3-D, holds non-finite values or anything but one real number per voxel, or is constant.
    """
    subject_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    return read_voxels(path, path)


def read_voxels(path: Path, header_path: Path) -> Volume:
    """The volume whose voxels lie in `path`, and whose header in `header_path`. Raises as `read_volume` does."""
    from nibabel.orientations import OrientationError

    header = _read_header(header_path)
    stored = header.stored
    shape = tuple(int(size) for size in stored.get_data_shape())
    if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
        raise InputError(f"{path}: has shape {shape}; one 3-D volume is expected")
    if min(shape) < 1:
        raise InputError(f"{path}: its header is invalid (shape {shape}); export the volume again")
    if stored.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: has voxels of type {stored.get_data_dtype()}; one real number each is expected")
    try:
        data = gather_slabs(path, shape[:3], _slabs(path, stored))
    except InputError:
        raise
    except (EOFError, zlib.error, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error
    try:
        return canonical_volume(data, header.affine, header.notes)
    except (OrientationError, np.linalg.LinAlgError, OverflowError) as error:
        raise InputError(f"{path}: its header is invalid ({error}); export the volume again") from error


def _read_header(path: Path) -> NiftiHeader:
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
