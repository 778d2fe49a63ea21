"""NIfTI headers: read, repaired where that is safe, with a note of what was repaired or taken for granted.

Source: https://nifti.nimh.nih.gov/pub/dist/src/niftilib/nifti1.h (pixdim, xyzt_units, qform_code, sform_code,
quatern_b).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.objects.errors import InputError

LARGEST_HEADER = 540  # bytes: NIfTI-2
LONGEST_QUATERNION = 1 + 1e-4
"""Squared: what rounding to five decimal places can make of a unit quaternion."""
_OTHER_UNITS = {1: ("m", 1e3), 3: ("µm", 1e-3)}  # of xyzt_units; all else is taken as mm


@dataclass(frozen=True)
class NiftiHeader:
    """A checked header.

    `stored` is nibabel's, which says how voxels lie in the file; `affine` (4, 4) maps voxel indices to RAS+ mm;
    `notes` are sentences about the file.
    """

    stored: Any
    affine: np.ndarray
    notes: tuple[str, ...]


def parse_header(path: Path, block: bytes) -> NiftiHeader:
    """The header of `path`, whose first `LARGEST_HEADER` bytes are `block`.

    Raises `InputError` if it is no NIfTI header, or one that makes no sense.
    """
    from nibabel import Nifti1Header, Nifti2Header
    from nibabel.spatialimages import HeaderDataError

    kind = next((kind for kind in (Nifti1Header, Nifti2Header) if kind.may_contain_header(block)), None)
    if kind is None:
        raise InputError(f"{path}: does not match its suffix (it has no NIfTI header); a NIfTI file is expected")
    try:
        header: Any = kind(block[: kind.sizeof_hdr], check=False)
        notes = [*_repair_start(header), *_repair_sizes(header), *_check(header)]
        notes += [*_repair_quaternion(path, header), *_orientation(header)]
        affine, more = _in_millimetres(header)
        return NiftiHeader(header, affine, (*notes, *more))
    except InputError:
        raise
    except (HeaderDataError, ValueError, OverflowError, np.linalg.LinAlgError) as error:
        raise InputError(f"{path}: its header is invalid ({error}); export the volume again") from error


def _repair_start(header: Any) -> list[str]:
    """Voxels of a single file begin behind its header; nibabel takes a 0 at its word, and the header for voxels."""
    if header["magic"].item() != header.single_magic or int(header["vox_offset"]):
        return []
    header["vox_offset"] = header.single_vox_offset
    return [
        f"the header says that the voxels begin at byte 0, which is the header's (vox_offset); byte "
        f"{header.single_vox_offset} is taken, the first one behind it"
    ]


def _repair_sizes(header: Any) -> list[str]:
    """Voxels of size zero become 1 mm, where their place follows from their size."""
    sizes = header["pixdim"][1:4]
    missing = [str(axis) for axis in range(3) if sizes[axis] == 0]
    sizes[sizes == 0] = 1
    if not missing or int(header["sform_code"]):
        return []
    return [
        f"the header states a voxel size of 0 along axis {' and '.join(missing)} (pixdim); 1 mm is assumed, so "
        "distances may be wrong: write the size into the file"
    ]


def _check(header: Any) -> list[str]:
    """nibabel's own checks, whose repairs it would log without the name of the file."""
    found: list[str] = []
    logger = logging.Logger("nifti-header", logging.WARNING)  # of this header alone
    logger.addHandler(_Collector(found))
    header.check_fix(logger=logger, error_level=logging.ERROR)
    return [f"the header is faulty: {message}" for message in found]


class _Collector(logging.Handler):
    def __init__(self, found: list[str]) -> None:
        super().__init__()
        self._found = found

    def emit(self, record: logging.LogRecord) -> None:
        self._found.append(record.getMessage())


def _repair_quaternion(path: Path, header: Any) -> list[str]:
    """A quaternion that is longer than 1 by rounding is made 1 long."""
    if int(header["sform_code"]) or not int(header["qform_code"]):
        return []  # it is not used
    names = ("quatern_b", "quatern_c", "quatern_d")
    imaginary = np.array([header[name] for name in names], np.float64)
    square = float(imaginary @ imaginary)
    if not square > 1 + header.quaternion_threshold:
        return []
    if square > LONGEST_QUATERNION:
        raise InputError(
            f"{path}: its header is invalid (the square of its quaternion is {square:.4g}, of a rotation at most "
            "1); export the volume again"
        )
    for name, value in zip(names, imaginary / np.sqrt(square), strict=True):
        header[name] = value
    return ["the quaternion in the header is longer than 1 by rounding and was normalised"]


def _orientation(header: Any) -> list[str]:
    if int(header["sform_code"]) or int(header["qform_code"]):
        return []
    return [
        "the header states no orientation (qform_code and sform_code are 0); the axes are assumed to run right to "
        "left, posterior to anterior and inferior to superior; if they do not, slices are not coronal: write the "
        "orientation into the file"
    ]


def _in_millimetres(header: Any) -> tuple[np.ndarray, list[str]]:
    affine = np.array(header.get_best_affine(), np.float64)
    unit, factor = _OTHER_UNITS.get(int(header["xyzt_units"]) % 8, ("mm", 1.0))
    affine[:3] *= factor
    return affine, [] if unit == "mm" else [
        f"the header states lengths in {unit} (xyzt_units); they are converted to mm"
    ]
