"""Which scans files, folders, patterns and S3 URLs hold, and how each is opened."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from storage.errors import InputError
from storage.formats.s3_objects import is_s3, list_objects, look_into_hdf5, look_into_npz
from storage.formats.source import Source, SourceOptions, SourceRef
from storage.formats.staging import staged
from storage.store_errors import StoreAway

_SUFFIXES = {  # longer ones first
    ".nii.gz": "nifti",
    ".nii": "nifti",
    ".dcm": "dicom",
    ".ima": "dicom",
    ".hdf5": "hdf5",
    ".h5": "hdf5",
    ".ismrmrd": "hdf5",
    ".mrd": "hdf5",
    ".cfl": "bart",
    ".hdr": "bart",
    ".npy": "arrays",
    ".npz": "arrays",
}
_EXPECTED = f"{', '.join(suffix for suffix in _SUFFIXES if suffix != '.hdr')} files or DICOM without a suffix"


def find_sources(arguments: Sequence[str]) -> list[SourceRef]:
    """The scans named by files, folders (searched whole), patterns (`*`, `?`, `[…]`, `**`) and `s3://` URLs.

    Sorted by name. In folders and patterns, files of other kinds are passed over, and hidden ones.

    Raises `InputError` for a path that does not exist, a folder or pattern without scans, a named file of an
    unknown kind, and two scans of one name.
    """
    named = {argument: _expand(argument) for argument in arguments}
    files: dict[str, str] = {}
    for found in named.values():
        for file in found:
            files.setdefault(_identity(file), file)
    refs = [*_dicom_series(files.values()), *_single_files(files.values())]
    used = {_identity(file) for ref in refs for file in ref.files}
    for argument, found in named.items():
        if not any(_identity(file) in used for file in found):
            if [_identity(file) for file in found] == [_identity(argument)]:
                raise InputError(f"{argument}: is no DICOM image; expected {_EXPECTED}")
            place = "matches this pattern" if _is_pattern(argument) else "in this folder"
            raise InputError(f"{argument}: no volume {place}; expected {_EXPECTED}")
    _check_names(refs)
    return sorted(refs, key=lambda ref: ref.name)


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
        from storage.formats import hdf5

        kind = hdf5.kind(files[0])
    # a format's library is imported only where it is needed
    module: Any = import_module(f"storage.formats.{kind}")
    source: Source = module.open_source(ref, files, options)
    return source


def _expand(argument: str) -> list[str]:
    """The files that an argument names and that may hold scans."""
    if is_s3(argument):
        found, is_one = list_objects(argument, is_pattern=_is_pattern(argument))
    else:
        found, is_one = _list_files(argument)
    if is_one:
        if _format_of(argument) is None:
            raise InputError(f"{argument}: not a file of a known kind; expected {_EXPECTED}")
        return found
    # .hdr belongs to a .cfl, or to formats that are not read here
    return [file for file in found if _format_of(file) and not file.endswith(".hdr")]


def _list_files(argument: str) -> tuple[list[str], bool]:
    """The files below a folder or matching a pattern; or the one file, and True."""
    path = Path(argument).expanduser()
    if path.is_file():
        return [str(path)], True
    if path.is_dir():
        return _below(path), False
    if not _is_pattern(argument):
        raise InputError(f"{argument}: no such file or folder")
    found: list[str] = []
    for match in sorted(glob.glob(str(path), recursive=True)):
        found += _below(Path(match)) if os.path.isdir(match) else [match]
    return found, False


def _below(folder: Path) -> list[str]:
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return [str(path) for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def _is_pattern(argument: str) -> bool:
    return any(character in argument for character in "*?[") and (is_s3(argument) or not os.path.exists(argument))


def _format_of(file: str) -> str | None:
    name = os.path.basename(file)
    for suffix, kind in _SUFFIXES.items():
        if name.endswith(suffix) or (kind == "dicom" and name.lower().endswith(suffix)):
            return kind
    # DICOM is often without a suffix, or named by numbers with dots; in S3, looking into each costs a request
    last = name.rpartition(".")[2] if "." in name else ""
    return "dicom" if (not last or last.isdigit()) and not is_s3(file) else None


def _identity(file: str) -> str:
    """The same for all ways to write a path, and for both files of a BART pair."""
    if file.endswith(".hdr"):
        file = f"{file.removesuffix('.hdr')}.cfl"
    return file if is_s3(file) else os.path.abspath(file)


def _stem(file: str) -> str:
    name = os.path.basename(file)
    return name.removesuffix(next(suffix for suffix in _SUFFIXES if name.endswith(suffix)))


def _dicom_series(files: Iterable[str]) -> list[SourceRef]:
    wanted = [file for file in files if _format_of(file) == "dicom"]
    if not wanted:
        return []
    from storage.formats.dicom_series import find_series

    return find_series(wanted)


def _single_files(files: Iterable[str]) -> list[SourceRef]:
    from storage.formats.nifti import subject_label

    refs: list[SourceRef] = []
    persons: dict[str, str] = {}
    for file in sorted(files, key=lambda file: (os.path.basename(file), file)):
        kind, parts, person = _format_of(file), [""], None
        if kind in (None, "dicom"):
            continue
        if kind == "hdf5":
            kind, parts, person = _look_into_hdf5(file)
        elif file.endswith(".npz"):
            parts = _look_into_npz(file)
        stem = _stem(file)
        # all parts of a file show one person, whatever they are named
        subject = persons.setdefault(person, subject_label(stem)) if person else subject_label(stem)
        both = _pair(file) if kind == "bart" else (file,)
        refs += [SourceRef(str(kind), f"{stem}-{part}" if part else stem, subject, both, part) for part in parts]
    return refs


def _pair(file: str) -> tuple[str, ...]:
    from storage.formats.bart import pair

    return pair(file)


def _look_into_hdf5(file: str) -> tuple[str, list[str], str | None]:
    """Format, parts, and what files of one person share; a file that cannot be read says so when it is opened."""
    from storage.formats import fastmri, hdf5, mrd

    try:
        if is_s3(file):
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
    from storage.formats import arrays

    try:
        return look_into_npz(file) if is_s3(file) else arrays.list_parts(Path(file))
    except StoreAway:
        raise
    except InputError:
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
