"""The page of `larmor view`: an HTTP server for one person on this machine.

It listens on 127.0.0.1 alone. Every address begins with a random token, and requests by another name of this machine
are refused, so that no page of another origin can read what is shown (DNS rebinding).
"""

from __future__ import annotations

import gzip
import hmac
import importlib.resources
import json
import re
import secrets
import threading
from functools import partial
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from larmor.recon.inference.slices_page import page_html
from larmor.recon.viewing.live import Gallery
from larmor.storage.objects.errors import InputError

_HOST = "127.0.0.1"
_PATIENCE = 30.0  # seconds that a connection may say nothing
_ROUTES = re.compile(r"(?P<kind>stack|slice|volume)/(?P<stack>\d{1,6})(?:/(?P<index>\d{1,6}))?(?P<suffix>\.nii\.gz)?")
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self' 'unsafe-inline' blob:; worker-src blob:; "
    "style-src 'unsafe-inline'; img-src 'self' data: blob:; connect-src 'self' data: blob:; form-action 'none'; "
    "frame-ancestors 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class ViewServer:
    """Serves a gallery in a thread until `close`; `url` leads to it."""

    def __init__(self, gallery: Gallery, port: int = 0) -> None:
        self.gallery, self.token, self.lock = gallery, secrets.token_urlsafe(16), threading.Lock()
        try:
            self._server = ThreadingHTTPServer((_HOST, port), partial(_Request, self))
        except (OSError, OverflowError) as error:
            reason = getattr(error, "strerror", None) or error
            raise InputError(f"--port {port}: cannot be used ({reason}); choose another, or leave it out") from error
        self._server.daemon_threads = True
        self.url = f"http://{_HOST}:{self._server.server_port}/{self.token}/"
        self._thread = threading.Thread(target=self._server.serve_forever, name="larmor-view", daemon=True)
        self._thread.start()

    def page(self) -> bytes:
        """The HTML, in which no slices are yet."""
        stacks = [{"name": name} for name in self.gallery.names]
        return page_html(f"{self.gallery.title} – Larmor", {"served": True, "stacks": stacks}).encode()

    def wait(self) -> None:
        """Until the server is closed, or the user interrupts."""
        self._thread.join()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self.gallery.close()


class _Request(BaseHTTPRequestHandler):
    timeout = _PATIENCE
    protocol_version = "HTTP/1.1"
    server_version = "larmor"
    sys_version = ""

    def __init__(self, view: ViewServer, *arguments: Any) -> None:
        self._view = view
        super().__init__(*arguments)

    def do_GET(self) -> None:
        try:
            self._answer()
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True  # the browser has gone on to another slice

    def _answer(self) -> None:
        host = self.headers.get("Host", "").rpartition(":")[0]
        _, token, path = [*self.path.partition("?")[0].split("/", 2), "", ""][:3]
        if host not in (_HOST, "localhost") or not hmac.compare_digest(token.encode(), self._view.token.encode()):
            self._problem("this address lacks the token; open the one that larmor view printed", HTTPStatus.FORBIDDEN)
        elif not path:
            self._send(self._view.page(), "text/html; charset=utf-8")
        elif path == "niivue.js":
            packed = importlib.resources.files("larmor.recon.viewing").joinpath("niivue.umd.js.gz").read_bytes()
            self._send(packed, "text/javascript; charset=utf-8", {"Content-Encoding": "gzip"})
        elif found := _ROUTES.fullmatch(path):
            self._content(found["kind"], int(found["stack"]), int(found["index"] or 0))
        else:
            self._problem(f"there is no {path} here", HTTPStatus.NOT_FOUND)

    def _content(self, kind: str, stack: int, index: int) -> None:
        gallery = self._view.gallery
        try:
            with self._view.lock:  # one scan is open at a time
                if stack >= len(gallery.names) or (kind == "slice" and index >= gallery.content(stack)["count"]):
                    raise InputError(f"there is no {kind} {stack}/{index}")
                if kind == "stack":
                    found: Any = gallery.content(stack)
                elif kind == "slice":
                    found = gallery.slice(stack, index)
                else:
                    found = gallery.volume(stack)
        except InputError as error:
            self._problem(str(error), HTTPStatus.UNPROCESSABLE_ENTITY)
            return
        if kind != "volume":
            self._send(json.dumps(found).encode(), "application/json")
        elif found is None:
            self._problem("this scan has no volume file", HTTPStatus.NOT_FOUND)
        else:
            self._send(_packed(found), "application/octet-stream")

    def _problem(self, text: str, status: HTTPStatus) -> None:
        self._send(json.dumps({"problem": text}).encode(), "application/json", status=status)

    def _send(
        self, body: bytes, kind: str, more: dict[str, str] | None = None, status: HTTPStatus = HTTPStatus.OK
    ) -> None:
        self.send_response(status)
        for name, value in {**_HEADERS, **(more or {}), "Content-Type": kind, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *arguments: Any) -> None:
        """Nothing: the terminal belongs to the command."""


def _packed(path: Path) -> bytes:
    """A NIfTI file as .nii.gz, as its address says."""
    content = path.read_bytes()
    return content if content.startswith(b"\x1f\x8b") else gzip.compress(content, 1)
