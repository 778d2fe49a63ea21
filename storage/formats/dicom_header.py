"""The header of a DICOM file: read with or without a preamble, and what it says of person and series."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

from larmor.storage.formats.remote_objects import opened, read_start
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.urls import is_remote

# what pydicom raises for damaged files, beside its own errors, which derive from these
UNREADABLE: tuple[type[Exception], ...] = (OSError, EOFError, ValueError, LookupError, AttributeError, TypeError)
UNREADABLE += (RuntimeError, AssertionError, struct.error, zlib.error)
# alike in all images of one series (DICOM PS3.3, C.7.1 to C.7.3), and what tells contrasts of one series apart;
# there are many since public tools of de-identification remove some of them, UIDs among them
TELLING = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("StudyInstanceUID", "StudyID", "StudyDate", "AccessionNumber", "FrameOfReferenceUID"),
    *("SeriesInstanceUID", "SeriesNumber", "SeriesDescription", "ProtocolName", "Modality"),
    *("EchoNumbers", "EchoTime", "InversionTime", "ImageType"),
)
_HEAD = ("Rows", "Columns", "NumberOfFrames", "TransferSyntaxUID", *TELLING)
_LAST = 0x00280011  # Columns, the last of them by its tag
_START = 2**14  # bytes of an object, within which its head lies but for large private elements


def read_dicom(file: Path | BinaryIO) -> Any:
    """A whole file. Raises pydicom's `InvalidDicomError` for one that is none, and `UNREADABLE`."""
    from pydicom import dcmread

    return _parse(file, dcmread)


def read_header(file: Path | BinaryIO) -> Any:
    """All that stands before the pixels, with the transfer syntax. Raises as `read_dicom` does."""
    from pydicom import dcmread

    return _parse(file, lambda stream, force: dcmread(stream, stop_before_pixels=True, force=force))


def read_head(file: str) -> Any | None:
    """Size and `TELLING` of the image in a file or `s3://` object; None for what is no DICOM image.

    Raises `InputError` for a DICOM file whose header cannot be read.
    """
    from pydicom.errors import InvalidDicomError

    try:
        header = _head_of_object(file) if is_remote(file) else _parse(Path(file), _up_to_size)
        int(header.get("NumberOfFrames") or 1)  # a text that is no number
        return header if _is_image(header) else None
    except (InvalidDicomError, IsADirectoryError, FileNotFoundError):
        return None
    except InputError:
        raise
    except UNREADABLE as error:
        raise InputError(f"{file}: cannot be read as DICOM ({error}); remove it or export it again") from error


def _head_of_object(url: str) -> Any:
    start = read_start(url, _START)
    try:
        header = _parse(BytesIO(start), _up_to_size)
        if _is_image(header) or len(start) < _START:
            return header
    except UNREADABLE:
        if len(start) < _START or not _is_dicom(start):
            raise
    with opened(url) as stream:
        return _parse(stream, _up_to_size)


def _is_image(header: Any) -> bool:
    return bool(header.get("Rows") and header.get("Columns"))


def _up_to_size(stream: BinaryIO, force: bool) -> Any:
    from pydicom.filereader import read_partial
    from pydicom.tag import BaseTag, Tag

    tags: list[BaseTag | int] = [Tag(keyword) for keyword in _HEAD]
    return read_partial(stream, lambda tag, representation, length: tag > _LAST, force=force, specific_tags=tags)


def _parse(file: Path | BinaryIO, read: Any) -> Any:
    """What `read` (stream, force) gives; files that begin at once with their elements are read, too."""
    from pydicom.errors import InvalidDicomError
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    if isinstance(file, Path):
        with file.open("rb") as stream:
            return _parse(stream, read)
    start = file.read(132)
    file.seek(0)
    if not _is_dicom(start):
        raise InvalidDicomError
    header = read(file, force=start[128:] != b"DICM")
    if "TransferSyntaxUID" not in header.file_meta:
        is_implicit, is_little = header.original_encoding
        explicit = ExplicitVRLittleEndian if is_little else ExplicitVRBigEndian
        header.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if is_implicit else explicit
    return header


def _is_dicom(start: bytes) -> bool:
    """Whether a file that begins so has the mark behind a preamble, or begins with an element of group 2 or 8."""
    return start[128:132] == b"DICM" or (start[:2] in (b"\x02\x00", b"\x08\x00") and start[3:4] == b"\x00")


def telling(header: Any) -> tuple[str, ...]:
    """The values of `TELLING`, empty where there is none: to compare in memory only, for some name a person."""
    return tuple(_text(header.get(keyword)) for keyword in TELLING)


def _text(value: Any) -> str:
    if value in (None, ""):
        return ""
    if isinstance(value, float):  # "2.30" is "2.3"
        return f"{value:.6g}"
    if not isinstance(value, str) and isinstance(value, Iterable):
        return "\\".join(map(_text, value))
    return str(value).strip()


def differing(scans: Iterable[tuple[str, ...]]) -> list[str]:
    """Which of `TELLING` are not alike in all of `scans`."""
    return [keyword for keyword, values in zip(TELLING, zip(*scans, strict=True), strict=True) if len(set(values)) > 1]
