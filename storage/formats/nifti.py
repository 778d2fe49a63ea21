"""NIfTI volumes, plain or compressed by gzip or bzip2."""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import InputError
from storage.formats.compressed import opened
from storage.formats.source import SourceOptions, SourceRef
from storage.volume_array import gather_slabs, slab_depth
from storage.volumes import Volume, VolumeSource, canonical_volume

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
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.orientations import OrientationError
    from nibabel.spatialimages import HeaderDataError

    subject_of(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    try:
        image: Any = nibabel.load(path)
        shape = tuple(int(size) for size in image.shape)
        if len(shape) != 3 and not (len(shape) == 4 and shape[3] == 1):
            raise InputError(f"{path}: has shape {shape}; one 3-D volume is expected")
        if min(shape) < 1:
            raise InputError(f"{path}: its header makes no sense (shape {shape}); export the volume again")
        if image.get_data_dtype().kind not in "iuf":
            raise InputError(f"{path}: has voxels of type {image.get_data_dtype()}; one real number each is expected")
        data = gather_slabs(path, shape[:3], _slabs(path, image.dataobj))
        return canonical_volume(data, image.affine)
    except InputError:
        raise
    except ImageFileError as error:
        raise InputError(f"{path}: is not what its name says ({error}); a NIfTI file is expected") from error
    except (HeaderDataError, OrientationError, np.linalg.LinAlgError, OverflowError) as error:
        raise InputError(f"{path}: its header makes no sense ({error}); export the volume again") from error
    except (EOFError, zlib.error, OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error


def _slabs(path: Path, stored: Any) -> Iterator[np.ndarray]:
    """What nibabel's array proxy `stored` stands for, (x, y, depth) at a time, scaled, in one pass over the file."""
    from nibabel.arrayproxy import ArrayProxy

    with opened(path) as file:
        # over our own file, for nibabel would open and decompress it again for every slab
        proxy = ArrayProxy(file, (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter))
        depth = slab_depth(stored.shape)
        for first in range(0, stored.shape[2], depth):
            planes = slice(first, min(first + depth, stored.shape[2]))
            yield proxy[(slice(None), slice(None), planes, *[0] * (len(stored.shape) - 3))]
