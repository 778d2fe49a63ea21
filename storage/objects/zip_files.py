"""Files of a .zip that somebody else made: by names that we choose, of lengths that we know; no others are unpacked."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO

from larmor.storage.objects.errors import InputError

_CHUNK = 1 << 16


class ZipFiles:
    """The files beside the one called `marker` in the archive at `path`, which messages call `url`.

    Raises `InputError` for what is no such archive and for a member of another length than was announced;
    `FileNotFoundError` for a member that is not there.
    """

    def __init__(self, path: Path, url: str, marker: str) -> None:
        self.url = url
        self._path = path
        with self._translated(), zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if PurePosixPath(name).name == marker]
        if len(found) > 1:
            raise InputError(f"{url}: holds {len(found)} files {marker}; an archive of one model holds one")
        self._folder = found[0].removesuffix(marker) if found else ""

    def read(self, name: str, limit: int) -> bytes:
        """The whole member `name`, of at most `limit` bytes."""
        with self._open(name) as member:
            content = member.read(limit + 1)
        if len(content) > limit:
            raise InputError(f"{self.url}: its {name} has more than {limit} bytes; it is not what it should be")
        return content

    def download(self, name: str, target: Path, size: int) -> None:
        """Write the member `name` of `size` bytes to `target`."""
        left = size
        with self._open(name) as member, target.open("wb") as file:
            while left and (chunk := member.read(min(_CHUNK, left))):
                file.write(chunk)
                left -= len(chunk)
            if left or member.read(1):
                raise InputError(f"{self.url}: its {name} has not the {size} bytes that model.json states")

    @contextmanager
    def _open(self, name: str) -> Iterator[IO[bytes]]:
        with self._translated(), zipfile.ZipFile(self._path) as archive:
            try:
                member = archive.open(self._folder + name)
            except KeyError as error:
                raise FileNotFoundError(f"{self.url}: has no {name}") from error
            with member:
                yield member

    @contextmanager
    def _translated(self) -> Iterator[None]:
        try:
            yield
        except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, RuntimeError) as error:
            raise InputError(f"{self.url}: is no archive (.zip) that can be read ({error})") from error
