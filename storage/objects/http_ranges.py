"""Ranges of S3 objects by plain HTTP, received right where they belong: a fraction of what s3fs costs the processor.

botocore finds endpoint, region and credentials where s3fs finds them, and signs; the GET itself goes through
the standard library over connections that are kept open.
"""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.http_connection import Route
from larmor.storage.objects.signing import NO_SIGN_REQUEST, is_signed
from larmor.storage.objects.store_errors import StoreAway, endpoint

_SIGNED_SECONDS = 3600
_RESIGN_SECONDS = 300.0  # renewed early: a role's credentials may end before the signature does
_TIMEOUT = 30.0  # seconds without a byte
_MOST_SIGNED = 10_000
_PARTIAL, _BEYOND_THE_END = 206, 416


class HttpRanges:
    """Reads from one bucket; safe to share by threads, each request has a connection of its own.

    Raises `InputError` if no credentials are found.
    """

    def __init__(self, bucket: str) -> None:
        import botocore
        import botocore.config
        import botocore.session

        session = botocore.session.Session()
        if is_signed() and session.get_credentials() is None:
            raise InputError(
                f"s3://{bucket}: no S3 credentials were found; set AWS_PROFILE, keys, or a role; {NO_SIGN_REQUEST}=YES "
                "reads a public bucket"
            )
        config = botocore.config.Config(signature_version="s3v4" if is_signed() else botocore.UNSIGNED)
        self._bucket, self._s3 = bucket, session.create_client("s3", config=config)
        self._signed: dict[str, tuple[float, SplitResult]] = {}
        self._route: Route | None = None  # one bucket has one server
        self._idle: list[http.client.HTTPConnection] = []
        self._lock = threading.Lock()

    def read(self, key: str, start: int | None, stop: int | None) -> bytes:
        """The bytes [start, stop) of an object; a negative `start` counts from its end; none beyond the end.

        Raises `FileNotFoundError`, `PermissionError`, and `StoreAway` or an `OSError` for what may pass.
        """
        headers = {"Range": _range(start, stop)} if start or stop is not None else {}
        with self._get(key, headers) as response:
            content = response.read()
        if response.status == _BEYOND_THE_END:
            return b""
        if response.status == 200 and headers:  # the store ignores ranges
            return content[start:stop]
        return content

    def read_into(self, key: str, start: int, parts: Sequence[memoryview]) -> int:
        """Fill the parts (bytes), one after another, with the object's bytes from `start` on, by one request.

        Returns how many bytes came: fewer than the parts hold where the object ends. Raises what `read` raises.
        """
        with self._get(key, {"Range": _range(start, start + sum(map(len, parts)))}) as response:
            if response.status == _PARTIAL:
                received = 0
                for part in parts:
                    count = response.readinto(part)
                    received += count
                    if count < len(part):
                        break
                if response.length:  # the connection ended before the answer did
                    raise http.client.IncompleteRead(b"", response.length)
                response.read()  # nothing is left: this ends the answer
                return received
            content = memoryview(response.read())
        return 0 if response.status == _BEYOND_THE_END else spread(content[start:], parts)

    @contextmanager
    def _get(self, key: str, headers: dict[str, str]) -> Iterator[http.client.HTTPResponse]:
        """The answer to a request, its body not received yet; the connection is used again if that was received."""
        place = self._sign(key)
        route = self._route = self._route or Route(place, _TIMEOUT)
        connection = self._connect(route)
        target, for_proxy = route.target(place)
        try:
            connection.request("GET", target, headers={**headers, **for_proxy})
            response = connection.getresponse()
            if response.status not in (200, _PARTIAL, _BEYOND_THE_END):
                self._refuse(key, response)
            yield response
        except BaseException as error:
            connection.close()
            if isinstance(error, OSError | http.client.HTTPException):
                self._drop_idle()  # the store has mostly ended them as well: one failure is enough
            raise
        if response.will_close:
            connection.close()
        else:
            with self._lock:
                self._idle.append(connection)

    def _sign(self, key: str) -> SplitResult:
        known = self._signed.get(key)
        if known is None or known[0] < time.monotonic():
            arguments = {"Bucket": self._bucket, "Key": key}
            url = self._s3.generate_presigned_url("get_object", Params=arguments, ExpiresIn=_SIGNED_SECONDS)
            known = time.monotonic() + _RESIGN_SECONDS, urlsplit(url)
            if len(self._signed) >= _MOST_SIGNED:
                self._signed.clear()
            self._signed[key] = known
        return known[1]

    def _connect(self, route: Route) -> http.client.HTTPConnection:
        with self._lock:
            if self._idle:
                return self._idle.pop()
        return route.connect()

    def _drop_idle(self) -> None:
        with self._lock:
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _refuse(self, key: str, response: http.client.HTTPResponse) -> None:
        status, text = response.status, response.read(2000).decode(errors="replace")
        if status == 404 and "NoSuchBucket" in text:
            raise FileNotFoundError(f"The specified bucket does not exist: {self._bucket}")
        if status == 404:
            raise FileNotFoundError(f"{self._bucket}/{key}")
        if status in (401, 403):
            self._signed.pop(key, None)
            raise PermissionError(f"{status} {response.reason}")
        if status >= 500 or status == 429:
            raise StoreAway(f"s3://{self._bucket}/{key}: {endpoint()} answers {status} {response.reason}")
        # not the answer's text: it may repeat the request, with its signature
        raise InputError(
            f"s3://{self._bucket}/{key}: {endpoint()} answers {status} {response.reason}; check AWS settings"
        )


def spread(content: memoryview, parts: Sequence[memoryview]) -> int:
    """Copy content into the parts, one after another, until it or they end; how many bytes that were."""
    copied = 0
    for part in parts:
        piece = content[copied : copied + len(part)]
        part[: len(piece)] = piece
        copied += len(piece)
    return copied


def _range(start: int | None, stop: int | None) -> str:
    if start is not None and start < 0:
        assert stop is None
        return f"bytes={start}"
    return f"bytes={start or 0}-{'' if stop is None else stop - 1}"
