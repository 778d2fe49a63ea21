"""DICOM series: single images, or enhanced files of many frames."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np

from storage.errors import InputError
from storage.formats.dicom_frames import UNREADABLE, Frame, read_frames, stack
from storage.formats.source import SourceOptions, SourceRef
from storage.volume_array import gather_slabs
from storage.volumes import VolumeSource, canonical_volume


@dataclass
class _Series:
    """The files of one series, and to whom it belongs; `patient` stays in memory and enters no name."""

    number: int
    patient: str
    files: list[Path]
    name: str = ""

    @property
    def folder(self) -> Path:
        return Path(os.path.commonpath([path.absolute().parent for path in self.files]))


def find_series(paths: Sequence[Path]) -> list[SourceRef]:
    """The DICOM series among `paths`, sorted by name; files that are no DICOM images are passed over.

    A series is named for its folder, with its number where the folder holds several, and with the folders
    above where names would be the same. Series of one PatientID share as subject the first of their names;
    nothing that stands in a header is part of a name, but for the number.

    Raises `InputError` for a DICOM file whose header cannot be read.
    """
    series: dict[str, _Series] = {}
    for path in sorted(set(paths)):
        header = _header(path)
        if header is not None:
            number = int(header.get("SeriesNumber") or 0)
            patient = str(header.get("PatientID") or "").strip()
            key = str(header.get("SeriesInstanceUID") or path.parent)
            series.setdefault(key, _Series(number, patient, [])).files.append(path)
    found = list(series.values())
    _give_names(found)
    found.sort(key=lambda one: one.name)
    subjects: dict[str, str] = {}
    refs = []
    for one in found:
        subject = subjects.setdefault(one.patient, one.name) if one.patient else one.name
        refs.append(SourceRef("dicom", one.name, subject, tuple(str(path) for path in one.files)))
    return refs


def _header(path: Path) -> Any | None:
    """What `find_series` needs of a file; None if it is no DICOM image."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    tags = ["SeriesInstanceUID", "SeriesNumber", "PatientID", "Rows", "Columns"]
    if not path.is_file():
        return None
    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=tags)
        return header if header.get("Rows") and header.get("Columns") else None
    except InvalidDicomError:
        return None
    except UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as DICOM ({error}); remove it or export it again") from error


def _give_names(series: Sequence[_Series]) -> None:
    folders = {one.folder for one in series}
    shown = dict.fromkeys(folders, 1)

    def label(folder: Path) -> str:
        return "-".join(folder.parts[1:][-shown[folder] :]) or "dicom"

    while True:
        count = Counter(map(label, folders))
        alike = [folder for folder in folders if count[label(folder)] > 1 and shown[folder] < len(folder.parts)]
        if not alike:
            break
        for folder in alike:
            shown[folder] += 1
    crowded = Counter(one.folder for one in series)
    used: set[str] = set()
    for one in sorted(series, key=lambda one: (one.folder, one.number, one.files)):
        name = label(one.folder) + (f"-{one.number}" if crowded[one.folder] > 1 else "")
        again = 2
        one.name = name
        while one.name in used:
            one.name, again = f"{name}-{again}", again + 1
        used.add(one.name)


def open_source(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> VolumeSource:
    """The coronal slices of one series.

    Raises `InputError` if the files are not one evenly spaced stack of like MR images, hold no place in
    space, are in colour, compressed in an unknown way, cut short, or all of one value.
    """
    frames: list[Frame] = []
    about: dict[str, Any] = {}
    for path in files:
        found, facts = read_frames(path)
        frames += found
        about = about or facts
    ordered, affine = stack(frames)
    rows, columns = ordered[0].shape
    where = files[0] if len(files) == 1 else f"{files[0].parent} ({ref.name})"
    data = gather_slabs(where, (columns, rows, len(ordered)), _pixels(ordered))
    return VolumeSource(canonical_volume(data, affine), options, about)


def _pixels(frames: Sequence[Frame]) -> Iterator[np.ndarray]:
    """The values of each frame, (column, row, 1) float64."""
    from pydicom import dcmread
    from pydicom.filereader import read_file_meta_info
    from pydicom.pixels import iter_pixels

    for path, group in groupby(frames, key=lambda frame: frame.path):
        wanted = list(group)
        try:
            syntax = read_file_meta_info(path).TransferSyntaxUID
            # by path one frame at a time is in memory; deflated files can only be read whole
            source = dcmread(path) if syntax.is_deflated else path
            pixels = iter_pixels(source, indices=[frame.index for frame in wanted])
            for frame, stored in zip(wanted, pixels, strict=True):
                yield (stored.astype(np.float64) * frame.slope + frame.intercept).T[..., None]
        except UNREADABLE as error:
            raise InputError(
                f"{path}: its pixels cannot be read ({error}); cut short, or compressed in a way that needs "
                "another package? export it again, uncompressed"
            ) from error
