"""Where a volume comes from, and under which licence: what is stored of it, and what stands beside its file."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from larmor.storage.formats.remote_objects import split_url
from larmor.storage.formats.source import Source, SourceRef
from larmor.storage.formats.suffixes import stem_of
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.urls import is_remote

_STATED = ("package", "version", "member", "licence", "source", "synthetic", "modality")
_MOST_FILES = 16  # of one scan that are named each; a DICOM series has hundreds, and every reader loads this


DISTRIBUTION = "larmor-mri"  # as pip calls it; `larmor` on the public index is another project


def larmor_version() -> str:
    """The installed version of Larmor."""
    try:
        return importlib.metadata.version(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def write_about(folder: Path, subject: str, about: Mapping[str, Any]) -> Path:
    """Write what is known of a volume to `<subject>.json` beside it, with the version of Larmor."""
    path = folder / f"{subject}.json"
    path.write_text(json.dumps({**about, "larmor": larmor_version()}, indent=2) + "\n", encoding="utf-8")
    return path


@contextmanager
def made_whole(target: Path, subject: str, about: Mapping[str, Any]) -> Iterator[Path]:
    """The path to write `target` at. When the block ends without an error, the file and what is known of it appear in
    its folder, whole; else neither does."""
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=target.parent) as scratch:
        made = Path(scratch) / target.name
        yield made
        beside = write_about(Path(scratch), subject, about)
        beside.replace(target.parent / beside.name)
        made.replace(target)


def provenance(ref: SourceRef, source: Source, files: Sequence[Path]) -> dict[str, Any]:
    """What is stored about one volume, whose content lies in the local `files`.

    File names without their folders, SHA-256 of each file, what the scan says of itself (`Source.about`), what
    was repaired in it or taken for granted (`Source.notes`), and what `NAME.json` beside the file states of
    licence and origin.

    Raises `InputError` if that JSON cannot be read.
    """
    return {
        "voxel_size_mm": list(source.voxel_size) if source.voxel_size else None,
        **source.about,
        "volume": ref.name,
        "subject": ref.subject,
        "format": ref.format,
        "plane": source.plane,
        "slice_shape": list(source.slice_shape),
        "files": _digests(files),
        **({"notes": list(source.notes)} if source.notes else {}),
        "licence": "not stated",
        **_stated_beside(ref),
    }


def _digests(files: Sequence[Path]) -> list[dict[str, str | int]]:
    """Name and SHA-256 of each file; of many, one entry with the SHA-256 of their hexadecimal SHA-256s in order."""
    digests = [file_digest(path) for path in files]
    if len(files) <= _MOST_FILES:
        return [{"file": path.name, "sha256": digest} for path, digest in zip(files, digests, strict=True)]
    whole = hashlib.sha256("".join(digests).encode()).hexdigest()
    return [{"file": f"{files[0].name} … {files[-1].name}", "num_files": len(files), "sha256": whole}]


def about_file(ref: SourceRef) -> str:
    """The path or URL of the JSON that states licence and origin of a scan, if it is there: beside it, of its name."""
    folder, slash, _ = ref.files[0].rpartition("/")
    return f"{folder}{slash}{ref.name if ref.format == 'dicom' else stem_of(ref.files[0])}.json"


def _stated_beside(ref: SourceRef) -> dict[str, Any]:
    beside = about_file(ref)
    try:
        content = _read(beside)
        stated = json.loads(content) if content is not None else {}
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{beside}: is not JSON ({error}); correct or remove it") from error
    return {key: stated[key] for key in _STATED if key in stated} if isinstance(stated, dict) else {}


def _read(name: str) -> bytes | None:
    try:
        if is_remote(name):
            store, path = split_url(name)
            return store.read(path)
        return Path(name).read_bytes()
    except FileNotFoundError:
        return None
