"""What goes wrong between us and an object store: what is tried again, and what is said when that does not help."""

from __future__ import annotations

import contextlib
import http.client
import logging
import math
import os
import random
import socket
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.signing import NO_SIGN_REQUEST
from larmor.storage.objects.urls import protocol_of

T = TypeVar("T")

_LOG = logging.getLogger(__name__)
_DEFAULT_PATIENCE = 150.0  # seconds: a store that is away for two minutes does not end a training
_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 5.0
_TRIES = 5  # reads of what arrives damaged
_AZURE = "AZURE_STORAGE_CONNECTION_STRING, AZURE_STORAGE_KEY, `az login`"
_CREDENTIALS = {"gs": "GOOGLE_APPLICATION_CREDENTIALS", "az": _AZURE, "abfs": _AZURE, "abfss": _AZURE}
_TRANSIENT_CODES = {
    "SlowDown",
    "RequestTimeout",
    "InternalError",
    "ServiceUnavailable",
    "ThrottlingException",
    "BadDigest",  # what we sent was damaged on its way
}


class StoreAway(InputError):
    """The store cannot be reached, or does not get to answering; worth another try."""


def patience() -> float:
    """For how many seconds a request is repeated: `LARMOR_STORE_PATIENCE`, or 150.

    Raises `InputError` if the variable is not a number.
    """
    stated = os.environ.get("LARMOR_STORE_PATIENCE")
    try:
        seconds = float(stated) if stated else _DEFAULT_PATIENCE
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise InputError(f"LARMOR_STORE_PATIENCE={stated}: is not a number of seconds from 0 up; 150 is the default")
    return seconds


def persist(url: str, path: str, operate: Callable[[], T], seconds: float) -> T:
    """Call `operate`, again and again for `seconds` while it fails for a reason that may pass.

    That is: answers 5xx or 429, connections refused, reset or cut off, time-outs. Waits between the calls
    grow and are spread at random. Raises `InputError` with the object and the last cause when it gives up.
    """
    deadline, pause, told = time.monotonic() + seconds, _FIRST_PAUSE, False
    while True:
        try:
            with translated(f"{url}/{path}".rstrip("/")):
                return operate()
        except Exception as error:
            if not is_transient(error):
                raise
            if time.monotonic() + pause > deadline:
                if isinstance(error, StoreAway):
                    raise StoreAway(f"{error}; tried for {seconds:.0f} s (LARMOR_STORE_PATIENCE)") from error
                raise StoreAway(
                    f"{url}/{path}: the store fails ({_cause(error)}), and kept failing for {seconds:.0f} s; check "
                    "the store, or set LARMOR_STORE_PATIENCE to more seconds"
                ) from error
            if pause > 1 and not told:
                told = True
                _LOG.warning("%s/%s: %s; trying again for up to %.0f s", url, path, _cause(error), seconds)
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, _LONGEST_PAUSE)


def again_if_damaged(read: Callable[[], T]) -> T:
    """Call `read` up to five times while it raises `InputError`: what arrived damaged may be well where it lies.

    Raises the last `InputError`, and `StoreAway` at once.
    """
    for attempt in range(_TRIES):
        try:
            return read()
        except StoreAway:
            raise
        except InputError:
            if attempt == _TRIES - 1:
                raise
            time.sleep(0.02 * 2**attempt)
    raise AssertionError


def is_transient(error: BaseException) -> bool:
    """Whether the same request may succeed later."""
    import botocore.exceptions as aws

    kinds = (
        StoreAway,
        ConnectionError,
        TimeoutError,
        http.client.HTTPException,
        aws.HTTPClientError,
        aws.IncompleteReadError,
        aws.ResponseStreamingError,
    )
    if isinstance(error, kinds) or type(error).__module__.startswith("aiohttp"):
        return True
    response = _response(error.__cause__) or _response(error)
    status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    return status >= 500 or status == 429 or response.get("Error", {}).get("Code") in _TRANSIENT_CODES


def lost_condition(error: OSError) -> bool:
    """Whether S3 refused a conditional write because the object is there (412).

    s3fs raises a plain OSError then, with botocore's own error as its cause.
    """
    return _status(error) == 412


def in_conflict(error: OSError) -> bool:
    """Whether S3 did not decide on a conditional write, since others changed the object at that moment (409)."""
    return _status(error) == 409


def _status(error: OSError) -> int | None:
    status: int | None = _response(error.__cause__).get("ResponseMetadata", {}).get("HTTPStatusCode")
    return status


def _response(error: BaseException | None) -> dict[str, Any]:
    """What S3 answered, as botocore has it: s3fs gives that as the cause of a plain OSError."""
    response = getattr(error, "response", None)
    return response if isinstance(response, dict) else {}  # other clients have an object of that name


def not_removed(error: Mapping[str, str]) -> Exception:
    """What S3 says of an object that it did not remove, as the exception that another request would have raised."""
    text = f"{error.get('Key')}: {error.get('Code')}: {error.get('Message')}"
    if error.get("Code") in _TRANSIENT_CODES:
        return StoreAway(text)
    return PermissionError(text)


def beyond_the_end(error: OSError) -> bool:
    """Whether S3 refused a range (416) because the object ends before it."""
    return _status(error) == 416


def endpoint(url: str = "s3://") -> str:
    """What messages call the place that answers."""
    if not url.startswith("s3://"):
        return "Google Cloud Storage" if url.startswith("gs://") else "Azure Blob Storage"
    return os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or "its endpoint"


@contextlib.contextmanager
def translated(url: str) -> Iterator[None]:
    """Turn what S3 clients and file systems raise into sentences with a remedy."""
    try:
        with _translated_aws(url) if url.startswith("s3://") else contextlib.nullcontext():
            yield
    except PermissionError as error:
        named = _CREDENTIALS.get(protocol_of(url), "AWS_PROFILE, AWS_ACCESS_KEY_ID")
        raise InputError(
            f"{url}: access refused ({error}); check the credentials ({named}) "
            "and what they may do in this bucket or folder"
        ) from error
    except FileNotFoundError as error:
        if "bucket does not exist" in str(error) or "NoSuchBucket" in repr(error.__cause__):
            bucket = url.partition("://")[2].split("/")[0]
            raise InputError(f"{url}: the bucket '{bucket}' does not exist; create it, or correct the URL") from error
        raise
    except NotADirectoryError as error:
        raise InputError(f"{url}: a part of this path is a file, not a folder; choose another place") from error
    except ValueError as error:
        if "Invalid endpoint" in str(error):
            raise InputError(f"{url}: {error}; correct AWS_ENDPOINT_URL (http://HOST:PORT)") from error
        raise


@contextlib.contextmanager
def _translated_aws(url: str) -> Iterator[None]:
    """The part that needs botocore, which a machine that reads from folders alone may lack."""
    import botocore.exceptions as aws

    try:
        yield
    except (aws.NoCredentialsError, aws.PartialCredentialsError) as error:
        raise InputError(
            f"{url}: no S3 credentials were found; start the embedded store (`larmor store start`) or set "
            "AWS_PROFILE, AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or a role; a public bucket is read with "
            f"{NO_SIGN_REQUEST}=YES"
        ) from error
    except aws.ProfileNotFound as error:
        raise InputError(f"{url}: {error}; correct AWS_PROFILE") from error
    except (aws.SSLError, ssl.SSLError) as error:
        raise InputError(
            f"{url}: no secure connection to {endpoint()} ({error}); is it http:// or https://, and is its "
            "certificate trusted (AWS_CA_BUNDLE)?"
        ) from error
    except (
        aws.EndpointConnectionError,
        aws.ConnectTimeoutError,
        aws.ConnectionClosedError,
        aws.ReadTimeoutError,
        socket.gaierror,
    ) as error:
        raise StoreAway(
            f"{url}: {endpoint()} cannot be reached ({error}); is the store running (`larmor store status`), "
            "and is AWS_ENDPOINT_URL right?"
        ) from error
    except aws.BotoCoreError as error:
        if is_transient(error):
            raise
        raise InputError(f"{url}: S3 is not set up right ({error}); check the AWS settings") from error


def _cause(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".split("\n")[0][:300]
