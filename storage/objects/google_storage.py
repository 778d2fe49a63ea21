"""Google Cloud Storage by Google's own client (google-cloud-storage).

Credentials are Google's application default ones: GOOGLE_APPLICATION_CREDENTIALS, `gcloud auth
application-default login`, or what the machine or pod is given. STORAGE_EMULATOR_HOST leads to another server.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

from google.api_core.exceptions import GoogleAPICallError, NotFound, PreconditionFailed
from google.auth import exceptions as auth
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage
from google.resumable_media import DataCorruption
from requests.exceptions import RequestException

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.sdk_client import TIMEOUTS, Entry, below, refusal
from larmor.storage.objects.signing import GS_NO_SIGN_REQUEST, is_signed
from larmor.storage.objects.store_errors import StoreAway

_OPTIONS: dict[str, Any] = {"timeout": TIMEOUTS, "retry": None}  # `ObjectStore` tries again
_BINARY = "application/octet-stream"


def google_storage(url: str) -> GoogleStorage:
    """The client. Raises `InputError` if there are no credentials."""
    try:
        return _cached(os.environ.get("STORAGE_EMULATOR_HOST"), is_signed(GS_NO_SIGN_REQUEST), os.getpid())
    except auth.GoogleAuthError as error:
        raise InputError(
            f"{url}: no Google credentials were found ({_first_line(error)}); set GOOGLE_APPLICATION_CREDENTIALS, run "
            "`gcloud auth application-default login`, or give the machine or pod a service account; a public bucket is "
            f"read with {GS_NO_SIGN_REQUEST}=YES"
        ) from error


@lru_cache
def _cached(emulator: str | None, signed: bool, process: int) -> GoogleStorage:
    return GoogleStorage(signed)


class GoogleStorage:
    """See `SdkClient`."""

    def __init__(self, signed: bool) -> None:
        # the project is for buckets that are made, which does not happen here
        project = os.environ.get("GOOGLE_CLOUD_PROJECT", "none")
        self._client = storage.Client(project, credentials=None if signed else AnonymousCredentials())

    def head(self, name: str) -> Entry:
        with _translated(name):
            blob = self._blob(name)
            blob.reload(**_OPTIONS)
            return _entry(name, blob)

    def entries(self, place: str, flat: bool, most: int | None = None) -> Iterator[Entry | str]:
        bucket, prefix = below(place)
        with _translated(place):
            found = self._client.list_blobs(
                bucket, prefix=prefix, delimiter=None if flat else "/", max_results=most, **_OPTIONS
            )
            try:
                blobs = [_entry(f"{bucket}/{blob.name}", blob) for blob in found]
            except NotFound as error:  # a list is empty where nothing is
                raise FileNotFoundError(f"{bucket}: the bucket does not exist") from error
        yield from blobs
        yield from (f"{bucket}/{folder.rstrip('/')}" for folder in found.prefixes)

    def get(self, name: str, start: int, stop: int | None) -> bytes:
        if stop is not None and stop <= start:
            return b""
        end = None if stop is None else stop - 1
        with _translated(name):
            options = _OPTIONS | ({"start": start, "end": end} if start or stop else {})
            return bytes(self._blob(name).download_as_bytes(raw_download=True, checksum=None, **options))

    def get_file(self, name: str, target: Path) -> None:
        with _translated(name):
            self._blob(name).download_to_filename(str(target), raw_download=True, checksum="crc32c", **_OPTIONS)

    def put(self, name: str, data: bytes | Path, mark: str | None = None) -> None:
        blob = self._blob(name)
        options: dict[str, Any] = _OPTIONS | {"content_type": _BINARY, "checksum": "crc32c"}
        if mark is not None:
            blob.metadata, options["if_generation_match"] = {"writer": mark}, 0  # of an object that is not there
        with _translated(name):
            if isinstance(data, Path):
                blob.upload_from_filename(str(data), **options)
            else:
                blob.upload_from_string(data, **options)

    def remove(self, name: str) -> None:
        with _translated(name):
            self._blob(name).delete(**_OPTIONS)

    def _blob(self, name: str) -> Any:
        bucket, _, key = name.partition("/")
        return self._client.bucket(bucket).blob(key)


def _entry(name: str, blob: Any) -> Entry:
    return Entry(name, int(blob.size or 0), str(blob.generation or ""), dict(blob.metadata or {}))


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """What Google's client raises, as what a file system raises."""
    try:
        yield
    except PreconditionFailed as error:
        raise FileExistsError(name) from error
    except GoogleAPICallError as error:
        raise refusal(int(error.code or 0), error.message, name) from error
    except (auth.TransportError, DataCorruption) as error:
        raise ConnectionError(f"{name}: {_first_line(error)}") from error
    except auth.GoogleAuthError as error:
        raise PermissionError(f"{name}: {_first_line(error)}") from error
    except RequestException as error:
        server = os.environ.get("STORAGE_EMULATOR_HOST", "Google Cloud Storage")
        raise StoreAway(
            f"gs://{name}: {server} cannot be reached ({_first_line(error)}); is there a way to it from here, and is "
            "STORAGE_EMULATOR_HOST right, if it is set?"
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).split("\n")[0]
