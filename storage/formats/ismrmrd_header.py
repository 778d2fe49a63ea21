"""The ISMRMRD XML header, which MRD and fastMRI files carry: what of it is worth storing."""

from __future__ import annotations

import math
import warnings
from typing import Any

from larmor.storage.formats.source import Facts

LARGEST_MATRIX = 2**16 - 1  # of the format's unsignedShort


class HeaderError(ValueError):
    """The text is no ISMRMRD header; each format decides what that means."""


def parse(document: bytes | str) -> Any:
    """The header object of the `ismrmrd` package. Raises `HeaderError` for anything else than a valid header."""
    from ismrmrd import xsd

    try:
        with warnings.catch_warnings():
            # a value of the wrong type is left as text, with a warning that would print it: a birth date, say
            warnings.simplefilter("ignore")
            header = xsd.CreateFromDocument(document)
    except (ValueError, TypeError, SyntaxError) as error:
        raise HeaderError(str(error)) from error
    for encoding in header.encoding:
        _check_numbers(encoding)
    return header


def _check_numbers(encoding: Any) -> None:
    for name in ("encodedSpace", "reconSpace"):
        space = getattr(encoding, name)
        if space is None or space.matrixSize is None or space.fieldOfView_mm is None:
            raise HeaderError(f"its {name} is not complete")
        for axis in ("x", "y", "z"):
            size, length = getattr(space.matrixSize, axis), getattr(space.fieldOfView_mm, axis)
            if not isinstance(size, int) or not 1 <= size <= LARGEST_MATRIX:
                raise HeaderError(f"{name}.matrixSize.{axis} is {size!r}; 1 to {LARGEST_MATRIX} is expected")
            if not isinstance(length, int | float):
                raise HeaderError(f"{name}.fieldOfView_mm.{axis} is {length!r}; a number is expected")
    for name in ("kspace_encoding_step_1", "kspace_encoding_step_2"):
        limit = getattr(encoding.encodingLimits, name, None)
        if limit and not all(isinstance(value, int) for value in (limit.minimum, limit.maximum, limit.center)):
            raise HeaderError(f"encodingLimits.{name} holds something else than whole numbers")


def facts(header: Any, encoding: int = 0) -> Facts:
    """How the scan was measured. Copies named fields only, so that nothing that identifies a person can slip in.

    Not taken, though present in real files: subject, study, measurement ids, dates, institution, station,
    device id, protocol name and user parameters.
    """
    system = header.acquisitionSystemInformation
    sequence = header.sequenceParameters
    found: Facts = {}
    if system is not None:
        found["vendor"] = system.systemVendor
        found["model"] = system.systemModel
        found["field_strength_T"] = _numbers(system.systemFieldStrength_T)
        found["receiver_channels"] = _numbers(system.receiverChannels)
    if sequence is not None:
        found["sequence_type"] = sequence.sequence_type
        found["repetition_time_ms"] = _numbers(sequence.TR)
        found["echo_time_ms"] = _numbers(sequence.TE)
        found["inversion_time_ms"] = _numbers(sequence.TI)
        found["flip_angle_deg"] = _numbers(sequence.flipAngle_deg)
    if encoding < len(header.encoding):
        space = header.encoding[encoding]
        found["trajectory"] = trajectory(space)
        for name, part in (("encoded", space.encodedSpace), ("recon", space.reconSpace)):
            found[f"{name}_matrix"] = [part.matrixSize.x, part.matrixSize.y, part.matrixSize.z]
            size = part.fieldOfView_mm
            found[f"{name}_field_of_view_mm"] = [size.x, size.y, size.z]
    return {name: value for name, value in found.items() if value not in (None, [], "")}


def _numbers(value: Any) -> Any:
    """`value` if it is a finite number or a list of them, else None: what is no number was left as text."""
    values = value if isinstance(value, list) else [value]
    return value if all(isinstance(one, int | float) and math.isfinite(one) for one in values) else None


def trajectory(encoding: Any) -> str:
    """`cartesian`, `epi`, `radial`, …"""
    return str(getattr(encoding.trajectory, "value", encoding.trajectory)).lower()


def calibrates_apart(encoding: Any) -> bool:
    """Whether the lines for calibration are of another scan, so that their contrast may be another too."""
    mode = getattr(encoding.parallelImaging, "calibrationMode", None)
    return getattr(mode, "value", mode) in ("separate", "external")


def voxel_size(encoding: Any, height: int, width: int) -> tuple[float, float, float] | None:
    """(row, column, slice) in mm of slices stored as (height, width) = (readout, phase encoding).

    An axis with as many samples as the reconstructed image had its oversampling removed and spans the
    reconstructed field of view; any other number is zero-filled or cropped k-space, which spans the encoded
    one. The slice size is the thickness (2-D; gaps are not stated) or the partition's (3-D). None if a size
    is not positive.
    """
    encoded, recon = encoding.encodedSpace, encoding.reconSpace
    sizes = []
    for axis, stored in (("x", height), ("y", width)):
        cropped = stored != getattr(encoded.matrixSize, axis) and stored == getattr(recon.matrixSize, axis)
        space = recon if cropped else encoded
        sizes.append(float(getattr(space.fieldOfView_mm, axis)) / stored)
    depth = float(encoded.fieldOfView_mm.z) / encoded.matrixSize.z
    if not all(0 < size < float("inf") for size in (*sizes, depth)):
        return None
    return sizes[0], sizes[1], depth
