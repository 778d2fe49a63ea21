"""Azure Blob Storage by Microsoft's own client (azure-storage-blob).

Account and credentials come from the environment, by the names of Azure's command line:
AZURE_STORAGE_CONNECTION_STRING, or AZURE_STORAGE_ACCOUNT with AZURE_STORAGE_KEY, AZURE_STORAGE_SAS_TOKEN, or without a
key what `DefaultAzureCredential` finds: workload identity, managed identity, `az login`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any

from azure.core.exceptions import (
    AzureError,
    ClientAuthenticationError,
    HttpResponseError,
    IncompleteReadError,
    ServiceRequestError,
    ServiceResponseError,
)
from azure.storage.blob import BlobPrefix, BlobServiceClient

from larmor.storage.objects import urls
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.sdk_client import TIMEOUTS, Entry, below, refusal
from larmor.storage.objects.signing import AZURE_NO_SIGN_REQUEST, is_signed
from larmor.storage.objects.store_errors import StoreAway

_MIB = 2**20
_OPTIONS: dict[str, Any] = {
    "retry_total": 0,  # `ObjectStore` tries again
    "connection_timeout": TIMEOUTS[0],
    "read_timeout": TIMEOUTS[1],
    "max_single_put_size": 64 * _MIB,
    "max_block_size": 32 * _MIB,
    "max_single_get_size": 256 * _MIB,
    "max_chunk_get_size": 64 * _MIB,
}
_THERE = ("BlobAlreadyExists", "ConditionNotMet")  # what a condition that does not hold is called


def azure_blobs(url: str) -> AzureBlobs:
    """The client of the account in `url`, or in the environment. Raises `InputError` if no account is named."""
    host = urls.split(url).host.replace(".dfs.", ".blob.")  # one account, by its other protocol
    names = ("CONNECTION_STRING", "ACCOUNT", "KEY", "SAS_TOKEN")
    settings = tuple(os.environ.get(f"AZURE_STORAGE_{name}", "") for name in names)
    try:
        return _cached(host, *settings, is_signed(AZURE_NO_SIGN_REQUEST), os.getpid())
    except ValueError as error:
        raise InputError(
            f"{url}: Azure Blob Storage is not set up right ({error}); set AZURE_STORAGE_ACCOUNT, or "
            "AZURE_STORAGE_CONNECTION_STRING, or name the account in the URL: "
            f"{urls.REMOTE['abfs']}"
        ) from error


@lru_cache
def _cached(host: str, stated: str, account: str, key: str, token: str, signed: bool, process: int) -> AzureBlobs:
    if stated and not host:
        return AzureBlobs(BlobServiceClient.from_connection_string(stated, **_OPTIONS))
    if not host and not account:
        raise ValueError("no account is named")
    host = host or f"{account}.blob.core.windows.net"
    credential: Any = key or token or None
    if not credential and signed:
        from azure.identity import DefaultAzureCredential

        credential = DefaultAzureCredential()
    return AzureBlobs(BlobServiceClient(f"https://{host}", credential, **_OPTIONS))


class AzureBlobs:
    """See `SdkClient`."""

    def __init__(self, client: BlobServiceClient) -> None:
        self._client = client

    @property
    def account(self) -> str:
        """The name of the account that is asked."""
        return str(self._client.account_name)

    def head(self, name: str) -> Entry:
        with _translated(name):
            return _entry(name, self._blob(name).get_blob_properties())

    def entries(self, place: str, flat: bool, most: int | None = None) -> Iterator[Entry | str]:
        bucket, prefix = below(place)
        container = self._client.get_container_client(bucket)
        options: dict[str, Any] = {"name_starts_with": prefix or None, "results_per_page": most}
        with _translated(place):
            for found in container.list_blobs(**options) if flat else container.walk_blobs(**options, delimiter="/"):
                name = f"{bucket}/{found.name}"
                yield name.rstrip("/") if isinstance(found, BlobPrefix) else _entry(name, found)

    def get(self, name: str, start: int, stop: int | None) -> bytes:
        if stop is not None and stop <= start:
            return b""
        length = None if stop is None else stop - start
        with _translated(name):
            if not start and length is None:
                return bytes(self._blob(name).download_blob().readall())
            return bytes(self._blob(name).download_blob(start, length).readall())

    def get_file(self, name: str, target: Path) -> None:
        with _translated(name), target.open("wb") as file:
            self._blob(name).download_blob().readinto(file)

    def put(self, name: str, data: bytes | Path, mark: str | None = None) -> None:
        options: dict[str, Any] = {"overwrite": mark is None, "validate_content": True}
        if mark is not None:
            options["metadata"] = {"writer": mark}
        try:
            with _translated(name), data.open("rb") if isinstance(data, Path) else nullcontext(data) as content:
                self._blob(name).upload_blob(content, **options)
        except OSError as error:
            if mark is not None and getattr(error.__cause__, "error_code", None) in _THERE:
                raise FileExistsError(name) from error
            raise

    def remove(self, name: str) -> None:
        with _translated(name):
            self._blob(name).delete_blob()

    def _blob(self, name: str) -> Any:
        container, _, key = name.partition("/")
        return self._client.get_blob_client(container, key)


def _entry(name: str, found: Any) -> Entry:
    return Entry(name, int(found.size), str(found.etag).strip('"'), dict(found.metadata or {}))


@contextmanager
def _translated(name: str) -> Iterator[None]:
    """What Azure's client raises, as what a file system raises."""
    try:
        yield
    except HttpResponseError as error:
        code, text = getattr(error, "error_code", None), error.message
        if isinstance(error, ClientAuthenticationError):
            raise PermissionError(f"{name}: {text}".split("\n")[0]) from error
        if code == "ContainerNotFound":
            text = "the bucket does not exist"
        raise refusal(error.status_code or 0, text, name) from error
    except (ServiceRequestError, ServiceResponseError, IncompleteReadError) as error:
        raise StoreAway(
            f"az://{name}: Azure Blob Storage cannot be reached ({error.message}); is there a way to it from here, and "
            "are account and endpoint right?"
        ) from error
    except AzureError as error:
        raise OSError(f"{name}: {error.message}") from error
