"""Which scans files, folders, patterns and S3 URLs hold, and how each is opened."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from larmor.storage.formats.alike_names import tell_apart
from larmor.storage.formats.listing import Listing, describe_passed_over, list_argument
from larmor.storage.formats.provenance import about_file
from larmor.storage.formats.remote_objects import look_into_hdf5, look_into_npz
from larmor.storage.formats.source import Plane, Source, SourceOptions, SourceRef
from larmor.storage.formats.staging import staged
from larmor.storage.formats.subjects import Candidate, bids_subject, name_subjects, warn_of_alike
from larmor.storage.formats.suffixes import files_of, format_of, identity, stem_of, suffix_of
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.store_errors import StoreAway
from larmor.storage.objects.urls import is_remote

_MODULES = dict.fromkeys(("analyze", "mgh", "minc", "parrec"), "nibabel_volume")  # the others are called as the format
Say = Callable[[str], object]


def find_sources(
    arguments: Sequence[str], say: Say = lambda line: None, subject: str | None = None, plane: Plane = "coronal"
) -> list[SourceRef]:
    """The scans named by files, folders (searched whole), patterns (`*`, `?`, `[…]`, `**`) and `s3://` URLs.

    Sorted by name. In folders and patterns, files of other kinds are passed over, and hidden ones. `subject` says who
    they show (see `name_subjects`); without it headers, names and folders do. `say` is told what is passed over, and
    what of persons is doubtful. In the `native` plane each slice of a series in time (4-D NIfTI) is a scan.

    Raises `InputError` for a path that does not exist, a folder or pattern without scans, a named file of an
    unknown kind, two scans of one name in one folder, and a `subject` that does not fit.
    """
    listings = [list_argument(argument) for argument in arguments]
    files: dict[str, str] = {}
    for listing in listings:
        for file in listing.files:
            files.setdefault(identity(file), file)
    refs = _who_is_who([*_dicom_series(files.values()), *_single_files(files.values(), plane)], say, subject)
    used = {identity(file) for ref in refs for file in ref.files}
    for listing in listings:
        if not any(identity(file) in used for file in listing.files):
            listing.refuse()
    _check_names(refs)
    _tell_passed_over(listings, used | {identity(about_file(ref)) for ref in refs}, say)
    return sorted(refs, key=lambda ref: ref.name)


def _who_is_who(found: Sequence[Candidate], say: Say, subject: str | None) -> list[SourceRef]:
    if subject is not None:
        return name_subjects([one.ref for one in tell_apart(found, lambda line: None)], subject)
    told = tell_apart(found, say)
    # one scan of each file: those of a file show one person, and are named alike in every file
    if warning := warn_of_alike(list({one.ref.files: one.ref for one in told if not one.is_known}.values())):
        say(warning)
    return [one.ref for one in told]


def _tell_passed_over(listings: Sequence[Listing], used: set[str], say: Say) -> None:
    def unused(files: Iterable[str]) -> list[str]:
        return list({identity(file): file for file in files if identity(file) not in used}.values())

    files = unused(file for listing in listings for file in (*listing.files, *listing.others))
    hidden = unused(file for listing in listings for file in listing.hidden)
    if files or hidden:
        say(describe_passed_over(files, hidden))


@contextmanager
def open_source(ref: SourceRef, options: SourceOptions) -> Iterator[Source]:
    """The slices of a scan; objects in S3 are copied to a temporary folder until the end.

    Raises `InputError` that names the file or object if it cannot be had or read.
    """
    with staged(ref) as local, local.naming():
        source = open_files(ref, local.files, options)
        try:
            yield source
        finally:
            source.close()


def open_files(ref: SourceRef, files: Sequence[Path], options: SourceOptions) -> Source:
    """The slices of a scan whose content lies in the local `files`. Raises `InputError` as its format does."""
    kind = ref.format
    if kind == "hdf5":  # the file could not be looked into when it was found; now it says why
        from larmor.storage.formats import hdf5

        kind = hdf5.kind(files[0])
    # a format's library is imported only where it is needed
    module: Any = import_module(f"larmor.storage.formats.{_MODULES.get(kind, kind)}")
    source: Source = module.open_source(ref, files, options)
    return source


def _dicom_series(files: Iterable[str]) -> list[Candidate]:
    wanted = [file for file in files if format_of(file) == "dicom"]
    if not wanted:
        return []
    from larmor.storage.formats.dicom_series import find_series

    return [Candidate(ref, is_known=True) for ref in find_series(wanted)]


def _single_files(files: Iterable[str], plane: Plane) -> list[Candidate]:
    found: list[Candidate] = []
    persons: dict[str, str] = {}
    for file in sorted(files, key=lambda file: (os.path.basename(file), file)):
        kind, parts, person = format_of(file), [""], None
        if kind in (None, "dicom"):
            continue
        if kind == "hdf5":
            kind, parts, person = _look_into_hdf5(file)
        elif suffix_of(file) == ".npz":
            parts = _look_into_npz(file)
        elif kind == "nifti" and plane == "native":
            parts = _look_into_nifti(file)
        stem = stem_of(file)
        subject = bids_subject(stem)
        is_known = bool(person or subject)
        if person:
            subject = persons.setdefault(person, subject or _unused(stem, persons.values()))
        # all parts of a file show one person, whatever they are named
        for part in parts:
            name = f"{stem}{'_' if kind == 'nifti' else '-'}{part}" if part else stem
            found.append(Candidate(SourceRef(str(kind), name, subject or stem, files_of(file), part), is_known))
    return found


def _unused(name: str, used: Collection[str]) -> str:
    names = (name, *(f"{name}-{number}" for number in range(2, len(used) + 2)))
    return next(name for name in names if name not in used)


def _look_into_hdf5(file: str) -> tuple[str, list[str], str | None]:
    """Format, parts, and what files of one person share; a file that cannot be read says so when it is opened."""
    from larmor.storage.formats import fastmri, hdf5, mrd

    try:
        if is_remote(file):
            return look_into_hdf5(file)
        path = Path(file)
        if hdf5.kind(path) == "fastmri":
            return "fastmri", [""], fastmri.subject_key(path)
        return "mrd", mrd.list_parts(path), None
    except StoreAway:
        raise
    except InputError:
        return "hdf5", [""], None


def _look_into_npz(file: str) -> list[str]:
    from larmor.storage.formats import arrays

    try:
        return look_into_npz(file) if is_remote(file) else arrays.list_parts(Path(file))
    except StoreAway:
        raise
    except InputError:
        return [""]


def _look_into_nifti(file: str) -> list[str]:
    from larmor.storage.formats import nifti_series

    try:
        return nifti_series.list_parts(file)
    except StoreAway:
        raise
    except (InputError, OSError, EOFError, zlib.error):
        return [""]


def _check_names(refs: Sequence[SourceRef]) -> None:
    seen: dict[str, SourceRef] = {}
    for ref in refs:
        other = seen.setdefault(ref.name, ref)
        if other is not ref:
            raise InputError(
                f"volume {ref.name} comes from several files; give each file a name of its own "
                f"({other.files[0]}, {ref.files[0]})"
            )
