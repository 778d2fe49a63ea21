"""What the headers of a DICOM series say of its images: where each lies, and what its numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from larmor.storage.formats.dicom_header import UNREADABLE, differing, read_header, telling
from larmor.storage.formats.source import Facts
from larmor.storage.objects.errors import InputError

LPS_TO_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])
_PHASES = {"P", "PHASE", "PHASE MAP", "VELOCITY MAP"}
FACTS = {  # provenance ← (attribute, its place in an enhanced file); nothing here identifies a person
    "magnetic_field_strength_t": ("MagneticFieldStrength", "", float),
    "repetition_time_ms": ("RepetitionTime", "MRTimingAndRelatedParametersSequence", float),
    "echo_time_ms": ("EchoTime", "", float),
    "effective_echo_time_ms": ("EffectiveEchoTime", "MREchoSequence", float),
    "inversion_time_ms": ("InversionTime", "", float),
    "flip_angle_deg": ("FlipAngle", "MRTimingAndRelatedParametersSequence", float),
    "manufacturer": ("Manufacturer", "", str),
    "sequence_name": ("SequenceName", "", str),
    "pulse_sequence_name": ("PulseSequenceName", "", str),
}


@dataclass(frozen=True)
class Frame:
    """One image of a file: `shape` (rows, columns), `position` (3,) of its first pixel in LPS mm.

    `directions` (2, 3) are the unit vectors along a row (columns ascending) and along a column; `spacing`
    is in mm, (between rows, between columns); `thickness` is that of the slice in mm, None where it is not stated; a
    pixel's value is `slope` · stored + `intercept`. `telling` says whose and of which series it is (see
    `dicom_header`), `uid` which image of all: to compare only.
    """

    path: Path
    index: int
    shape: tuple[int, int]
    position: np.ndarray
    directions: np.ndarray
    spacing: np.ndarray
    slope: float
    intercept: float
    thickness: float | None
    telling: tuple[str, ...] = field(repr=False)
    uid: str = field(repr=False)


def read_frames(path: Path) -> tuple[list[Frame], Facts]:
    """The images of one file, and facts of the scan that identify nobody; pixels are not read.

    Raises `InputError` for a file that is no MR image, a mosaic, holds phases or colours, has no position in space, or
    is compressed in a way that cannot be undone here.
    """
    from pydicom.errors import InvalidDicomError

    try:
        header = read_header(path)
        _check_image(path, header)
        count = int(header.get("NumberOfFrames") or 1)
        if count < 1:
            raise InputError(f"{path}: NumberOfFrames is {count}; at least 1 is expected; export the series again")
        frames = [_frame(path, header, index) for index in range(count)]
        return frames, _facts(header)
    except InputError:
        raise
    except InvalidDicomError as error:
        raise InputError(f"{path}: is not a DICOM file; remove it from the series") from error
    except UNREADABLE as error:
        raise InputError(f"{path}: its header cannot be read ({error}); export the series again") from error


def _check_image(path: Path, header: Any) -> None:
    from pydicom.pixels import get_decoder

    if (modality := header.get("Modality", "MR")) != "MR":
        raise InputError(f"{path}: is of modality {modality}; MR is expected")
    kinds = {str(kind).upper() for kind in list(header.get("ImageType") or [])[2:]}
    if "MOSAIC" in kinds:
        raise InputError(
            f"{path}: is a mosaic (many slices in one image, as Siemens writes them); convert its series to NIfTI, "
            "for example with dcm2niix"
        )
    if found := kinds & _PHASES:
        raise InputError(f"{path}: holds phases (ImageType {min(found)}), not magnitudes; leave its series out")
    samples, colours = header.get("SamplesPerPixel", 1), header.get("PhotometricInterpretation", "MONOCHROME2")
    if samples != 1 or not colours.startswith("MONOCHROME"):
        raise InputError(f"{path}: is in colour ({samples} samples per pixel, {colours}); one real number is expected")
    if header.get("ModalityLUTSequence"):
        raise InputError(f"{path}: its values stand in a table (ModalityLUTSequence); export it with RescaleSlope")
    syntax = header.file_meta.TransferSyntaxUID
    try:
        decodable = get_decoder(syntax).is_available
    except NotImplementedError:
        decodable = False
    if not decodable:
        raise InputError(
            f"{path}: is compressed as '{syntax.name}' ({syntax}), which nothing installed here can undo; "
            "run pip install 'pylibjpeg[libjpeg,openjpeg]', or export the series uncompressed"
        )


def _frame(path: Path, header: Any, index: int) -> Frame:
    where = str(path) if not header.get("NumberOfFrames") else f"{path} (frame {index + 1})"

    def numbers(keyword: str, group: str, count: int, default: float | None = None) -> np.ndarray:
        holders = [*_groups(header, index, group), header]
        value = next((holder.get(keyword) for holder in holders if holder.get(keyword) not in (None, "")), default)
        if value is None:
            raise InputError(f"{where}: has no {keyword}, so its place is not known; export the original series")
        found = np.atleast_1d(np.asarray(value, np.float64))
        if found.shape != (count,) or not np.isfinite(found).all():
            raise InputError(f"{where}: {keyword} is {value}; {count} finite number(s) are expected")
        return found

    directions = numbers("ImageOrientationPatient", "PlaneOrientationSequence", 6).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=1e-2):
        raise InputError(
            f"{where}: ImageOrientationPatient is {directions.ravel().tolist()}; two unit vectors at a right angle "
            "are expected; export the series again"
        )
    spacing = numbers("PixelSpacing", "PixelMeasuresSequence", 2)
    if not (spacing > 0).all():
        raise InputError(f"{where}: PixelSpacing is {spacing.tolist()} mm; it must be above 0; export the series again")
    return Frame(
        path,
        index,
        (int(header.Rows), int(header.Columns)),
        numbers("ImagePositionPatient", "PlanePositionSequence", 3),
        directions,
        spacing,
        slope=float(numbers("RescaleSlope", "PixelValueTransformationSequence", 1, 1.0)[0]),
        intercept=float(numbers("RescaleIntercept", "PixelValueTransformationSequence", 1, 0.0)[0]),
        thickness=_thickness(header, index),
        telling=telling(header),
        uid=str(header.get("SOPInstanceUID") or ""),
    )


def _thickness(header: Any, index: int) -> float | None:
    holders = [*_groups(header, index, "PixelMeasuresSequence"), header]
    stated = [_readable(holder, "SliceThickness", float) for holder in holders]
    return next((value for value in stated if value is not None and value > 0), None)


def _readable(holder: Any, keyword: str, kind: Callable[[Any], Any]) -> Any:
    """A value that a scan can do without; None where there is none, or something that is no `kind`."""
    try:
        value = holder.get(keyword)
        return None if value in (None, "") else kind(value)
    except (TypeError, ValueError):
        return None


def _groups(header: Any, index: int, name: str) -> list[Any]:
    """The items `name` of an enhanced file that hold for one frame: its own before the shared one."""
    own = list(header.get("PerFrameFunctionalGroupsSequence") or [])[index : index + 1]
    shared = list(header.get("SharedFunctionalGroupsSequence") or [])[:1]
    return [item for group in (*own, *shared) for item in list(group.get(name) or [])[:1]] if name else []


def _facts(header: Any) -> Facts:
    facts: Facts = {"modality": "MR"}
    for name, (keyword, group, kind) in FACTS.items():
        for holder in (header, *_groups(header, 0, group)):
            value = _readable(holder, keyword, kind)
            if name not in facts and value is not None:
                facts[name] = value
    return facts


def stack(frames: Sequence[Frame], single: bool = False) -> tuple[list[Frame], np.ndarray]:
    """The frames in order along their common normal, and the affine (4, 4) from (column, row, slice) to RAS+ mm.

    With `single`, one frame is a stack, as thick as its slice is (1 mm where it does not say).

    Raises `InputError` if they are not one evenly spaced stack of like images of one series.
    """
    first = frames[0]
    _check_one_series(frames)
    _check_copies(frames)
    for frame in frames:
        _check_like(first, frame)
    normal = np.cross(*first.directions)
    ordered = sorted(frames, key=lambda frame: float(frame.position @ normal))
    if single and len(ordered) == 1:
        return ordered, LPS_TO_RAS @ _affine(first, (first.thickness or 1.0) * normal)
    if len(ordered) < 2:
        raise InputError(f"{first.path}: is the only image of its series; a volume has at least 2 slices")
    heights = np.array([frame.position @ normal for frame in ordered])
    gaps = np.diff(heights)
    small, large = int(gaps.argmin()), int(gaps.argmax())
    if gaps[small] < 1e-3:
        raise InputError(
            f"{_name(ordered[small])} and {_name(ordered[small + 1])}: lie at the same place "
            f"({heights[small]:.3f} mm); convert one echo, phase or repetition at a time"
        )
    if gaps[large] > 1.05 * gaps[small]:
        raise InputError(
            f"{_name(ordered[large])} and {_name(ordered[large + 1])}: lie {gaps[large]:.3f} mm apart, others "
            f"{gaps[small]:.3f} mm; a slice is missing or the spacing is uneven; export the whole series again"
        )
    step = (ordered[-1].position - ordered[0].position) / len(gaps)
    if np.linalg.norm(step - (step @ normal) * normal) > 0.02 * (step @ normal):
        raise InputError(
            f"{_name(ordered[0])}: its series is not upright: each slice is shifted by {step.round(3).tolist()} mm, "
            f"not along the normal {normal.round(3).tolist()}; resample it to NIfTI first"
        )
    return ordered, LPS_TO_RAS @ _affine(ordered[0], step, first)


def _affine(origin: Frame, step: np.ndarray, like: Frame | None = None) -> np.ndarray:
    """(column, row, slice) → LPS mm: from the first pixel of `origin` on, `step` from slice to slice, pixels as those
    of `like`."""
    directed = like or origin
    affine = np.eye(4)
    affine[:3, 0] = directed.directions[0] * directed.spacing[1]
    affine[:3, 1] = directed.directions[1] * directed.spacing[0]
    affine[:3, 2] = step
    affine[:3, 3] = origin.position
    return affine


def _check_one_series(frames: Sequence[Frame]) -> None:
    scans = {frame.telling for frame in frames}
    if keywords := differing(scans):
        each = "one image each" if len(scans) == len(frames) else f"{len(scans)} kinds of images"
        raise InputError(
            f"{frames[0].path.parent}: {len(frames)} files of different {', '.join(keywords)}, {each}, so they "
            "are not one series; export it again, convert it to NIfTI (for example with dcm2niix), or leave it out"
        )


def _check_copies(frames: Sequence[Frame]) -> None:
    known: dict[tuple[str, int], Frame] = {}
    copies = []
    for frame in frames:
        other = known.setdefault((frame.uid, frame.index), frame)
        if other is not frame and frame.uid:
            copies.append(f"{_name(frame)} of {_name(other)}")
    if copies:
        raise InputError(
            f"{frames[0].path.parent}: {len(copies)} of {len(frames)} images are copies of others ({copies[0]}"
            f"{', …' * (len(copies) > 1)}); remove the copies"
        )


def _check_like(first: Frame, frame: Frame) -> None:
    if frame.shape != first.shape:
        raise InputError(f"{_name(frame)}: has {frame.shape} pixels, others of its series {first.shape}; separate them")
    if not np.allclose(frame.spacing, first.spacing, rtol=1e-3):
        raise InputError(
            f"{_name(frame)}: has pixels of {frame.spacing.tolist()} mm, others of its series "
            f"{first.spacing.tolist()} mm; separate them"
        )
    if not np.allclose(frame.directions, first.directions, atol=2e-3):
        raise InputError(
            f"{_name(frame)}: is turned against others of its series ({frame.directions.ravel().round(3).tolist()}, "
            f"not {first.directions.ravel().round(3).tolist()}); a localizer? leave it out, or separate its stacks"
        )


def _name(frame: Frame) -> str:
    return f"{frame.path} (frame {frame.index + 1})" if frame.index else str(frame.path)
