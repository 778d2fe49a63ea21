"""A reverse proxy before a real S3 server that injects faults, the same ones for the same seed.

Requests and answers are held whole in memory, so one fault is one defined moment of one exchange. `status` and `refuse`
never reach the server; every other fault happens to its answer, so a PUT that ends in `reset` has been stored.
"""

from __future__ import annotations

import contextlib
import http.client
import random
import re
import shutil
import socket
import socketserver
import struct
import sys
import threading
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from email.message import Message
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit
from xml.sax.saxutils import escape

from larmor.storage.objects.embedded_store import EmbeddedStore

Kind = Literal["status", "reset", "close", "refuse", "truncate", "flip", "slow", "stall", "unconditional"]
UPSTREAM_TIMEOUT = 60.0  # seconds
NUM_PIECES = 8  # of a slow answer
DOWN = "down"  # stands in the log where the server itself gave no answer
_HOP_BY_HOP = ("connection", "keep-alive", "proxy-connection", "expect")  # SigV4 signs none of them
_CODES = {
    403: "AccessDenied",
    404: "NoSuchKey",
    409: "ConditionalRequestConflict",
    500: "InternalError",
    503: "SlowDown",
}


@dataclass(frozen=True)
class Fault:
    """What happens to an exchange.

    - `status`: an S3 error with `status` as its HTTP status, without asking the server
    - `refuse`: a TCP reset as soon as the head of the request is read, without asking the server
    - `reset`, `close`: the first part of the body, then a TCP reset, or an orderly end of the connection
    - `stall`: the first part of the body, then nothing for `seconds`, then a TCP reset
    - `slow`: the whole body in `NUM_PIECES` pieces, spread over `seconds`
    - `truncate`: the first part of the body as if the object ended there (but with the ETag of it all)
    - `flip`: every bit of one byte of the body is inverted
    - `unconditional`: a refusal because a condition does not hold (412) becomes a success, as from a store without them

    `at` is the share of the body that makes the first part, or where the flipped byte stands; drawn for `flip` unless
    given. An answer without a body is withheld by `reset`, `close` and `stall`, and delayed by `slow`; `truncate` and
    `flip` concern successful answers with a body only (`truncate` also HEAD), and count for nothing on others, as does
    `unconditional` on any but a 412.
    """

    kind: Kind
    status: int = 503
    at: float | None = None
    seconds: float = 600.0


class Exchange(NamedTuple):
    """One request as it arrived: `path` with its query; `fault` is a kind, `DOWN` or None."""

    method: str
    path: str
    range: str | None
    fault: str | None


@dataclass
class _Plan:
    fault: Fault
    share: float
    matches: re.Pattern[str]
    methods: tuple[str, ...] | None
    limit: int | None
    random: random.Random
    num_used: int = 0

    def draw(self, method: str, path: str) -> float | None:
        """Where in the body the fault strikes; None if it does not."""
        if not ((self.methods is None or method in self.methods) and self.matches.search(path)):
            return None
        chance, place = self.random.random(), self.random.random()  # always both: limits shift no later draw
        if chance >= self.share or (self.limit is not None and self.num_used >= self.limit):
            return None
        return self.fault.at if self.fault.at is not None else place if self.fault.kind == "flip" else 0.5


class FaultyProxy:
    """Listens on 127.0.0.1, at a free port, in a `with` block.

    `upstream` may be changed at any time: each request connects anew. A server that gives no answer looks to the client
    like a TCP reset. The Host header goes through as it came, since clients sign it.
    """

    def __init__(self, upstream: str, seed: int = 0) -> None:
        self.upstream = upstream
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._plans: list[_Plan] = []
        self._log: list[Exchange] = []

    def __enter__(self) -> FaultyProxy:
        self._server = _Server(self)
        self.endpoint = "http://{}:{}".format(*self._server.server_address)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), name="faulty-proxy")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every connection and thread, also those that are stalled."""
        self._server.shutdown()
        self._thread.join()
        self._server.end_connections()
        self._server.server_close()  # waits for the threads

    @property
    def log(self) -> list[Exchange]:
        """Every request so far, in the order of arrival."""
        with self._lock:
            return list(self._log)

    @property
    def counts(self) -> Counter[str]:
        """How often each kind of fault was injected (and `DOWN`)."""
        return Counter(exchange.fault for exchange in self.log if exchange.fault is not None)

    def plan(
        self,
        kind: Kind,
        *,
        share: float = 1.0,
        matches: str = "",
        methods: Sequence[str] | None = ("GET",),
        limit: int | None = None,
        **params: Any,
    ) -> None:
        """From now on inject this fault into a `share` of the requests, at most `limit` times.

        Concerned are requests of `methods` (None: any) with the regular expression `matches` in path and query. Of
        several plans that strike the first one counts. `params` are further fields of `Fault`.

        Requests that do not match draw nothing: the n-th that does meets the same fate in each run with this seed.
        """
        if kind not in get_args(Kind):
            raise ValueError(f"'{kind}' is no fault; use one of {', '.join(get_args(Kind))}")
        fault, allowed = Fault(kind, **params), None if methods is None else tuple(methods)
        with self._lock:
            own = random.Random(self._random.getrandbits(64))
            self._plans.append(_Plan(fault, share, re.compile(matches), allowed, limit, own))

    def clear(self) -> None:
        """Inject nothing more; `log` and `counts` stay, and a fault that is under way ends as it would have."""
        with self._lock:
            self._plans.clear()

    def decide(self, method: str, path: str, wanted: str | None) -> tuple[int, _Plan | None, float]:
        """Log a request; returns its place in the log, the plan that strikes, and where in the body."""
        with self._lock:
            drawn = [(plan, plan.draw(method, path)) for plan in self._plans]
            plan, at = next(((plan, at) for plan, at in drawn if at is not None), (None, 0.0))
            if plan is not None:
                plan.num_used += 1
            self._log.append(Exchange(method, path, wanted, plan.fault.kind if plan else None))
            return len(self._log) - 1, plan, at

    def amend(self, index: int, plan: _Plan | None, fault: str | None) -> None:
        """The planned fault did not come to pass: `fault` did instead."""
        with self._lock:
            self._log[index] = self._log[index]._replace(fault=fault)
            if plan is not None:
                plan.num_used -= 1


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = False  # else server_close waits for none of them
    request_queue_size = 128

    def __init__(self, proxy: FaultyProxy) -> None:
        self.proxy = proxy
        self._sockets: set[socket.socket] = set()
        self._guard = threading.Lock()
        self._ending = False
        super().__init__(("127.0.0.1", 0), _Handler)

    @contextlib.contextmanager
    def wakeable(self, connection: socket.socket) -> Iterator[None]:
        """Let `end_connections` wake who waits for this connection, even if it has already been called."""
        with self._guard:
            self._sockets.add(connection)
            if self._ending:
                _shut(connection)
        try:
            yield
        finally:
            with self._guard:
                self._sockets.discard(connection)

    def end_connections(self) -> None:
        with self._guard:
            self._ending = True
            for connection in self._sockets:
                _shut(connection)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are daily business here; anything else is a mistake in this file."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


def _shut(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"  # keep-alive
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with self.server.wakeable(self.connection):
            super().handle()

    def _relay(self) -> None:
        proxy, path = self.server.proxy, self.requestline.split()[1]  # self.path would lose doubled slashes
        index, plan, at = proxy.decide(self.command, path, self.headers["Range"])
        fault = plan.fault if plan else None
        if fault and fault.kind == "refuse":
            return self._reset()
        body = self._request_body()
        if fault and fault.kind == "status":
            return self._send(_error(fault.status, self.command, path), None, at)
        try:
            answer = self._ask(path, body)
        except (OSError, http.client.HTTPException):
            proxy.amend(index, plan, DOWN)
            return self._reset()
        damages = {"truncate": _truncate, "flip": _flip, "unconditional": _unconditional}
        damage = damages.get(fault.kind) if fault else None
        if damage and not damage(answer, at):
            proxy.amend(index, plan, None)
        return self._send(answer, fault, at)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _relay

    def _request_body(self) -> bytes:
        """As it stands on the wire: chunked encoding keeps its framing, to be passed on as it is."""
        if "chunked" not in (self.headers["Transfer-Encoding"] or "").lower():
            return self._read(int(self.headers["Content-Length"] or 0))
        parts, size = [], 1
        while size > 0:
            parts.append(self.rfile.readline())
            size = int(parts[-1].split(b";")[0] or b"0", 16)
            if size > 0:
                parts.append(self._read(size + 2))
        while parts[-1] not in (b"\r\n", b""):  # trailers
            parts.append(self.rfile.readline())
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        content = self.rfile.read(size)
        if len(content) < size:
            raise ConnectionAbortedError("the client hung up in the middle of its request")
        return content

    def _ask(self, path: str, body: bytes) -> _Answer:
        url = urlsplit(self.server.proxy.upstream)
        upstream = http.client.HTTPConnection(url.hostname or "", url.port, timeout=UPSTREAM_TIMEOUT)
        upstream.connect()
        with contextlib.closing(upstream), self.server.wakeable(upstream.sock):
            upstream.putrequest(self.command, path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in _HOP_BY_HOP:
                    upstream.putheader(name, value)
            upstream.putheader("Connection", "close")
            upstream.endheaders(body or None)
            response = upstream.getresponse()
            answer = _Answer(response.status, response.reason, response.headers, response.read())
        for name in (*_HOP_BY_HOP, "transfer-encoding"):
            del answer.headers[name]
        if self.command != "HEAD" and answer.status not in (204, 304):
            answer.set_header("Content-Length", len(answer.body))
        return answer

    def _send(self, answer: _Answer, fault: Fault | None, at: float) -> None:
        if fault and fault.kind == "slow":
            return self._dribble(answer, fault.seconds)
        if not fault or fault.kind not in ("reset", "close", "stall"):
            return self.connection.sendall(answer.head() + answer.body)
        if answer.body:
            self.connection.sendall(answer.head() + answer.body[: int(len(answer.body) * at)])
        if fault.kind == "stall":
            self._pause(fault.seconds)
        if fault.kind != "close":
            return self._reset()
        self.close_connection = True
        return None

    def _dribble(self, answer: _Answer, seconds: float) -> None:
        size = max(1, -(-len(answer.body) // NUM_PIECES))
        pieces = [answer.body[start : start + size] for start in range(0, len(answer.body), size)]
        pieces = [answer.head() + pieces[0], *pieces[1:]] if pieces else [b"", answer.head()]
        for number, piece in enumerate(pieces):
            if number > 0 and not self._pause(seconds / (len(pieces) - 1)):
                return
            self.connection.sendall(piece)

    def _pause(self, seconds: float) -> bool:
        """Wait; False, and at once, when the client hangs up or the proxy is closed."""
        self.connection.settimeout(seconds)
        try:
            self.close_connection = not self.connection.recv(1, socket.MSG_PEEK)
        except (TimeoutError, BlockingIOError):
            pass  # nothing came, which is what is expected
        finally:
            self.connection.settimeout(None)
        return not self.close_connection

    def _reset(self) -> None:
        """RST at once: closing the socket itself would send FIN first, and not before rfile is closed."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        socket.close(self.connection.detach())

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr; `FaultyProxy.log` has it."""


@dataclass
class _Answer:
    status: int
    reason: str
    headers: Message
    body: bytes

    def head(self) -> bytes:
        lines = [f"HTTP/1.1 {self.status} {self.reason}", *(f"{name}: {value}" for name, value in self.headers.items())]
        return "\r\n".join([*lines, "", ""]).encode("latin-1")

    def set_header(self, name: str, value: object) -> None:
        del self.headers[name]
        self.headers[name] = str(value)


def _truncate(answer: _Answer, at: float) -> bool:
    """Answer as if the object ended there; False for an answer that tells no object's length."""
    length = int(answer.headers["Content-Length"] or 0)
    if answer.status not in (200, 206) or length == 0:
        return False
    kept = min(int(length * at), length - 1)
    answer.body = answer.body[:kept]
    answer.set_header("Content-Length", kept)
    if part := re.match(r"bytes (\d+)-", answer.headers["Content-Range"] or ""):
        end = int(part[1]) + kept
        answer.set_header("Content-Range", f"bytes {part[1]}-{end - 1}/{end}")
    return True


def _flip(answer: _Answer, at: float) -> bool:
    """Invert one byte; False for an answer without an object in it."""
    if answer.status not in (200, 206) or not answer.body:
        return False
    place = min(int(len(answer.body) * at), len(answer.body) - 1)
    answer.body = answer.body[:place] + bytes([answer.body[place] ^ 0xFF]) + answer.body[place + 1 :]
    return True


def _unconditional(answer: _Answer, at: float) -> bool:
    """Answer as if the object had been written; False for an answer that is no refusal of a condition."""
    if answer.status != 412:
        return False
    answer.status, answer.reason, answer.body = 200, "OK", b""
    answer.set_header("Content-Length", 0)
    return True


def _error(status: int, method: str, path: str) -> _Answer:
    code = _CODES.get(status, "InjectedFault")
    text = f"<Error><Code>{code}</Code><Message>injected</Message><Resource>{escape(path)}</Resource></Error>"
    body = b"" if method == "HEAD" else f'<?xml version="1.0" encoding="UTF-8"?>\n{text}'.encode()
    answer = _Answer(status, HTTPStatus(status).phrase, Message(), body)
    answer.set_header("Content-Type", "application/xml")
    answer.set_header("Content-Length", len(body))
    return answer


def proxied_environment(embedded_store: EmbeddedStore, proxy: FaultyProxy, folder: Path) -> dict[str, str]:
    """The variables with which every S3 client goes through `proxy`; the files that they name are put into `folder`."""
    environment = embedded_store.environment()
    config = Path(environment["AWS_CONFIG_FILE"]).read_text()
    (folder / "config").write_text(re.sub(r"(?m)^endpoint_url = .*$", f"endpoint_url = {proxy.endpoint}", config))
    credentials = folder / "credentials"
    credentials.touch(mode=0o600)
    shutil.copyfile(environment["AWS_SHARED_CREDENTIALS_FILE"], credentials)
    return environment | {"AWS_CONFIG_FILE": str(folder / "config"), "AWS_SHARED_CREDENTIALS_FILE": str(credentials)}
