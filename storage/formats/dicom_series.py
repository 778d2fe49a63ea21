"""Which DICOM files and objects belong together: one way for folders and for S3."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from larmor.storage.formats.dicom_header import TELLING, read_head, telling
from larmor.storage.formats.folder_names import Folder, common_folder, folder_of, short_names
from larmor.storage.formats.source import SourceRef
from larmor.storage.objects.parallel import run_in_threads

_LOOKS = 16  # files that are looked into at once; an object costs a request
_SERIES_UID, _PATIENT, _STUDY = (TELLING.index(name) for name in ("SeriesInstanceUID", "PatientID", "StudyInstanceUID"))
_NUMBER = TELLING.index("SeriesNumber")


@dataclass
class _Series:
    """The files of one series, and what their headers say; that stays in memory and enters no name but its number."""

    telling: tuple[str, ...]
    files: list[str]
    name: str = ""

    @property
    def folder(self) -> Folder:
        return common_folder(self.files)

    @property
    def number(self) -> int:
        digits = self.telling[_NUMBER]
        return int(digits) if digits.removeprefix("-").isdecimal() else 0

    @property
    def person(self) -> tuple[str, object]:
        """The patient; where the header names none, the study, and at last the folder."""
        patient, study = self.telling[_PATIENT], self.telling[_STUDY]
        if patient or study:
            return ("patient", patient) if patient else ("study", study)
        return "folder", self.folder


def find_series(files: Iterable[str]) -> list[SourceRef]:
    """The DICOM series among `files` (paths or `s3://` URLs), sorted by name; what is no DICOM image is passed over.

    Images whose headers agree in all of `TELLING` are one series; without a SeriesInstanceUID, those of one folder.
    Single images of one study that are left over are one scan, which says what is wrong when it is opened.

    A series is named for its folder, with its number where the folder holds several, and with the folders
    above where names would be the same. Series of one person (PatientID, else StudyInstanceUID, else folder) share as
    subject the first of their names; nothing that stands in a header is part of a name, but for the number.

    Raises `InputError` for a DICOM file whose header cannot be read.
    """
    names = sorted(set(files))
    found: dict[Any, _Series] = {}
    single: set[Any] = set()
    for file, header in zip(names, run_in_threads(read_head, names, _LOOKS), strict=True):
        if header is None:
            continue
        told = telling(header)
        key = (told, None if told[_SERIES_UID] else folder_of(file))
        single = single - {key} if key in found or int(header.get("NumberOfFrames") or 1) > 1 else single | {key}
        found.setdefault(key, _Series(told, [])).files.append(file)
    series = [*(one for key, one in found.items() if key not in single), *_left_over(found[key] for key in single)]
    _give_names(series)
    series.sort(key=lambda one: one.name)
    subjects: dict[Any, str] = {}
    return [SourceRef("dicom", one.name, subjects.setdefault(one.person, one.name), tuple(one.files)) for one in series]


def _left_over(single: Iterable[_Series]) -> list[_Series]:
    """Series of one image each: those of one person in one folder together."""
    together: dict[Any, _Series] = {}
    for one in sorted(single, key=lambda one: one.files):
        together.setdefault((one.person, one.folder), _Series(one.telling, [])).files += one.files
    return list(together.values())


def _give_names(series: Sequence[_Series]) -> None:
    labels = short_names({one.folder for one in series})
    crowded = Counter(one.folder for one in series)
    used: set[str] = set()
    for one in sorted(series, key=lambda one: (one.folder, one.number, one.files)):
        name = (labels[one.folder] or "dicom") + (f"-{one.number}" if crowded[one.folder] > 1 else "")
        again = 2
        one.name = name
        while one.name in used:
            one.name, again = f"{name}-{again}", again + 1
        used.add(one.name)
