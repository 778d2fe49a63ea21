"""Connections of the standard library to an HTTP server, through the proxy that the environment names for it."""

from __future__ import annotations

import base64
import http.client
import os
import ssl
from urllib.parse import SplitResult, unquote, urlsplit

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.ports import HOST

_LOOPBACK = (HOST, "localhost", "::1")


class Route:
    """How the server of a URL is reached: directly, or as `HTTP_PROXY`, `HTTPS_PROXY` and `NO_PROXY` say.

    A server on this machine is always reached directly: no proxy finds it. Raises `InputError` for a proxy that speaks
    another protocol than HTTP.
    """

    def __init__(self, place: SplitResult, timeout: float) -> None:
        from botocore.utils import get_environ_proxies  # what s3fs goes by, too

        self._place, self._timeout = place, timeout
        local = place.hostname in _LOOPBACK
        stated = None if local else get_environ_proxies(place.geturl()).get(place.scheme)
        self._proxy = urlsplit(stated if "://" in stated else f"http://{stated}") if stated else None
        if self._proxy and self._proxy.scheme != "http":
            raise InputError(
                f"{place.scheme.upper()}_PROXY={self._proxy.scheme}://{self._proxy.hostname}…: data.client=http takes "
                "proxies at http:// only; set data.client=s3fs"
            )

    def connect(self) -> http.client.HTTPConnection:
        """A connection, opened by its first request."""
        place, proxy = self._place, self._proxy
        if place.scheme == "http":
            return http.client.HTTPConnection((proxy or place).netloc.rpartition("@")[2], timeout=self._timeout)
        context = ssl.create_default_context(cafile=os.environ.get("AWS_CA_BUNDLE"))
        where = (proxy or place).netloc.rpartition("@")[2]
        connection = http.client.HTTPSConnection(where, timeout=self._timeout, context=context)
        if proxy:
            connection.set_tunnel(place.hostname or "", place.port or 443, self._authorization())
        return connection

    def target(self, place: SplitResult) -> tuple[str, dict[str, str]]:
        """What a request for `place`, which is on that server, asks for, and the headers for the proxy."""
        path = f"{place.path}?{place.query}" if place.query else place.path
        if self._proxy and place.scheme == "http":
            return f"http://{place.netloc}{path}", self._authorization()
        return path, {}

    def _authorization(self) -> dict[str, str]:
        proxy = self._proxy
        if proxy is None or proxy.username is None:
            return {}
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        return {"Proxy-Authorization": f"Basic {base64.b64encode(pair.encode()).decode()}"}
