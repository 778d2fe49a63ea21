"""A vendor's client as a file system, and as a `Remote`."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

from fsspec import AbstractFileSystem
from fsspec.spec import AbstractBufferedFile

from larmor.storage.objects.parallel import run_in_threads
from larmor.storage.objects.sdk_client import Entry, OutOfRange, SdkClient

_REMOVALS = 8  # at once


class SdkRemote:
    """See `Remote`."""

    most_removed = 4 * _REMOVALS  # each by a request of its own
    doubt = "are the URL and the settings of its account right?"

    def __init__(self, client: SdkClient) -> None:
        self._client = client
        self.filesystem = SdkFileSystem(client)

    def look(self, place: str) -> None:
        next(self._client.entries(place, flat=True, most=1), None)

    def find(self, folder: str, after: str = "") -> dict[str, dict[str, Any]]:
        """All that is there: Azure has no listing that begins in the middle."""
        return dict(self.filesystem.find(folder, detail=True))

    def put(self, name: str, data: bytes, part_bytes: int | None = None, mark: str | None = None) -> None:
        self._client.put(name, data, mark)

    def mark_of(self, name: str) -> str | None:
        return self._client.head(name).metadata.get("writer")

    def remove(self, names: list[str]) -> None:
        run_in_threads(self._remove_one, names, _REMOVALS)

    def _remove_one(self, name: str) -> None:
        with suppress(FileNotFoundError):
            self._client.remove(name)


class SdkFileSystem(AbstractFileSystem):
    """As much of fsspec's file system as is used here. Names are BUCKET/KEY; nothing that was listed is kept."""

    cachable = False
    root_marker = ""

    def __init__(self, client: SdkClient) -> None:
        super().__init__()
        self._client = client

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        if "/" in path:
            with suppress(FileNotFoundError):
                return _info(self._client.head(path))
        if next(self._client.entries(path, flat=True, most=1), None) is None:
            raise FileNotFoundError(path)
        return _info(path)

    def exists(self, path: str, **_: Any) -> bool:
        try:
            self.info(path)
        except FileNotFoundError:
            return False
        return True

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        found = [_info(entry) for entry in self._client.entries(path, flat=False)] or [self.info(path)]
        return found if detail else [entry["name"] for entry in found]

    def find(self, path: str, maxdepth: Any = None, withdirs: bool = False, detail: bool = False, **_: Any) -> Any:
        """All objects below `path`, or the one of that name; `maxdepth` and `withdirs` are not in use."""
        found = [_info(entry) for entry in self._client.entries(path, flat=True)]
        if not found and "/" in path:
            with suppress(FileNotFoundError):
                found = [_info(self._client.head(path))]
        return {entry["name"]: entry for entry in found} if detail else [entry["name"] for entry in found]

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        start = start or 0
        if start < 0:  # Azure has no ranges that are counted from the end
            start = max(0, self._client.head(path).size + start)
        try:
            return self._client.get(path, start, end)
        except OutOfRange:
            return b""

    def get_file(self, rpath: str, lpath: str, **_: Any) -> None:
        self._client.get_file(rpath, Path(lpath))

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        self._client.put(rpath, Path(lpath))

    def _open(self, path: str, mode: str = "rb", block_size: int | None = None, **options: Any) -> AbstractBufferedFile:
        if mode != "rb":
            raise NotImplementedError(mode)
        return _File(self, path, mode, block_size or "default", **options)


def _info(entry: Entry | str) -> dict[str, Any]:
    """An object, or a folder of that name, as fsspec describes it."""
    if isinstance(entry, str):
        return {"name": entry, "size": 0, "type": "directory"}
    return {"name": entry.name, "size": entry.size, "type": "file", "ETag": entry.etag}


class _File(AbstractBufferedFile):
    """An object of which only the parts that are looked at are fetched."""

    def _fetch_range(self, start: int, end: int) -> bytes:
        return bytes(self.fs.cat_file(self.path, start, end))
