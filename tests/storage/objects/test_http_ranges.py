"""Ranges by plain HTTP from a real S3 server, also through one that fails."""

from __future__ import annotations

import contextlib
import http.client
import os
import socket
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.http_ranges import HttpRanges
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from tests.faulty_proxy import FaultyProxy

CONTENT = np.random.default_rng(0).bytes(200_000)
RANGES = [
    (None, None),
    (0, None),
    (0, 1),
    (0, len(CONTENT)),
    (1000, 70_000),
    (70_000, None),
    (None, 7),
    (len(CONTENT) - 1, None),
    (-1, None),
    (-5000, None),
    (-len(CONTENT), None),
    (-len(CONTENT) - 9, None),
    (199_990, 200_090),
    (200_000, None),
    (300_000, 300_010),
]


@pytest.fixture(scope="module")
def folder() -> str:
    return uuid.uuid4().hex


@pytest.fixture
def ranges(store_environment: dict[str, str], folder: str) -> HttpRanges:
    """A reader of the bucket, in which stand a large object, an empty one, and one of an awkward name."""
    write(folder)
    return HttpRanges("larmor")


@pytest.fixture
def proxied(faulty_proxy: FaultyProxy, folder: str) -> HttpRanges:
    write(folder)
    return HttpRanges("larmor")


def write(folder: str) -> None:
    store = ObjectStore(f"s3://larmor/{folder}")
    if not store.exists("empty"):
        store.write("large", CONTENT)
        store.write("a=1 & ü/c#2", CONTENT[:100])
        store.write("empty", b"")


@pytest.mark.parametrize(("start", "stop"), RANGES)
def test_a_range_is_the_slice_of_the_bytes(
    ranges: HttpRanges, folder: str, start: int | None, stop: int | None
) -> None:
    assert bytes(ranges.read(f"{folder}/large", start, stop)) == CONTENT[start:stop]


def test_both_clients_give_the_same(store_environment: dict[str, str], folder: str) -> None:
    write(folder)
    stores = [ObjectStore(f"s3://larmor/{folder}", client) for client in ("s3fs", "http")]
    for path in ("large", "empty", "a=1 & ü/c#2"):
        for start, stop in RANGES:
            first, second = (store.read(path, start, stop) for store in stores)
            assert first == second, (path, start, stop)


def read_between(ranges: HttpRanges, key: str, edges: list[int]) -> list[bytes]:
    """The bytes between neighbouring edges, as far as they came."""
    parts = [memoryview(bytearray(stop - start)) for start, stop in pairwise(edges)]
    end = edges[0] + ranges.read_into(key, edges[0], parts)
    return [bytes(part[: max(0, end - start)]) for part, start in zip(parts, edges, strict=False)]


EDGES = [
    [0, 10],
    [0, 70_000, 140_000, 200_000],
    [5, 6, 199_999],
    [1000, 1001, 150_000, 150_004],
    [199_990, 199_995, 200_005, 200_009],
    [200_000, 200_010, 200_020],
]


@pytest.mark.parametrize("edges", EDGES)
def test_parts_are_the_bytes_between_edges(ranges: HttpRanges, folder: str, edges: list[int]) -> None:
    """Whatever lies beyond the end is missing, and the connection is well afterwards."""
    for _ in range(2):
        assert read_between(ranges, f"{folder}/large", edges) == [CONTENT[a:b] for a, b in pairwise(edges)]
    with pytest.raises(FileNotFoundError):
        read_between(ranges, f"{folder}/nothing", edges)


def test_parts_from_a_store_that_ignores_ranges(ranges: HttpRanges, folder: str, monkeypatch: Any) -> None:
    request = http.client.HTTPConnection.request
    monkeypatch.setattr(http.client.HTTPConnection, "request", lambda *a, headers: request(*a))
    parts = read_between(ranges, f"{folder}/large", [1000, 70_000, 70_001])
    assert parts == [CONTENT[1000:70_000], CONTENT[70_000:70_001]]
    assert read_between(ranges, f"{folder}/large", [199_999, 200_009, 200_010]) == [CONTENT[-1:], b""]


def test_an_empty_object_is_empty_every_time(ranges: HttpRanges, folder: str) -> None:
    for _ in range(3):
        assert bytes(ranges.read(f"{folder}/empty", None, None)) == b""
        assert bytes(ranges.read(f"{folder}/empty", -10, None)) == b""


def test_names_may_hold_anything(ranges: HttpRanges, folder: str) -> None:
    assert bytes(ranges.read(f"{folder}/a=1 & ü/c#2", 10, 20)) == CONTENT[10:20]


def test_what_is_missing_is_not_found(ranges: HttpRanges, folder: str) -> None:
    with pytest.raises(FileNotFoundError, match=f"larmor/{folder}/not/there"):
        ranges.read(f"{folder}/not/there", 0, 10)
    with pytest.raises(FileNotFoundError, match="bucket does not exist: no-such-bucket"):
        HttpRanges("no-such-bucket").read("anything", 0, 10)
    assert bytes(ranges.read(f"{folder}/large", 0, 10)) == CONTENT[:10], "it goes on after a refusal"
    store = ObjectStore("s3://no-such-bucket/data", "http")
    with pytest.raises(InputError, match="the bucket 'no-such-bucket' does not exist; create it"):
        store.read("anything")


def test_a_wrong_secret_is_refused(
    store_environment: dict[str, str], folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder)
    secret = Path(store_environment["AWS_SHARED_CREDENTIALS_FILE"]).read_text()
    lines = [f"{line[:-4]}0000" if line.startswith("aws_secret") else line for line in secret.splitlines()]
    (tmp_path / "credentials").write_text("\n".join(lines))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    with pytest.raises(PermissionError, match="403"):
        HttpRanges("larmor").read(f"{folder}/large", 0, 10)
    store = ObjectStore(f"s3://larmor/{folder}", "http")
    with pytest.raises(InputError, match=r"access refused .*check the credentials") as caught:
        store.read("large", 0, 10)
    assert secret.split("=")[-1].strip()[:-4] not in str(caught.value)
    assert "Signature" not in str(caught.value)


def test_without_credentials_it_says_how_to_get_some(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    with pytest.raises(InputError, match="no S3 credentials were found; set AWS_PROFILE, keys, or a role"):
        HttpRanges("larmor")


def test_threads_read_at_once_over_connections_of_their_own(ranges: HttpRanges, folder: str) -> None:
    places = [(start, start + 40_000) for start in np.random.default_rng(1).integers(0, 160_000, 64).tolist()]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda place: bytes(ranges.read(f"{folder}/large", *place)), places))
    assert found == [CONTENT[start:stop] for start, stop in places]
    assert len(ranges._idle) <= 8


class CountingServer(ThreadingHTTPServer):
    """Serves `CONTENT` whatever is asked for, and counts connections; ends those that wait when it is told to."""

    daemon_threads = True

    def __init__(self, honours_ranges: bool = True) -> None:
        self.honours_ranges, self.num_connections, self.num_requests = honours_ranges, 0, 0
        self.connections: list[Any] = []
        super().__init__(("127.0.0.1", 0), _CountingHandler)

    def end_connections(self) -> None:
        for connection in self.connections:
            with contextlib.suppress(OSError):  # ended already
                connection.shutdown(socket.SHUT_RDWR)


class _CountingHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: CountingServer

    def handle(self) -> None:
        self.server.num_connections += 1
        self.server.connections.append(self.connection)
        super().handle()

    def do_GET(self) -> None:
        self.server.num_requests += 1
        body, wanted = CONTENT, self.headers["Range"]
        if self.server.honours_ranges and wanted:
            first, last = wanted.removeprefix("bytes=").split("-")
            body = CONTENT[int(first) : int(last) + 1]
        self.send_response(206 if self.server.honours_ranges and wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@pytest.fixture
def server(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[CountingServer]:
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    running = CountingServer(*getattr(request, "param", ()))
    thread = threading.Thread(target=running.serve_forever, args=(0.02,))
    thread.start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{running.server_port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "id")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    yield running
    running.shutdown()
    running.end_connections()
    thread.join()
    running.server_close()


def test_connections_are_used_again(server: CountingServer) -> None:
    ranges = HttpRanges("bucket")
    for start in range(0, 100_000, 1000):
        assert bytes(ranges.read("key", start, start + 1000)) == CONTENT[start : start + 1000]
    assert (server.num_requests, server.num_connections) == (100, 1)


def test_connections_that_the_store_has_ended_cost_one_failure(server: CountingServer) -> None:
    """Stores end connections that wait, in the minutes of a validation, say; all of them."""
    ranges, barrier = HttpRanges("bucket"), threading.Barrier(6)

    def read(_: int) -> None:
        barrier.wait()
        ranges.read("key", 0, 100_000)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(read, range(6)))
    assert len(ranges._idle) > 1
    server.end_connections()
    with pytest.raises((OSError, http.client.HTTPException)):
        ranges.read("key", 0, 10)
    for _ in range(10):
        assert bytes(ranges.read("key", 0, 10)) == CONTENT[:10]


@pytest.mark.parametrize("server", [(False,)], indirect=True)
def test_a_store_that_ignores_ranges_gives_the_right_bytes(server: CountingServer) -> None:
    ranges = HttpRanges("bucket")
    for start, stop in ((0, 10), (1000, 5000), (-100, None), (199_000, None)):
        assert bytes(ranges.read("key", start, stop)) == CONTENT[start:stop]


class TestFailures:
    """What may pass is told from what will not; nothing half comes back, and the next request is well."""

    @pytest.mark.parametrize("kind", ["close", "reset", "refuse"])
    def test_a_connection_that_breaks(
        self, proxied: HttpRanges, faulty_proxy: FaultyProxy, folder: str, kind: Any
    ) -> None:
        faulty_proxy.plan(kind, limit=1)
        with pytest.raises((OSError, http.client.HTTPException)):
            proxied.read(f"{folder}/large", 0, 100_000)
        assert bytes(proxied.read(f"{folder}/large", 0, 100_000)) == CONTENT[:100_000]
        faulty_proxy.plan(kind, limit=1)
        with pytest.raises((OSError, http.client.HTTPException)):
            read_between(proxied, f"{folder}/large", [0, 50_000, 100_000])
        parts = read_between(proxied, f"{folder}/large", [0, 50_000, 100_000])
        assert parts == [CONTENT[:50_000], CONTENT[50_000:100_000]]

    def test_an_object_that_is_shorter_than_it_was(
        self, proxied: HttpRanges, faulty_proxy: FaultyProxy, folder: str
    ) -> None:
        """A whole answer, of less: whoever knows the length sees it."""
        faulty_proxy.plan("truncate", limit=1, at=0.25)
        assert bytes(proxied.read(f"{folder}/large", 0, 100_000)) == CONTENT[:25_000]
        faulty_proxy.plan("truncate", limit=1, at=0.25)
        parts = read_between(proxied, f"{folder}/large", [0, 20_000, 40_000, 100_000])
        assert parts == [CONTENT[:20_000], CONTENT[20_000:25_000], b""]

    @pytest.mark.parametrize("status", [500, 503, 429])
    def test_a_store_that_is_overloaded(
        self, proxied: HttpRanges, faulty_proxy: FaultyProxy, folder: str, status: int
    ) -> None:
        faulty_proxy.plan("status", status=status, limit=1)
        with pytest.raises(StoreAway, match=f"{folder}/large: .* answers {status}"):
            proxied.read(f"{folder}/large", 0, 10)
        assert bytes(proxied.read(f"{folder}/large", 0, 10)) == CONTENT[:10]

    def test_an_answer_that_makes_no_sense(self, proxied: HttpRanges, faulty_proxy: FaultyProxy, folder: str) -> None:
        faulty_proxy.plan("status", status=400, limit=1)
        with pytest.raises(InputError, match=f"{folder}/large: .* answers 400") as caught:
            proxied.read(f"{folder}/large", 0, 10)
        assert not isinstance(caught.value, StoreAway)

    def test_a_signature_is_made_anew_after_a_refusal(
        self, proxied: HttpRanges, faulty_proxy: FaultyProxy, folder: str
    ) -> None:
        proxied.read(f"{folder}/large", 0, 10)
        faulty_proxy.plan("status", status=403, limit=1)
        with pytest.raises(PermissionError):
            proxied.read(f"{folder}/large", 0, 10)
        assert f"{folder}/large" not in proxied._signed
        assert bytes(proxied.read(f"{folder}/large", 0, 10)) == CONTENT[:10]
