"""What a server has done, for Prometheus, and the HTTP door to it.

Source: the text format of Prometheus, as the `prometheus_client` package writes it.
"""

from __future__ import annotations

import hmac
import secrets
import threading
from collections.abc import Callable
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST as CONTENT_TYPE
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from larmor.storage.objects.errors import InputError

_HOST = "127.0.0.1"
_PATIENCE = 10.0  # seconds that a request may take to come
_BUCKETS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)


class Counts:
    """Counters of one server: each has a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.slices = Counter("larmor_serve_slices", "Images made.", registry=self.registry)
        self.errors = Counter("larmor_serve_errors", "Connections that went wrong.", registry=self.registry)
        self.open = Gauge("larmor_serve_open_connections", "Connections being served.", registry=self.registry)
        self.seconds = Histogram(
            "larmor_serve_slice_seconds",
            "From a complete slice (or stack) to its image, with the wait for slices of others.",
            registry=self.registry,
            buckets=_BUCKETS,
        )

    def text(self) -> bytes:
        """All of it in Prometheus' format, whose type is `CONTENT_TYPE`."""
        return generate_latest(self.registry)


class MetricsServer:
    """Answers `/health` to everybody on this machine, and `/metrics` to who knows the token.

    The token is sent as Prometheus does it (`Authorization: Bearer TOKEN`). `is_alive` says whether scans are taken.
    Raises `InputError` for a port that cannot be used and a token that cannot be sent.
    """

    def __init__(self, counts: Counts, is_alive: Callable[[], bool], port: int = 0, token: str | None = None) -> None:
        self.counts, self.is_alive, self.token = counts, is_alive, token or secrets.token_urlsafe(16)
        if not (self.token.isascii() and self.token.isprintable()) or " " in self.token:
            raise InputError("the token of the metrics has spaces or other characters than ASCII; choose another")
        try:
            self._server = ThreadingHTTPServer((_HOST, port), partial(_Request, self))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--metrics-port {port}: cannot be used ({reason}); choose another") from error
        self._server.daemon_threads = True
        self.url = f"http://{_HOST}:{self._server.server_port}/metrics"
        threading.Thread(target=self._server.serve_forever, name="larmor-metrics", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Request(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    server_version = "larmor"
    sys_version = ""

    def __init__(self, metrics: MetricsServer, *arguments: Any) -> None:
        self._metrics = metrics
        super().__init__(*arguments)

    def do_GET(self) -> None:
        if self.path == "/health":
            alive = self._metrics.is_alive()
            self._send(b"ok\n" if alive else b"down\n", HTTPStatus.OK if alive else HTTPStatus.SERVICE_UNAVAILABLE)
        elif self.path != "/metrics":
            self._send(b"there are /health and /metrics\n", HTTPStatus.NOT_FOUND)
        elif not hmac.compare_digest(
            self.headers.get("Authorization", "").encode(), f"Bearer {self._metrics.token}".encode()
        ):
            self._send(b"send the token: Authorization: Bearer TOKEN\n", HTTPStatus.UNAUTHORIZED)
        else:
            self._send(self._metrics.counts.text(), kind=CONTENT_TYPE)

    def _send(self, body: bytes, status: HTTPStatus = HTTPStatus.OK, kind: str = "text/plain; charset=utf-8") -> None:
        self.send_response(status)
        for name, value in {
            "Content-Type": kind,
            "Content-Length": str(len(body)),
            "Cache-Control": "no-store",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the terminal belongs to the command."""
