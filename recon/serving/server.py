"""The server of `larmor serve`: connections of scanners, each with a thread, and one model for all.

The protocol has neither encryption nor a password. The server listens on this machine alone, unless it is told
otherwise.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from larmor.recon.models.model import Model
from larmor.recon.serving.conversation import converse
from larmor.recon.serving.counts import Counts
from larmor.recon.serving.messages import HungUp, Wire
from larmor.recon.serving.slices import check_coils, check_model, reconstruct_slices
from larmor.storage.formats.measured import MeasuredKspace
from larmor.storage.objects.errors import InputError

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Listening:
    """Where and how to listen. `port` 0: a free one. `connections` at most at once; `patience` as of `Wire`.

    `unencrypted`: another host than this machine is wanted, though the protocol sends in the clear.
    """

    host: str = "127.0.0.1"
    port: int = 9002
    connections: int = 8
    patience: float = 60.0
    unencrypted: bool = False


class ScanServer:
    """Reconstructs what scanners send, in threads, until `close`; it listens at `address`.

    `say` is told of each connection that went wrong. Raises `InputError` for a model that cannot reconstruct slice by
    slice, and for a place that cannot be used.
    """

    def __init__(
        self, model: Model, listening: Listening | None = None, say: Callable[[str], object] = lambda line: None
    ) -> None:
        where = listening or Listening()
        check_model(model)
        self._model, self._say, self._computing = model, say, threading.Lock()
        self.counts = Counts()
        self._places = threading.BoundedSemaphore(where.connections)
        self._patience = where.patience
        self._server = _listen(where, self._serve)
        host, port = self._server.socket.getsockname()[:2]
        self.address: tuple[str, int] = (host, port)
        self._thread = threading.Thread(target=self._server.serve_forever, name="larmor-serve", daemon=True)
        self._thread.start()

    def wait(self) -> None:
        """Until the server is closed, or the user interrupts."""
        self._thread.join()

    def is_alive(self) -> bool:
        """Whether connections are taken."""
        return self._thread.is_alive()

    def close(self) -> None:
        """Take no more connections; those that are open end with the process."""
        self._server.shutdown()
        self._server.server_close()

    def reconstruct(self, source: MeasuredKspace) -> np.ndarray:
        """(slice, height, width) float32 images as `larmor reconstruct` makes them, one call at a time."""
        check_coils(self._model, source)  # before the wait
        with self.counts.seconds.time(), self._computing:
            images = reconstruct_slices(self._model, source)
        self.counts.slices.inc(len(images))
        return images

    def _serve(self, connection: socket.socket) -> None:
        wire = Wire(connection, self._patience)
        if not self._places.acquire(blocking=False):
            self.counts.errors.inc()
            self._end(wire, "all connections of this server are taken; try again later")
            return
        try:
            with self.counts.open.track_inprogress():
                problem = self._converse(wire)
        finally:
            self._places.release()
        if problem:
            self.counts.errors.inc()
            self._say(problem)
        self._end(wire, problem)

    def _converse(self, wire: Wire) -> str:
        """What went wrong, or nothing."""
        try:
            converse(wire, self.reconstruct)
        except InputError as error:
            return str(error)
        except HungUp:
            return "the connection was closed before the scan was (message 4)"
        except TimeoutError:
            return f"nothing came, or was taken, for {self._patience:g} s; the connection is closed"
        except OSError as error:
            return f"the connection broke ({error.strerror or error})"
        except Exception as error:  # a defect: this scan is lost, the others are not
            _LOG.exception("a defect while serving a scan")
            return f"a defect of the server ({type(error).__name__}); the scan cannot be reconstructed"
        return ""

    def _end(self, wire: Wire, problem: str) -> None:
        try:
            if problem:
                wire.send_text(f"larmor: {problem}")
                wire.send_close()
        except OSError:
            return  # nobody is there to read it
        wire.linger()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`, an address or a name."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError as error:
        raise InputError(f"--host {host}: is no address of this machine ({error}); use 127.0.0.1") from error
    return all(ipaddress.ip_address(str(address).partition("%")[0]).is_loopback for address in found)


def check_place(where: Listening, lacking: str = "the protocol has neither encryption nor a password") -> None:
    """Raises `InputError` for a host that is none, and for one that others reach unless that is wanted."""
    if not where.host:
        raise InputError("--host is empty; use 127.0.0.1")
    if not is_loopback(where.host) and not where.unencrypted:
        raise InputError(
            f"--host {where.host}: other machines could reach the server, and {lacking}; add --unencrypted if the "
            "network is the scanner's own, or use an SSH tunnel to 127.0.0.1"
        )


def _listen(where: Listening, serve: Callable[[socket.socket], None]) -> socketserver.ThreadingTCPServer:
    check_place(where)

    class Handler(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            serve(self.request)

    class Server(socketserver.ThreadingTCPServer):
        address_family = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)[0][0]
        allow_reuse_address, daemon_threads, request_queue_size = True, True, 64

        def handle_error(self, request: object, client_address: object) -> None:
            _LOG.exception("a connection from %s", client_address)

    try:
        return Server((where.host, where.port), Handler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"--port {where.port}: cannot be used ({reason}); choose another") from error
