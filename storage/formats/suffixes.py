"""What the name of a file says: its format, its stem, and the other file of a pair. Suffixes count in any case."""

from __future__ import annotations

import os

from larmor.storage.formats.remote_objects import object_facts
from larmor.storage.objects.urls import is_remote

_FORMATS = {
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".dcm": "dicom",
    ".dicom": "dicom",
    ".ima": "dicom",
    ".mr": "dicom",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
    ".ismrmrd": "hdf5",
    ".mrd": "hdf5",
    ".cfl": "bart",
    ".nii.bz2": "nifti",
    ".img": "analyze",
    ".mgz": "mgh",
    ".mgh": "mgh",
    ".mnc": "minc",
    ".rec": "parrec",
    ".npy": "arrays",
    ".npz": "arrays",
}
_HEADERS = {".cfl": ".hdr", ".img": ".hdr", ".rec": ".par"}  # of data that lie in another file than their header
_BESIDE = {".img": ".mat"}  # what SPM writes beside an Analyze pair: its orientation
EXPECTED = f"{', '.join(_FORMATS)} files or DICOM without a suffix"


def format_of(file: str) -> str | None:
    """The format that a path or URL may have by its name; None if it is no scan, or the header of a pair.

    DICOM is often without a suffix, or named by numbers with dots.
    """
    suffix = _suffix_of(file)
    if suffix:
        return _FORMATS[suffix]
    last = suffix_of(file)
    return "dicom" if not last or last[1:].isdigit() else None


def suffix_of(file: str) -> str:
    """The last dot of the name and what follows, in small letters; empty without a dot."""
    _, dot, last = os.path.basename(file).rpartition(".")
    return dot and f"{dot}{last.lower()}"


def stem_of(file: str) -> str:
    """The name without folder and suffix of a format."""
    name = os.path.basename(file)
    return name[: len(name) - len(_suffix_of(file))]


def _suffix_of(file: str) -> str:
    name = os.path.basename(file).lower()
    return next((suffix for suffix in _FORMATS if name.endswith(suffix)), "")


def is_header(file: str) -> bool:
    """Whether a file is called like the header of a pair."""
    return suffix_of(file) in _HEADERS.values()


def data_of(header: str) -> list[str]:
    """How the data of a pair may be called, whose header is the path or URL `header`."""
    return [_with_suffix(header, data) for data, suffix in _HEADERS.items() if suffix == suffix_of(header)]


def files_of(file: str) -> tuple[str, ...]:
    """The file, its header where that is another one, and what else belongs to it if it is there."""
    header, beside = (table.get(_suffix_of(file)) for table in (_HEADERS, _BESIDE))
    known = (file, _with_suffix(file, header)) if header else (file,)
    if beside is None:
        return known
    other = _with_suffix(file, beside)
    is_there = object_facts([other])[0] is not None if is_remote(file) else os.path.isfile(other)
    return (*known, other) if is_there else known


def _with_suffix(file: str, suffix: str) -> str:
    """`file` with another suffix, in capitals if its own is."""
    stem, _, last = file.rpartition(".")
    return stem + (suffix.upper() if last.isupper() else suffix)


def identity(file: str) -> str:
    """The same for all ways to write a path."""
    return file if is_remote(file) else os.path.abspath(file)
