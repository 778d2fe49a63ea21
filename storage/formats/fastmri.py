"""fastMRI HDF5: `kspace` of one scan, single- or multi-coil.

Source: https://github.com/facebookresearch/fastMRI and the data set's paper (arXiv:1811.08839, section 4):
`kspace` is (slice, coil, height, width) or (slice, height, width) complex64, height along the readout,
centred, for an orthonormal FFT. `mask` of test and challenge files is (width,): the columns that were measured.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from larmor.storage.formats import ismrmrd_header
from larmor.storage.formats.hdf5 import open_file
from larmor.storage.formats.kspace_energy import notes_on_slice
from larmor.storage.formats.measured import MeasuredKspace, num_gaps, only_file
from larmor.storage.formats.source import Facts, Source, SourceOptions, SourceRef
from larmor.storage.objects.errors import InputError

SUFFIXES = (".h5", ".hdf5")


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> Source:
    """The slices of one fastMRI file; of `options` only `undersampled` applies.

    Raises `InputError` for a file that is not fastMRI, is truncated or, unless it may, holds undersampled k-space.
    """
    path = only_file(files)
    file = open_file(path)
    try:
        return _source(path, file, options.undersampled)
    except InputError:
        file.close()
        raise
    except (OSError, RuntimeError) as error:  # what h5py raises for damaged metadata
        file.close()
        raise InputError(f"{path}: cannot be read ({error}); truncated? fetch it again") from error


def subject_key(path: Path) -> str | None:
    """What the scans of one person have in common: the attribute `patient_id`, None if the file has none.

    For grouping in memory only: it must not be stored or printed.

    Raises `InputError` for a file that is not HDF5.
    """
    with open_file(path) as file:
        return _text(file.attrs.get("patient_id"))


def _source(path: Path, file: h5py.File, undersampled: bool) -> Source:
    stored = file.get("kspace")
    if not isinstance(stored, h5py.Dataset):
        raise InputError(f"{path}: has no dataset 'kspace', only {', '.join(file) or 'nothing'}; is it fastMRI?")
    shape: tuple[int, ...] = stored.shape or ()
    if len(shape) not in (3, 4) or 0 in shape:
        raise InputError(
            f"{path}: 'kspace' has shape {shape}; (slice, coil, height, width) or (slice, height, width) is expected"
        )
    if stored.dtype.kind != "c":
        raise InputError(f"{path}: 'kspace' holds {stored.dtype}; complex64 is expected, convert it to complex numbers")
    num_coils = shape[1] if len(shape) == 4 else 1
    slice_shape = (num_coils, shape[-2], shape[-1])
    mask = _mask(path, file, (shape[0], *slice_shape[1:]))
    if mask is not None and not undersampled:
        _check_whole(path, mask)
    about: Facts = {"acquisition": _text(file.attrs.get("acquisition"))}
    voxel_size = None
    header = _header(file)
    if header is not None:
        about.update(ismrmrd_header.facts(header))
        if header.encoding:
            voxel_size = ismrmrd_header.voxel_size(header.encoding[0], shape[-2], shape[-1])

    def read(index: int) -> np.ndarray:
        return np.asarray(stored[index]).reshape(slice_shape)

    about = {name: value for name, value in about.items() if value is not None}
    notes = notes_on_slice(read(shape[0] // 2))
    return MeasuredKspace(
        path, read, shape[0], slice_shape, voxel_size, about, mask=mask, release=file.close, notes=notes
    )


def _mask(path: Path, file: h5py.File, shape: tuple[int, ...]) -> np.ndarray | None:
    """The dataset `mask`, True where k-space was measured, as `shape` (slice, height, width); None without one."""
    stored = file.get("mask")
    if not isinstance(stored, h5py.Dataset):
        return None
    values = np.asarray(stored[()])
    if values.dtype.kind not in "buif" or not np.isin(values, (0, 1)).all():
        raise InputError(f"{path}: 'mask' ({values.dtype}) holds values other than 0 and 1; save it as True or False")
    if not values.any():
        raise InputError(f"{path}: 'mask' measures nothing; 1 says where k-space was measured")
    if values.shape not in (shape, shape[1:], shape[2:]):
        raise InputError(
            f"{path}: 'mask' has shape {values.shape}; (width,), (height, width) or (slice, height, width) is "
            f"expected, of {shape}"
        )
    return np.broadcast_to(values.astype(bool), shape)


def _check_whole(path: Path, mask: np.ndarray) -> None:
    gaps = [num_gaps(one) for one in (mask[:1] if mask.strides[0] == 0 else mask)]
    if any(gaps):
        raise InputError(
            f"{path}: its 'mask' leaves out {max(gaps)} of {mask[0].size} points between measured ones, so its "
            "k-space is undersampled (a challenge or test file); no fully sampled target can be made from it, use "
            "the training or validation files, or remove 'mask' if all was measured"
        )


def _header(file: h5py.File) -> Any:
    """The ISMRMRD header; None if there is none to be read, since only voxel size and facts depend on it."""
    stored = file.get("ismrmrd_header")
    if not isinstance(stored, h5py.Dataset) or stored.shape != ():
        return None
    document = stored[()]
    if not isinstance(document, bytes | str):
        return None
    try:
        return ismrmrd_header.parse(document)
    except ismrmrd_header.HeaderError:
        return None


def _text(value: object) -> str | None:
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    return value if isinstance(value, str) and value else None
