"""Without a plan the proxy changes nothing; with one, exactly what was planned arrives at the client."""

from __future__ import annotations

import functools
import http.client
import re
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from s3fs import S3FileSystem

from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.ports import free_ports
from tests.faulty_proxy import DOWN, NUM_PIECES, FaultyProxy, Kind, proxied_environment

CONTENT = np.random.default_rng(0).bytes(64_000)
KEY = "faulty-proxy/a=1/c/0"


@pytest.fixture(scope="module")
def upstream(embedded_store: EmbeddedStore) -> str:
    endpoint = embedded_store.status().endpoint
    assert endpoint is not None
    client(embedded_store, endpoint).put_object(Bucket="larmor", Key=KEY, Body=CONTENT)
    return endpoint


@pytest.fixture
def proxy(upstream: str) -> Iterator[FaultyProxy]:
    with FaultyProxy(upstream) as running:
        yield running


@pytest.fixture
def through_proxy(
    embedded_store: EmbeddedStore, proxy: FaultyProxy, tmp_path: Path, store_environment: Any, monkeypatch: Any
) -> S3FileSystem:
    for name, value in proxied_environment(embedded_store, proxy, tmp_path).items():
        monkeypatch.setenv(name, value)
    return S3FileSystem(skip_instance_cache=True, use_listings_cache=False)


@functools.cache
def session(config: str, credentials: str) -> Any:
    """Made once, since it reads the description of S3's interface from many files."""
    from botocore.session import Session

    made = Session(profile="larmor")
    made.set_config_variable("credentials_file", credentials)
    made.set_config_variable("config_file", config)
    return made


def client(store: EmbeddedStore, endpoint: str) -> Any:
    """A client with the store's keys that signs for `endpoint`."""
    files = store.environment()
    made = session(files["AWS_CONFIG_FILE"], files["AWS_SHARED_CREDENTIALS_FILE"])
    return made.create_client("s3", endpoint_url=endpoint)


class Raw:
    """One keep-alive connection; its requests are signed for the endpoint it talks to."""

    def __init__(self, store: EmbeddedStore, endpoint: str) -> None:
        self.client = client(store, endpoint)
        url = urlsplit(endpoint)
        self.connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)

    def signed(self, method: str, key: str = KEY) -> str:
        action = {"GET": "get_object", "HEAD": "head_object", "PUT": "put_object"}[method]
        url = urlsplit(self.client.generate_presigned_url(action, Params={"Bucket": "larmor", "Key": key}))
        return f"{url.path}?{url.query}"

    def get(self, method: str = "GET", **headers: str) -> http.client.HTTPResponse:
        self.connection.request(method, self.signed(method), headers=headers)
        return self.connection.getresponse()

    def put(self, key: str, content: bytes | Iterator[bytes]) -> http.client.HTTPResponse:
        """Of an iterator each piece becomes a chunk of chunked encoding."""
        self.connection.request("PUT", self.signed("PUT", key), content, encode_chunked=not isinstance(content, bytes))
        return self.connection.getresponse()


@pytest.fixture
def raw(embedded_store: EmbeddedStore, proxy: FaultyProxy) -> Iterator[Raw]:
    one = Raw(embedded_store, proxy.endpoint)
    yield one
    one.connection.close()


def headers_of(response: http.client.HTTPResponse) -> dict[str, str]:
    own = {"date", "x-amz-request-id", "x-amz-id-2", "connection"}
    return {name.lower(): value for name, value in response.getheaders() if name.lower() not in own}


def test_s3fs_works_as_without_proxy(through_proxy: S3FileSystem, proxy: FaultyProxy, upstream: str) -> None:
    direct = S3FileSystem(endpoint_url=upstream, skip_instance_cache=True, use_listings_cache=False)
    folder, large = "larmor/faulty-proxy/s3fs", np.random.default_rng(1).bytes(11 << 20)
    through_proxy.pipe_file(f"{folder}/small [ä]", CONTENT)
    with through_proxy.open(f"{folder}/large", "wb", block_size=5 << 20) as file:
        file.write(large)
    assert direct.cat_file(f"{folder}/small [ä]") == through_proxy.cat_file(f"{folder}/small [ä]") == CONTENT
    assert direct.cat_file(f"{folder}/large") == through_proxy.cat_file(f"{folder}/large") == large
    for start, end in [(0, 1), (1000, 70_000), (-5, None), (len(large) - 3, None)]:
        assert through_proxy.cat_file(f"{folder}/large", start=start, end=end) == large[start:end]
    assert sorted(through_proxy.ls(folder)) == sorted(direct.ls(folder)) != []
    assert through_proxy.info(f"{folder}/large") == direct.info(f"{folder}/large")
    with pytest.raises(FileNotFoundError):
        through_proxy.cat_file(f"{folder}/missing")
    through_proxy.rm_file(f"{folder}/small [ä]")
    assert [Path(name).name for name in direct.find(folder)] == ["large"]
    through_proxy.rm(folder, recursive=True)
    assert not direct.exists(f"{folder}/large")  # of the empty folder SeaweedFS keeps a trace, also without proxy

    assert any(method == "PUT" and "uploadId" in path for method, path, _, _ in proxy.log), "no multipart upload"
    assert "bytes=1000-69999" in {exchange.range for exchange in proxy.log}
    assert {exchange.method for exchange in proxy.log} == {"GET", "HEAD", "PUT", "POST", "DELETE"}
    assert {exchange.fault for exchange in proxy.log} == {None}
    assert not proxy.counts


@pytest.mark.parametrize("kind", ["status", "reset", "close", "flip"])
def test_a_client_that_retries_gets_over_single_faults(
    through_proxy: S3FileSystem, proxy: FaultyProxy, kind: Kind
) -> None:
    proxy.plan(kind, limit=1)
    content = through_proxy.cat_file(f"larmor/{KEY}")
    assert proxy.counts == {kind: 1}
    assert (content != CONTENT) == (kind == "flip"), "S3 alone does not notice a flipped byte"


def test_raw_answers_are_the_servers_own(raw: Raw, embedded_store: EmbeddedStore, upstream: str) -> None:
    direct = Raw(embedded_store, upstream)
    for method, headers in [("GET", {}), ("HEAD", {}), ("GET", {"Range": "bytes=10-99"}), ("GET", {"Range": "x"})]:
        seen, meant = raw.get(method, **headers), direct.get(method, **headers)
        assert (seen.status, seen.reason) == (meant.status, meant.reason)
        assert headers_of(seen) == headers_of(meant)
        assert seen.read() == meant.read()
    direct.connection.close()


def test_connections_are_kept_over_answers_and_errors(raw: Raw, proxy: FaultyProxy) -> None:
    proxy.plan("status", limit=2)
    raw.connection.connect()
    first = raw.connection.sock
    for _ in range(4):
        raw.get().read()
        raw.get("HEAD").read()
    assert raw.connection.sock is first
    assert [exchange.fault for exchange in proxy.log] == ["status", None, "status", *[None] * 5]


def test_chunked_uploads_pass(raw: Raw, proxy: FaultyProxy, embedded_store: EmbeddedStore, upstream: str) -> None:
    chunks = [CONTENT[:1], CONTENT[1:40_000], CONTENT[40_000:]]
    response = raw.put("faulty-proxy/chunked", iter(chunks))
    assert (response.status, response.read()) == (200, b"")
    stored = client(embedded_store, upstream).get_object(Bucket="larmor", Key="faulty-proxy/chunked")
    assert stored["Body"].read() == CONTENT


@pytest.mark.parametrize(("status", "code"), [(503, "SlowDown"), (500, "InternalError"), (403, "AccessDenied")])
def test_status(raw: Raw, proxy: FaultyProxy, status: int, code: str) -> None:
    proxy.plan("status", status=status, methods=None)
    response = raw.get()
    assert response.status == status
    assert f"<Code>{code}</Code>" in response.read().decode()
    head = raw.get("HEAD")
    assert (head.status, head.read()) == (status, b"")


def test_a_refused_write_is_not_stored_and_a_reset_one_is(
    raw: Raw, proxy: FaultyProxy, embedded_store: EmbeddedStore, upstream: str
) -> None:
    direct = client(embedded_store, upstream)
    expected: dict[Kind, int] = {"refuse": 0, "reset": 1}
    for kind, stored in expected.items():
        proxy.clear()
        proxy.plan(kind, methods=("PUT",), matches=r"/once/")
        with pytest.raises((ConnectionResetError, BrokenPipeError)):  # the pipe: while the body is being sent
            raw.put(f"faulty-proxy/once/{kind}", CONTENT)
        raw.connection.close()
        listed = direct.list_objects_v2(Bucket="larmor", Prefix=f"faulty-proxy/once/{kind}")
        assert listed["KeyCount"] == stored
    assert proxy.counts == {"refuse": 1, "reset": 1}


def test_refuse_is_a_reset_without_a_byte(proxy: FaultyProxy) -> None:
    proxy.plan("refuse")
    url = urlsplit(proxy.endpoint)
    with socket.create_connection((url.hostname, url.port), timeout=30) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        with pytest.raises(ConnectionResetError):
            connection.recv(1)


def test_reset(raw: Raw, proxy: FaultyProxy) -> None:
    proxy.plan("reset")
    response = raw.get()
    assert response.getheader("Content-Length") == str(len(CONTENT))
    with pytest.raises(ConnectionResetError):
        response.read()


@pytest.mark.parametrize("at", [0.0, 0.25, 0.5])
def test_close(raw: Raw, proxy: FaultyProxy, at: float) -> None:
    proxy.plan("close", at=at)
    response = raw.get()
    assert response.getheader("Content-Length") == str(len(CONTENT))
    with pytest.raises(http.client.IncompleteRead) as error:
        response.read()
    assert error.value.partial == CONTENT[: int(len(CONTENT) * at)]


def test_truncate_is_consistent_over_get_head_and_range(raw: Raw, proxy: FaultyProxy) -> None:
    proxy.plan("truncate", at=0.25, methods=("GET", "HEAD"))
    response = raw.get()
    assert response.getheader("Content-Length") == "16000"
    assert response.read() == CONTENT[:16_000]
    head = raw.get("HEAD")
    assert (head.getheader("Content-Length"), head.read()) == ("16000", b"")
    part = raw.get(Range="bytes=100-199")
    assert (part.status, part.getheader("Content-Range")) == (206, "bytes 100-124/125")
    assert part.read() == CONTENT[100:125]


def test_flip(raw: Raw, proxy: FaultyProxy) -> None:
    meant = headers_of(response := raw.get())
    response.read()
    proxy.plan("flip", limit=2)
    proxy.plan("flip", at=1.0, limit=1)
    places = []
    for _ in range(3):
        response = raw.get()
        assert headers_of(response) == meant
        difference = np.frombuffer(response.read(), np.uint8) ^ np.frombuffer(CONTENT, np.uint8)
        assert np.count_nonzero(difference) == 1
        assert difference.max() == 0xFF
        places.append(int(difference.argmax()))
    assert places[0] != places[1], "the place is drawn"
    assert places[2] == len(CONTENT) - 1


@pytest.mark.parametrize("kind", ["truncate", "flip"])
def test_answers_without_an_object_are_left_alone_and_do_not_count(raw: Raw, proxy: FaultyProxy, kind: Kind) -> None:
    proxy.plan(kind, methods=None, limit=1)
    raw.put("faulty-proxy/other", CONTENT).read()
    raw.connection.request("GET", "/larmor/unsigned")
    assert raw.connection.getresponse().read().endswith(b"</Error>")
    assert not proxy.counts
    assert raw.get().read() != CONTENT
    assert proxy.counts == {kind: 1}


def test_slow_is_whole_but_in_pieces(raw: Raw, proxy: FaultyProxy) -> None:
    proxy.plan("slow", seconds=3600.0, limit=1)
    response = raw.get()
    assert response.read(len(CONTENT) // NUM_PIECES) == CONTENT[: len(CONTENT) // NUM_PIECES]
    expect_silence(raw, response)
    raw.connection.close()
    proxy.plan("slow", seconds=0.05, methods=None, limit=2)
    assert raw.get().read() == CONTENT
    assert raw.get("HEAD").status == 200
    assert proxy.counts == {"slow": 3}


def test_stall_is_silence_after_half(raw: Raw, proxy: FaultyProxy) -> None:
    proxy.plan("stall", limit=1)
    response = raw.get()
    assert response.read(len(CONTENT) // 2) == CONTENT[: len(CONTENT) // 2]
    expect_silence(raw, response)
    raw.connection.close()
    proxy.plan("stall", seconds=0.05)
    response = raw.get()
    with pytest.raises(ConnectionResetError):
        response.read()


def expect_silence(raw: Raw, response: http.client.HTTPResponse) -> None:
    raw.connection.sock.settimeout(0.1)
    with pytest.raises(TimeoutError):
        response.read(1)


def fates(upstream: str, seed: int, num_requests: int, num_others: int = 0) -> list[str | None]:
    """What befell each request; unsigned ones, since the server refuses them quickly. `num_others` go before each."""
    with FaultyProxy(upstream, seed) as proxy:
        proxy.plan("status", share=0.3, matches=r"/kspace/c/")
        proxy.plan("status", share=0.5, matches=r"^/other$")
        url = urlsplit(proxy.endpoint)
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=30)
        statuses = []
        for number in range(num_requests):
            for path in ["/other"] * num_others + [f"/larmor/kspace/c/{number}"]:
                connection.request("GET", path)
                response = connection.getresponse()
                response.read()
                statuses.append(response.status)
        connection.close()
        log = proxy.log
    assert [exchange.fault == "status" for exchange in log] == [status == 503 for status in statuses]
    return [exchange.fault for exchange in log if "/kspace/" in exchange.path]


def test_shares_are_kept_and_seeds_decide(upstream: str) -> None:
    many = fates(upstream, seed=7, num_requests=400)
    assert 0.25 < many.count("status") / len(many) < 0.35
    assert fates(upstream, seed=7, num_requests=60) == many[:60]
    assert fates(upstream, seed=7, num_requests=60, num_others=1) == many[:60], "others draw nothing"
    assert fates(upstream, seed=9, num_requests=60) != many[:60]


def test_plans_concern_what_they_name_until_cleared(raw: Raw, proxy: FaultyProxy) -> None:
    proxy.plan("status", matches=r"/kspace/c/")
    proxy.plan("status", methods=("DELETE",))
    assert raw.get().read() == CONTENT
    proxy.plan("status", matches=r"/faulty-proxy/.*/c/")
    assert raw.get(Range="bytes=0-3").read() != CONTENT[:4]
    proxy.clear()
    assert raw.get().read() == CONTENT
    assert [(method, range_, fault) for method, _, range_, fault in proxy.log] == [
        ("GET", None, None),
        ("GET", "bytes=0-3", "status"),
        ("GET", None, None),
    ]
    assert proxy.counts == {"status": 1}
    assert all(re.match(r"/larmor/faulty-proxy/.*/c/0\?", exchange.path) for exchange in proxy.log)


def test_an_unknown_fault_is_told(upstream: str) -> None:
    with pytest.raises(ValueError, match="'flop' is no fault; use one of status, reset"):
        FaultyProxy(upstream).plan("flop")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="second"):
        FaultyProxy(upstream).plan("slow", second=1)


def test_the_server_may_go_and_come_back_elsewhere(raw: Raw, proxy: FaultyProxy, upstream: str) -> None:
    assert raw.get().read() == CONTENT
    proxy.upstream = f"http://127.0.0.1:{free_ports(())[0]}"
    with pytest.raises(ConnectionResetError):
        raw.get()
    raw.connection.close()
    proxy.upstream = upstream
    assert raw.get().read() == CONTENT
    assert [exchange.fault for exchange in proxy.log] == [None, DOWN, None]


def test_closing_ends_every_thread_and_connection(embedded_store: EmbeddedStore, upstream: str) -> None:
    before = set(threading.enumerate())
    silent = socket.create_server(("127.0.0.1", 0))  # accepts, and never answers
    with FaultyProxy(upstream) as proxy:
        stalled, idle, waiting = (Raw(embedded_store, proxy.endpoint) for _ in range(3))
        proxy.plan("stall", limit=1)
        response = stalled.get()
        idle.get().read()
        proxy.upstream = f"http://127.0.0.1:{silent.getsockname()[1]}"
        waiting.connection.request("GET", waiting.signed("GET"))
        asked = silent.accept()[0]
    assert set(threading.enumerate()) == before
    with pytest.raises((http.client.IncompleteRead, ConnectionResetError)):
        response.read()
    assert idle.connection.sock.recv(1) == b""
    with pytest.raises(ConnectionError):
        waiting.connection.getresponse()
    for one in (stalled, idle, waiting):
        one.connection.close()
    asked.close()
    silent.close()


def test_the_environment_holds_no_key_and_hides_the_credentials(
    embedded_store: EmbeddedStore, proxy: FaultyProxy, tmp_path: Path
) -> None:
    environment = proxied_environment(embedded_store, proxy, tmp_path)
    assert set(environment) == set(embedded_store.environment())
    assert f"endpoint_url = {proxy.endpoint}\n" in Path(environment["AWS_CONFIG_FILE"]).read_text()
    credentials = Path(environment["AWS_SHARED_CREDENTIALS_FILE"])
    assert credentials.parent == tmp_path
    assert stat.S_IMODE(credentials.stat().st_mode) == 0o600
    assert credentials.read_text() == Path(embedded_store.environment()["AWS_SHARED_CREDENTIALS_FILE"]).read_text()
