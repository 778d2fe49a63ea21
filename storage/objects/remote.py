"""What each kind of object store asks in its own way."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Protocol

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.sdk_remote import SdkRemote
from larmor.storage.objects.urls import protocol_of


class Remote(Protocol):
    """An object store behind `filesystem` (fsspec); objects are named BUCKET/KEY, as `filesystem` names them.

    Where nothing else is said, methods raise what file systems raise, and what `is_transient` knows.
    """

    filesystem: Any
    most_removed: int  # objects that `remove` takes at once
    doubt: str  # what to check if an answer makes no sense

    def look(self, place: str) -> None:
        """Ask for one entry below `place`, soon. Raises `OSError` if the store does not answer as one."""

    def find(self, folder: str, after: str = "") -> dict[str, dict[str, Any]]:
        """As `find(folder, detail=True)` of a file system; objects whose names do not sort after `after` may be left
        out: then the cost is that of what is new."""

    def put(self, name: str, data: bytes, part_bytes: int | None = None, mark: str | None = None) -> None:
        """Put an object whole. With a `mark` only if there is none, and the mark is kept with it.

        `part_bytes`: of requests that bring parts of the object, where the store has such. Raises `FileExistsError`.
        """

    def mark_of(self, name: str) -> str | None:
        """The mark that an object was put with. Raises `FileNotFoundError`."""

    def remove(self, names: list[str]) -> None:
        """Remove objects; one that is not there is not an error."""


def open_remote(url: str) -> Remote:
    """The object store of `url`. Raises `InputError` if its client is not installed, or is not set up right."""
    protocol = protocol_of(url)
    if protocol == "s3":
        from larmor.storage.objects.s3_remote import S3Remote

        return S3Remote()
    if protocol == "gs":
        _require(url, "google.cloud.storage", "gcs")
        from larmor.storage.objects.google_storage import google_storage

        return SdkRemote(google_storage(url))
    _require(url, "azure.storage.blob", "azure")
    from larmor.storage.objects.azure_blobs import azure_blobs

    return SdkRemote(azure_blobs(url))


def _require(url: str, module: str, extra: str) -> None:
    try:
        found = find_spec(module)
    except ModuleNotFoundError:  # of a package that holds it
        found = None
    if not found:
        raise InputError(
            f"{url}: {protocol_of(url)}:// needs the package '{module}', which is not installed; "
            f"pip install 'larmor-mri[{extra}]'"
        )
