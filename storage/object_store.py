"""Objects below one URL, on disk or in S3: bytes in, bytes out, errors that a user can act on."""

from __future__ import annotations

import contextlib
import os
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from storage.errors import InputError


def _s3_options(num_retries: int, read_timeout: int) -> dict[str, Any]:
    return {
        "use_listings_cache": False,
        "config_kwargs": {
            "connect_timeout": 5,
            "read_timeout": read_timeout,
            "max_pool_connections": 32,
            "retries": {"max_attempts": num_retries, "mode": "standard"},
            # newer checksum trailers break several S3-compatible stores
            "request_checksum_calculation": "when_required",
            "response_checksum_validation": "when_required",
        },
    }


# a store that goes away is waited for, up to half a minute; one that is away at the start is a mistake
_S3_OPTIONS = _s3_options(num_retries=5, read_timeout=60)
_S3_OPTIONS_OF_CHECK = _s3_options(num_retries=1, read_timeout=10)


class ObjectStore:
    """Everything below `url` (a local path, `file://`, `memory://` or `s3://bucket/prefix`).

    Paths given to the methods are relative to `url`, with forward slashes. S3 credentials and endpoint
    come from the standard AWS environment, profile and role only, so that no key is ever pickled.

    Raises (all methods): `InputError` for wrong or missing credentials, an endpoint that cannot be
    reached, or a bucket that does not exist; `FileNotFoundError` for an object that does not exist.
    """

    def __init__(self, url: str | Path) -> None:
        protocol, separator, place = str(url).partition("://")
        if not separator:
            protocol, place = "file", str(url)
        if protocol not in ("file", "memory", "s3"):
            raise InputError(f"{url}: '{protocol}://' is not supported; use a local path or an s3:// URL")
        if protocol == "s3" and not place.strip("/"):
            raise InputError(f"{url}: no bucket is named; write s3://BUCKET/PREFIX")
        self.is_local = protocol == "file"
        self.url = str(Path(place).expanduser().absolute()) if self.is_local else f"{protocol}://{place.rstrip('/')}"
        with self._errors():
            self.filesystem, self._root = url_to_fs(self.url, **(_S3_OPTIONS if protocol == "s3" else {}))

    def __repr__(self) -> str:
        return f"ObjectStore({self.url!r})"

    def __reduce__(self) -> tuple[type[ObjectStore], tuple[str]]:
        return ObjectStore, (self.url,)

    def child(self, path: str) -> ObjectStore:
        """The store below `url/path`."""
        return ObjectStore(f"{self.url}/{path.strip('/')}")

    def full_path(self, path: str) -> str:
        """What the fsspec filesystem calls the object `path`."""
        return f"{self._root}/{path}" if path else self._root

    def check_access(self) -> None:
        """Ask the store for one listing entry, so that mistakes show before any work is done, and soon."""
        if not self.url.startswith("s3://"):
            return
        bucket = self._root.split("/")[0]
        try:
            with self._errors():
                filesystem, _ = url_to_fs(self.url, **_S3_OPTIONS_OF_CHECK)
                filesystem.retries = 1  # s3fs repeats what botocore has repeated
                filesystem.call_s3("list_objects_v2", Bucket=bucket, MaxKeys=1)
        except OSError as error:
            raise InputError(
                f"{self.url}: {_endpoint()} does not list the bucket '{bucket}' ({error}); is it an S3 store, and are "
                "AWS_ENDPOINT_URL and the region right?"
            ) from error

    def exists(self, path: str) -> bool:
        with self._errors():
            return bool(self.filesystem.exists(self.full_path(path)))

    def size(self, path: str) -> int:
        """Bytes of the object `path`."""
        with self._errors():
            return int(self.filesystem.size(self.full_path(path)))

    def read(self, path: str, start: int | None = None, stop: int | None = None) -> bytes:
        """The bytes [start, stop) of an object; a negative `start` counts from its end."""
        with self._errors():
            return bytes(self.filesystem.cat_file(self.full_path(path), start=start, end=stop))

    def write(self, path: str, data: bytes) -> None:
        """Put an object whole: a reader sees the old bytes or the new ones, nothing between."""
        with self._errors():
            if self.is_local:
                _write_atomically(Path(self.full_path(path)), data, overwrite=True)
            else:
                self.filesystem.pipe_file(self.full_path(path), data)

    def create(self, path: str, data: bytes) -> bool:
        """Put an object only if there is none of that name; of several callers exactly one gets True."""
        with self._errors():
            try:
                if self.is_local:
                    _write_atomically(Path(self.full_path(path)), data, overwrite=False)
                else:
                    self.filesystem.pipe_file(self.full_path(path), data, mode="create")
            except FileExistsError:
                return False
            except OSError as error:
                if _lost_condition(error):
                    return False
                raise
            return True

    def list(self, prefix: str = "") -> dict[str, int]:
        """Path and size in bytes of every object below `prefix`, sorted by path."""
        with self._errors():
            found = self.filesystem.find(self.full_path(prefix), detail=True)
        # some S3 stores keep an emptied folder, which s3fs then gives as an object of that name
        found.pop(self.full_path(prefix), None)
        skip = len(self._root) + 1
        return {name[skip:]: int(info["size"]) for name, info in sorted(found.items()) if ".partial-" not in name}

    def delete(self, prefix: str = "") -> None:
        """Remove an object, or everything below a prefix; nothing there is not an error."""
        with self._errors(), contextlib.suppress(FileNotFoundError):
            self.filesystem.rm(self.full_path(prefix), recursive=True)

    def upload(self, folder: Path, prefix: str, num_threads: int = 4) -> None:
        """Put every file below the local `folder` at `prefix`."""
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]

        def put(path: Path) -> None:
            name = f"{prefix}/{path.relative_to(folder).as_posix()}"
            with self._errors():
                if self.is_local:
                    _write_atomically(Path(self.full_path(name)), path.read_bytes(), overwrite=True)
                else:
                    self.filesystem.put_file(str(path), self.full_path(name))

        with ThreadPoolExecutor(num_threads) as pool:
            list(pool.map(put, files))

    def download(self, path: str, target: Path) -> None:
        """Get one object as a local file, in place only when it is whole."""
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
        try:
            with self._errors():
                self.filesystem.get_file(self.full_path(path), str(partial))
            partial.replace(target)
        finally:
            partial.unlink(missing_ok=True)

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn what S3 clients raise into sentences with a remedy."""
        import botocore.exceptions as aws

        endpoint = _endpoint()
        try:
            yield
        except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
            raise InputError(
                f"{self.url}: no S3 credentials were found; start the embedded store (`larmor store start`) or set "
                "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role"
            ) from error
        except aws.ProfileNotFound as error:
            raise InputError(f"{self.url}: {error}; correct AWS_PROFILE") from error
        except aws.SSLError as error:
            raise InputError(
                f"{self.url}: no secure connection to {endpoint} ({error}); is it http:// or https://, and is its "
                "certificate trusted (AWS_CA_BUNDLE)?"
            ) from error
        except (
            aws.EndpointConnectionError,
            aws.ConnectTimeoutError,
            aws.ConnectionClosedError,
            aws.ReadTimeoutError,
        ) as error:
            raise InputError(
                f"{self.url}: {endpoint} cannot be reached ({error}); is the store running (`larmor store status`), "
                "and is AWS_ENDPOINT_URL right?"
            ) from error
        except aws.BotoCoreError as error:
            raise InputError(f"{self.url}: S3 is not set up right ({error}); check the AWS settings") from error
        except PermissionError as error:
            raise InputError(
                f"{self.url}: access refused ({error}); check the credentials (AWS_PROFILE, AWS_ACCESS_KEY_ID) "
                "and what they may do in this bucket or folder"
            ) from error
        except FileNotFoundError as error:
            if "bucket does not exist" in str(error) or "NoSuchBucket" in repr(error.__cause__):
                bucket = self.url.removeprefix("s3://").split("/")[0]
                raise InputError(
                    f"{self.url}: the bucket '{bucket}' does not exist; create it, or correct the URL"
                ) from error
            raise
        except NotADirectoryError as error:
            raise InputError(
                f"{self.url}: a part of this path is a file, not a folder; choose another place"
            ) from error
        except ValueError as error:
            if "Invalid endpoint" in str(error):
                raise InputError(f"{self.url}: {error}; correct AWS_ENDPOINT_URL (http://HOST:PORT)") from error
            raise


def _endpoint() -> str:
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "its endpoint"


def _write_atomically(target: Path, data: bytes, overwrite: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_bytes(data)
        if overwrite:
            partial.replace(target)
        else:
            os.link(partial, target)  # fails if the target exists, unlike rename
    finally:
        partial.unlink(missing_ok=True)


def _lost_condition(error: OSError) -> bool:
    """Whether S3 refused a conditional write because the object is there (412) or being written (409).

    s3fs raises a plain OSError then, with botocore's own error as its cause.
    """
    response = getattr(error.__cause__, "response", None) or {}
    return response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (409, 412)
