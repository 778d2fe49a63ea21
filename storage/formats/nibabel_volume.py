"""Volumes of further kinds that nibabel reads: Analyze and NIfTI pairs, FreeSurfer's MGH, MINC, Philips PAR/REC."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.compressed import open_unpacked, read_to_end
from larmor.storage.formats.nifti import read_voxels
from larmor.storage.formats.nifti_header import LARGEST_HEADER
from larmor.storage.formats.source import SourceOptions, SourceRef
from larmor.storage.formats.volume_array import gather_slabs, slab_depth
from larmor.storage.formats.volumes import VolumeSource, canonical_volume
from larmor.storage.objects.errors import InputError

# what nibabel and the libraries below it raise for damaged files, beside its own errors
_UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError)
_UNREADABLE += (RuntimeError, AssertionError, OverflowError, struct.error, zlib.error)


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> VolumeSource:
    """The coronal slices of one volume, whose first file holds its voxels; a header and SPM's `.mat` may follow.

    Raises `InputError` for a missing half, a file that is damaged or of another kind, is not 3-D, holds values that are
    not finite or anything but one real number for each voxel, or is constant.
    """
    from nibabel.orientations import OrientationError

    for path in files:
        if not path.is_file():
            pair = ", which its other half needs; put it in the same folder" if len(files) > 1 else ""
            raise InputError(f"{path}: no such file{pair}")
    path = files[0]
    if len(files) > 1 and _is_nifti(files[1]):
        return VolumeSource(read_voxels(path, files[1], options.single), options)
    image = _load(path)
    shape = _checked_shape(path, image)
    try:
        data = gather_slabs(path, shape, _slabs(image))
        return VolumeSource(canonical_volume(data, image.affine, _notes(image)), options)
    except InputError:
        raise
    except (OrientationError, np.linalg.LinAlgError) as error:
        raise InputError(f"{path}: its header is invalid ({error}); export the volume again") from error
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error


def _is_nifti(header: Path) -> bool:
    from nibabel import Nifti1Header, Nifti2Header

    with header.open("rb") as file:
        block = file.read(LARGEST_HEADER)
    return any(kind.may_contain_header(block) for kind in (Nifti1Header, Nifti2Header))


def _load(path: Path) -> Any:
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.minc1 import MincError
    from nibabel.parrec import PARRECError
    from nibabel.spatialimages import HeaderDataError

    senseless: tuple[type[Exception], ...] = (HeaderDataError, MincError, PARRECError, *_UNREADABLE)
    try:
        image: Any = nibabel.load(path)
    except ImageFileError as error:
        raise InputError(f"{path}: does not match its suffix ({error}); export or fetch it again") from error
    except (EOFError, zlib.error) as error:
        raise InputError(f"{path}: cannot be read to its end ({error}); truncated? fetch or export it again") from error
    except senseless as error:
        raise InputError(f"{path}: its header is invalid ({error}); export or fetch it again") from error
    return image


def _notes(image: Any) -> tuple[str, ...]:
    from nibabel.analyze import AnalyzeHeader

    mat = image.file_map.get("mat")
    if not isinstance(image.header, AnalyzeHeader) or (mat and Path(mat.filename).is_file()):
        return ()
    return (
        "the header (Analyze) states no orientation; the axes are assumed to run right to left, posterior to anterior "
        "and inferior to superior; if they do not, slices are not coronal: write the volume as NIfTI with its "
        "orientation",
    )


def _checked_shape(path: Path, image: Any) -> tuple[int, int, int]:
    shape = tuple(int(size) for size in image.shape)
    if len(shape) == 4 and shape[3] == 1:
        shape = shape[:3]
    if len(shape) != 3:
        raise InputError(f"{path}: has shape {shape}; one 3-D volume is expected")
    if min(shape) < 1:
        raise InputError(f"{path}: its header is invalid (shape {shape}); export the volume again")
    if image.get_data_dtype().kind not in "iuf":
        raise InputError(f"{path}: has voxels of type {image.get_data_dtype()}; one real number each is expected")
    return shape[0], shape[1], shape[2]


def _slabs(image: Any) -> Iterator[np.ndarray]:
    """The voxels, (x, y, depth) at a time, scaled."""
    from nibabel.arrayproxy import ArrayProxy

    stored = image.dataobj
    if type(stored) is not ArrayProxy:  # proxies of other kinds read from files that are not compressed
        yield from _planes(stored)
        return
    path = Path(image.file_map["image"].filename)
    with open_unpacked(path) as file:
        # over our own file, for nibabel would open and decompress it again for every slab
        yield from _planes(ArrayProxy(file, (stored.shape, stored.dtype, stored.offset, stored.slope, stored.inter)))
        read_to_end(path, file)


def _planes(stored: Any) -> Iterator[np.ndarray]:
    depth = slab_depth(stored.shape)
    for first in range(0, stored.shape[2], depth):
        planes = slice(first, min(first + depth, stored.shape[2]))
        yield np.asarray(stored[(slice(None), slice(None), planes, *[0] * (len(stored.shape) - 3))])
