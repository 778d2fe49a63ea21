"""The files of a scan on this machine: where they lie, or fetched from S3 for as long as they are needed."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from larmor.storage.formats.remote_objects import FileState, object_facts, split_url
from larmor.storage.formats.source import SourceRef
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.local_names import inside
from larmor.storage.objects.parallel import run_in_threads
from larmor.storage.objects.urls import is_remote

FileFacts = list[FileState]

_FETCHES = 4  # objects of one scan that are fetched at once


@dataclass(frozen=True)
class Staged:
    """Local `files` of a scan, in the order of `SourceRef.files`; of copies, the URLs of their folders."""

    files: tuple[Path, ...]
    _origins: Mapping[Path, str]

    @contextmanager
    def naming(self) -> Iterator[None]:
        """Let an `InputError` speak of the objects that the user knows, not of their local copies."""
        try:
            yield
        except InputError as error:
            named = str(error)
            for folder, url in self._origins.items():
                named = re.sub(rf"{re.escape(str(folder))}(?=\W|$)", lambda _, url=url: url, named)  # type: ignore[misc]
            if named == str(error):
                raise
            raise type(error)(named) from error


@contextmanager
def staged(ref: SourceRef) -> Iterator[Staged]:
    """The files of `ref`; copies of objects in S3 are removed at the end.

    Objects that are not there are left out, and missed by the format that opens the scan. Raises `InputError`
    if the store cannot be reached or there is no room for the copies.
    """
    if not is_remote(ref.files[0]):
        yield Staged(tuple(Path(file) for file in ref.files), {})
        return
    with tempfile.TemporaryDirectory(prefix="larmor-source-") as place:
        # a folder for each folder: a series may lie in several, in files of the same names
        urls = sorted({file.rpartition("/")[0] for file in ref.files})
        folders = {url: Path(place) / str(number) for number, url in enumerate(urls)}
        files = [inside(folders[url], name) for url, _, name in (file.rpartition("/") for file in ref.files)]
        run_in_threads(lambda pair: _fetch(*pair), list(zip(ref.files, files, strict=True)), _FETCHES)
        yield Staged(tuple(files), {folder: url for url, folder in folders.items()})


def _fetch(url: str, target: Path) -> None:
    store, name = split_url(url)
    try:
        store.download(name, target)
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(
            f"{url}: cannot be copied to {target.parent} ({error.strerror or error}); make room there, or set TMPDIR "
            "to another folder"
        ) from error


def file_facts(ref: SourceRef) -> FileFacts:
    """What tells one state of the files of `ref` from another: name, size, and time of change (etag in S3)."""
    names = [file.replace("\\", "/").rpartition("/")[2] for file in ref.files]
    facts = object_facts(ref.files) if is_remote(ref.files[0]) else [_local_facts(Path(file)) for file in ref.files]
    return [{"file": name, **(known or {"size": None})} for name, known in zip(names, facts, strict=True)]


def _local_facts(path: Path) -> FileState | None:
    try:
        status = path.stat()
    except OSError:
        return None  # said when the scan is opened
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns}
