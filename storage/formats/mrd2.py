"""Headers and lines of MRD 2 as those of ISMRMRD, whose scans Larmor assembles, and ISMRMRD images as those of MRD 2.

Source: https://ismrmrd.github.io/mrd, the types of the `mrd` and the `ismrmrd` package.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np

from larmor.storage.objects.errors import InputError

_COUNTERS = ("average", "slice", "contrast", "phase", "repetition", "set")
_STEPS = ("kspace_encode_step_1", "kspace_encode_step_2", *_COUNTERS, "segment")
_DIRECTIONS = ("position", "read_dir", "phase_dir", "slice_dir", "patient_table_position")
_NUMBERS = ("discard_pre", "discard_post", "center_sample", "encoding_space_ref")
_STAMPS = 3
_LARGEST = 2**16 - 1  # of a counter of ISMRMRD


def check_installed() -> None:
    """Raises `InputError` without the `mrd` package."""
    try:
        import mrd  # noqa: F401
    except ImportError as error:
        raise InputError(f"MRD 2 needs mrd-python ({error}); install it with pip install 'larmor-mri[mrd2]'") from error


def ismrmrd_document(header: Any) -> bytes:
    """The XML of ISMRMRD for the encodings of an `mrd.Header`. Raises `InputError` for one that has no encoding, or
    values that ISMRMRD does not know."""
    from ismrmrd import xsd

    if header is None or not header.encoding:
        raise InputError("the stream's header describes no encoding; send the header of the scan")
    frequency = int(header.experimental_conditions.h1resonance_frequency_hz)
    try:
        found = xsd.ismrmrdHeader(
            experimentalConditions=xsd.experimentalConditionsType(H1resonanceFrequency_Hz=frequency),
            encoding=[_encoding(encoding) for encoding in header.encoding],
        )
    except ValueError as error:
        raise InputError(f"the stream's header cannot be read ({error}); correct it") from error
    return str(xsd.ToXML(found)).encode()


def ismrmrd_line(acquisition: Any) -> tuple[bytes, np.ndarray]:
    """The ISMRMRD header, as bytes, and the samples (coil, sample) complex64 of an `mrd.Acquisition`.

    Raises `InputError` for one without samples, and counters that are too large.
    """
    import ismrmrd

    head, (channels, samples) = acquisition.head, acquisition.data.shape
    if not channels or not samples:
        raise InputError("an acquisition has no samples or no channels; correct its data")
    line = ismrmrd.AcquisitionHeader(
        version=1,
        flags=int(head.flags),
        measurement_uid=head.measurement_uid,
        scan_counter=head.scan_counter or 0,
        acquisition_time_stamp=head.acquisition_time_stamp or 0,
        number_of_samples=_short("samples", samples),
        available_channels=_short("channels", channels),
        active_channels=channels,
        sample_time_us=head.sample_time_us or 0,
        **{name: _short(name, getattr(head, name)) for name in _NUMBERS},
    )
    line.physiology_time_stamp[:] = (list(head.physiology_time_stamp) + [0] * _STAMPS)[:_STAMPS]
    for name in _DIRECTIONS:
        getattr(line, name)[:] = getattr(head, name).tolist()
    for name in _STEPS:
        setattr(line.idx, name, _short(name, getattr(head.idx, name)))
    return bytes(line), acquisition.data


def mrd2_image(image: Any) -> Any:
    """The `mrd.Image` (channel, slice, row, column) of a magnitude `ismrmrd.Image`."""
    import mrd

    old = image.getHead()
    head = mrd.ImageHeader(
        image_type=mrd.ImageType.MAGNITUDE,
        measurement_uid=old.measurement_uid,
        col_dir=np.array(old.read_dir, np.float32),
        line_dir=np.array(old.phase_dir, np.float32),
        acquisition_time_stamp=old.acquisition_time_stamp,
        physiology_time_stamp=list(old.physiology_time_stamp),
        image_index=old.image_index,
        image_series_index=old.image_series_index,
        **{
            name: np.array(getattr(old, name), np.float32)
            for name in ("field_of_view", "position", "slice_dir", "patient_table_position")
        },
        **{name: getattr(old, name) for name in _COUNTERS},
    )
    meta = {name: [mrd.ImageMetaValue.String(str(text))] for name, text in image.meta.items() if isinstance(text, str)}
    return mrd.Image(head=head, data=np.ascontiguousarray(image.data, np.float32), meta=meta)


def _encoding(encoding: Any) -> Any:
    from ismrmrd import xsd

    parallel = encoding.parallel_imaging
    return xsd.encodingType(
        encodedSpace=_space(encoding.encoded_space),
        reconSpace=_space(encoding.recon_space),
        encodingLimits=_limits(encoding.encoding_limits),
        trajectory=_named(xsd.trajectoryType, encoding.trajectory),
        parallelImaging=_parallel(parallel) if parallel else None,
    )


def _space(space: Any) -> Any:
    from ismrmrd import xsd

    size, view = space.matrix_size, space.field_of_view_mm
    return xsd.encodingSpaceType(
        matrixSize=xsd.matrixSizeType(x=size.x, y=size.y, z=size.z),
        fieldOfView_mm=xsd.fieldOfViewMm(x=view.x, y=view.y, z=view.z),
    )


def _limits(limits: Any) -> Any:
    from ismrmrd import xsd

    stated = {field.name: getattr(limits, field.name) for field in fields(xsd.encodingLimitsType)}
    return xsd.encodingLimitsType(
        **{
            name: xsd.limitType(minimum=one.minimum, maximum=one.maximum, center=one.center)
            for name, one in stated.items()
            if one
        }
    )


def _parallel(parallel: Any) -> Any:
    from ismrmrd import xsd

    factor, mode = parallel.acceleration_factor, parallel.calibration_mode
    return xsd.parallelImagingType(
        accelerationFactor=xsd.accelerationFactorType(**vars(factor)),
        calibrationMode=None if mode is None else _named(xsd.calibrationModeType, mode),
    )


def _named(kind: Any, value: Any) -> Any:
    """The member of an enumeration of ISMRMRD with the name of one of MRD 2."""
    if value.name not in kind.__members__:
        raise ValueError(f"{value} is no {kind.__name__}")
    return kind[value.name]


def _short(name: str, value: int | None) -> int:
    number = int(value or 0)
    if number > _LARGEST:
        raise InputError(f"an acquisition has {name}={number}; at most {_LARGEST} is possible, correct it")
    return number
