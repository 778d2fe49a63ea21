"""Objects below one URL, on disk or in a cloud: bytes in, bytes out, errors that a user can act on."""

from __future__ import annotations

import builtins
import contextlib
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypeVar

from fsspec.core import url_to_fs

from larmor.storage.objects.atomic_file import write_atomically
from larmor.storage.objects.default_store import refuse_anothers_bucket, use_embedded_store
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.http_ranges import HttpRanges, spread
from larmor.storage.objects.local_names import leads_out
from larmor.storage.objects.remote import Remote, open_remote
from larmor.storage.objects.s3_remote import MULTIPART
from larmor.storage.objects.store_errors import beyond_the_end, endpoint, patience, persist, translated
from larmor.storage.objects.urls import REMOTE, split

T = TypeVar("T")
Guard = Callable[[], None]
Client = Literal["s3fs", "http"]


def _unguarded() -> None:
    """Any time is right for this change."""


_UPLOADS = 4  # at once
_DOWNLOAD_BLOCK = 8 * 2**20


class ObjectStore:
    """Everything below `url` (a local path, `file://`, `memory://`, or an object store's as in `urls.REMOTE`).

    Paths given to the methods are relative to `url`, with forward slashes. Credentials and endpoint
    come from the standard environment of each cloud, profile and role only, so that no key is ever pickled; where there
    are none for S3, the embedded store is meant (storage/objects/default_store.py). `client`
    is what reads ranges from S3; everything else goes through s3fs.

    A request to an object store that fails for a reason that may pass is repeated for `LARMOR_STORE_PATIENCE` seconds.
    What changes something asks its `guard` right before each request, also before one that is repeated; what that
    raises ends it.

    Raises (all methods): `InputError` for wrong or missing credentials, an endpoint that cannot be
    reached, or a bucket that does not exist; `FileNotFoundError` for an object that does not exist.
    """

    def __init__(self, url: str | Path, client: Client = "s3fs") -> None:
        protocol, separator, place = str(url).partition("://")
        if not separator:
            protocol, place = "file", str(url)
        if protocol not in ("file", "memory", *REMOTE):
            raise InputError(
                f"{url}: '{protocol}://' is not supported; use a local path, or s3://, gs://, az:// or abfs://"
            )
        self.is_local = protocol == "file"
        self.client: Client = client
        self.url = str(Path(place).expanduser().absolute()) if self.is_local else f"{protocol}://{place.rstrip('/')}"
        self._remote: Remote | None = None
        if protocol in REMOTE:
            self._root = split(str(url)).root
            self._patience = patience()
            if protocol == "s3":
                use_embedded_store()
                refuse_anothers_bucket(self.url)
            with translated(self.url):
                self._remote = open_remote(self.url)
            self.filesystem = self._remote.filesystem
        else:
            with translated(self.url):
                self.filesystem, self._root = url_to_fs(self.url)

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str, Client]]:
        return ObjectStore, (self.url, self.client)

    def full_path(self, path: str) -> str:
        """What the fsspec filesystem calls the object `path`. Raises `InputError` if that leads out of `url`."""
        if self.is_local and leads_out(path):
            raise InputError(f"{self.url}: {path!r} leads out of this folder; do not trust its author")
        return f"{self._root}/{path}" if path else self._root

    def check_access(self) -> None:
        """Ask the store for one listing entry, so that mistakes show before any work is done, and soon."""
        if not self._remote:
            return
        bucket = self._root.partition("/")[0]
        try:
            with translated(self.url):
                self._remote.look(self._root)
        except OSError as error:
            raise InputError(
                f"{self.url}: {endpoint(self.url)} does not list the bucket '{bucket}' ({error}); {self._remote.doubt}"
            ) from error

    def exists(self, path: str) -> bool:
        return bool(self._persist(path, lambda: self.filesystem.exists(self.full_path(path))))

    def size(self, path: str) -> int:
        """Bytes of the object `path`."""
        return int(self._persist(path, lambda: self.filesystem.size(self.full_path(path))))

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of an object; a negative `start` counts from its end; none beyond the end."""
        if http := self._http:
            return self._persist(path, lambda: http.read(self._key(path), start, stop))
        return bytes(self._persist(path, lambda: self._cat(path, start, stop)))

    def read_into(self, path: str, start: int, parts: Sequence[memoryview]) -> int:
        """Fill the parts (bytes), one after another, with the object's bytes from `start` on, by one request.

        Returns how many bytes came: fewer than the parts hold where the object ends. An error leaves them half filled.
        With `client="http"` the bytes are received where they belong; else they are copied there.
        """
        if http := self._http:
            return self._persist(path, lambda: http.read_into(self._key(path), start, parts))
        stop = start + sum(map(len, parts))
        return spread(memoryview(self._persist(path, lambda: self._cat(path, start, stop))), parts)

    def _cat(self, path: str, start: int | None, stop: int | None) -> Any:
        try:
            return self.filesystem.cat_file(self.full_path(path), start=start, end=stop)
        except OSError as error:
            if beyond_the_end(error):
                return b""
            raise

    def write(self, path: str, data: bytes, part_bytes: int | None = None, guard: Guard = _unguarded) -> None:
        """Put an object whole: a reader sees the old bytes or the new ones, nothing between.

        S3 gets what has two parts or more in parts of `part_bytes`, and reads fastest what crosses none of their ends.
        """

        def attempt() -> None:
            guard()
            if self.is_local:
                write_atomically(Path(self.full_path(path)), data, overwrite=True)
            elif self._remote:
                self._remote.put(self.full_path(path), data, part_bytes)
            else:
                self.filesystem.pipe_file(self.full_path(path), data)

        self._persist(path, attempt)

    def create(self, path: str, data: bytes, guard: Guard = _unguarded) -> bool:
        """Put an object only if there is none of that name; of several callers exactly one gets True.

        If the answer to a write gets lost, we repeat it, or aiohttp does, unseen: a mark that the store keeps with the
        object tells a caller's own write from another's.
        """
        mark = uuid.uuid4().hex

        def attempt() -> bool:
            guard()
            try:
                if self.is_local:
                    write_atomically(Path(self.full_path(path)), data, overwrite=False)
                elif self._remote:
                    self._remote.put(self.full_path(path), data, mark=mark)
                else:
                    self.filesystem.pipe_file(self.full_path(path), data, mode="create")
            except FileExistsError:
                return False
            return True

        def is_ours(remote: Remote) -> bool:
            with contextlib.suppress(FileNotFoundError):
                return remote.mark_of(self.full_path(path)) == mark
            return False

        if self._persist(path, attempt):
            return True
        remote = self._remote
        return remote is not None and self._persist(path, lambda: is_ours(remote))

    def folders(self, prefix: str = "") -> list[str]:
        """Paths of the folders right below `prefix`, sorted; none if nothing is there."""
        try:
            found = self._persist(prefix, lambda: self.filesystem.ls(self.full_path(prefix), detail=True))
        except FileNotFoundError:
            return []
        skip = len(self._root) + 1
        return sorted(item["name"].rstrip("/")[skip:] for item in found if item["type"] == "directory")

    def list(self, prefix: str = "", unfinished: bool = False, after: str = "") -> dict[str, int]:
        """Path and size in bytes of every object below `prefix`, sorted by path; on disk with `unfinished` also what
        is being written, or was when its process was killed. With `after` only paths that sort after it: S3 then looks
        at no others."""
        found = self._persist(prefix, lambda: self._find(prefix, after))
        # some S3 stores keep an emptied folder, which s3fs then gives as an object of that name
        found.pop(self.full_path(prefix), None)
        skip = len(self._root) + 1
        sizes = {name[skip:]: int(info["size"]) for name, info in sorted(found.items())}
        return {path: size for path, size in sizes.items() if path > after and (unfinished or ".partial-" not in path)}

    def _find(self, prefix: str, after: str) -> dict[str, Any]:
        if self._remote:
            return self._remote.find(self.full_path(prefix), self.full_path(after) if after else "")
        return dict(self.filesystem.find(self.full_path(prefix), detail=True))

    def delete(self, prefix: str = "", guard: Guard = _unguarded) -> None:
        """Remove an object, or everything below a prefix; nothing there is not an error."""
        if self.is_local:
            with translated(self.url), contextlib.suppress(FileNotFoundError):
                guard()
                self.filesystem.rm(self.full_path(prefix), recursive=True)
            return
        found = self._persist(prefix, lambda: self.filesystem.find(self.full_path(prefix)))
        self.remove([name.removeprefix(self._root).lstrip("/") for name in found], guard)

    def remove(self, paths: Sequence[str], guard: Guard = _unguarded) -> None:
        """Remove these objects and no others; one that is not there is not an error."""
        most = self._remote.most_removed if self._remote else 1
        for first in range(0, len(paths), most):
            batch = paths[first : first + most]

            def attempt(batch: Sequence[str] = batch) -> None:
                guard()
                self._remove([self.full_path(path) for path in batch])

            self._persist(batch[0], attempt)

    def _remove(self, names: builtins.list[str]) -> None:
        if self._remote:
            self._remote.remove(names)
            return
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                self.filesystem.rm_file(name)

    def upload(self, folder: Path, prefix: str) -> None:
        """Put every file below the local `folder` at `prefix`; an empty one is the store's own place."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]

        def put(path: Path) -> None:
            name = f"{prefix}/{path.relative_to(folder).as_posix()}".lstrip("/")
            if self.is_local or path.stat().st_size < MULTIPART:
                self.write(name, path.read_bytes())
            else:
                self._persist(name, lambda: self.filesystem.put_file(str(path), self.full_path(name)))

        with ThreadPoolExecutor(_UPLOADS) as pool:
            list(pool.map(put, files))

    def download(self, path: str, target: Path, resume: bool = False) -> None:
        """Get one object as a local file, in place only when it is whole.

        With `resume` what has arrived is kept as `target`.partial when the download breaks, and the next one resumes
        from there; the caller makes sure that it is the same object, and the only download of it.
        """
        target.parent.mkdir(parents=True, exist_ok=True)
        if resume:
            partial = target.with_name(f"{target.name}.partial")
            self._continue(path, partial)
            partial.replace(target)
            return
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
        try:
            self._persist(path, lambda: self.filesystem.get_file(self.full_path(path), str(partial)))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    def _continue(self, path: str, partial: Path) -> None:
        """Append to `partial` what it lacks of the object."""
        size = self.size(path)
        with partial.open("ab") as file:
            if file.tell() > size:
                file.truncate(0)
                file.seek(0)
            while (start := file.tell()) < size:
                block = self.read(path, start, min(start + _DOWNLOAD_BLOCK, size))
                if not block:
                    raise FileNotFoundError(f"{path} became shorter while it was read")
                file.write(block)
                file.flush()

    def _persist(self, path: str, operate: Callable[[], T]) -> T:
        if self._remote:
            return persist(self.url, path, operate, self._patience)
        with translated(self.url):
            return operate()

    def _key(self, path: str) -> str:
        """The name of the object `path` in its bucket."""
        return self.full_path(path).split("/", 1)[1]

    @cached_property
    def _http(self) -> HttpRanges | None:
        if self.client != "http" or not self.url.startswith("s3://"):
            return None
        with translated(self.url):
            return HttpRanges(self._root.split("/")[0])
