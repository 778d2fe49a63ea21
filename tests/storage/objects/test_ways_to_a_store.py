"""Stores behind a proxy, buckets that anybody may read, and names that look like patterns."""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
import requests
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.session import Session

from larmor.storage.formats.recognise import find_sources
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.http_ranges import HttpRanges
from larmor.storage.objects.object_store import Client, ObjectStore
from tests.conftest import use_only
from tests.helpers import random_kspace

CONTENT = bytes(range(256)) * 40
CLIENTS: list[Client] = ["s3fs", "http"]


class _Server(ThreadingHTTPServer):
    """Answers from the store at `upstream`; `asked` are the requests that came: method, URL and headers."""

    daemon_threads = True

    def __init__(self, upstream: str, credentials: Any = None) -> None:
        self.upstream, self.credentials = upstream, credentials
        self.asked: list[tuple[str, str, dict[str, str]]] = []
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _relay(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.server.asked.append((self.command, self.path, headers))
        body = self.rfile.read(int(headers.get("content-length", 0)))
        if self.server.credentials and not self._sign(headers):
            return self._answer(403, b"<Error><Code>AccessDenied</Code></Error>", {})
        place = urlsplit(self.path)
        url = f"{self.server.upstream}{place.path}" + (f"?{place.query}" if place.query else "")
        if self.server.credentials:
            request = AWSRequest(self.command, url, {"range": headers["range"]} if "range" in headers else {})
            S3SigV4Auth(self.server.credentials, "s3", "us-east-1").add_auth(request)
            headers = dict(request.headers.items())
        with requests.Session() as session:
            session.trust_env = False  # else it would go through this very proxy
            found = session.request(self.command, url, headers=headers, data=body, timeout=30)
        kept = {
            name: found.headers[name] for name in ("ETag", "Content-Range", "Last-Modified") if name in found.headers
        }
        length = found.headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(found.content))
        return self._answer(found.status_code, found.content, {**kept, "Content-Length": length})

    do_GET = do_HEAD = do_PUT = do_POST = _relay

    def do_CONNECT(self) -> None:
        self.server.asked.append(("CONNECT", self.path, {name.lower(): value for name, value in self.headers.items()}))
        self._answer(502, b"", {})

    def _sign(self, headers: dict[str, str]) -> bool:
        """Whether anybody may do this: read, and without showing a key."""
        shown = "authorization" in headers or "X-Amz-" in self.path
        return self.command in ("GET", "HEAD") and not shown

    def _answer(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing on stderr."""


@contextlib.contextmanager
def serving(server: _Server) -> Iterator[_Server]:
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def clear_environment(patch: pytest.MonkeyPatch) -> None:
    from s3fs import S3FileSystem

    proxies = ("http_proxy", "https_proxy", "no_proxy", "all_proxy")
    for name in [name for name in os.environ if name.startswith("AWS_") or name.lower() in proxies]:
        patch.delenv(name)
    patch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    patch.setenv("LARMOR_STORE_PATIENCE", "2")
    patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def folder(embedded_store: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """`larmor/FOLDER`, in which there are an object and a scan."""
    name = uuid.uuid4().hex
    with pytest.MonkeyPatch.context() as patch:
        use_only(embedded_store, patch)
        store = ObjectStore(f"s3://larmor/{name}")
        store.write("object", CONTENT)
        np.save(tmp_path_factory.mktemp("scan") / "scan.npy", random_kspace(2))
        store.upload(next(tmp_path_factory.getbasetemp().glob("scan*/scan.npy")).parent, "scans")
    return name


@pytest.fixture
def endpoint(embedded_store: EmbeddedStore) -> str:
    return str(embedded_store.status().endpoint)


class TestPublicBucket:
    @pytest.fixture
    def bucket(
        self, embedded_store: EmbeddedStore, endpoint: str, monkeypatch: pytest.MonkeyPatch
    ) -> Iterator[_Server]:
        """The real store as one that anybody may read; who shows a key is refused, since it is none of its own."""
        with monkeypatch.context() as patch:
            use_only(embedded_store, patch)
            credentials = Session(profile="larmor").get_credentials()
        clear_environment(monkeypatch)
        with serving(_Server(endpoint, credentials)) as server:
            monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
            yield server

    @pytest.mark.parametrize("client", CLIENTS)
    def test_it_is_read_without_keys(
        self, bucket: _Server, folder: str, monkeypatch: pytest.MonkeyPatch, client: Client
    ) -> None:
        monkeypatch.setenv("AWS_NO_SIGN_REQUEST", "YES")
        store = ObjectStore(f"s3://larmor/{folder}", client)
        store.check_access()
        assert store.read("object", 10, 300) == CONTENT[10:300]
        assert store.exists("object")
        assert set(store.list()) == {"object", "scans/scan.npy"}
        assert [ref.name for ref in find_sources([f"s3://larmor/{folder}/scans"])] == ["scan"]
        with pytest.raises(InputError, match="access refused"):
            store.write("object", b"another's")

    @pytest.mark.parametrize("client", CLIENTS)
    def test_nothing_is_asked_for_without_keys_unless_told(self, bucket: _Server, folder: str, client: Client) -> None:
        """A bucket of the same name may be somebody else's."""
        with pytest.raises(InputError, match=r"no S3 credentials were found.*AWS_NO_SIGN_REQUEST"):
            ObjectStore(f"s3://larmor/{folder}", client).read("object")
        assert bucket.asked == []


class TestProxy:
    @pytest.fixture
    def proxy(self, embedded_store: EmbeddedStore, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[_Server]:
        """The store has a name that only the proxy knows."""
        with monkeypatch.context() as patch:
            use_only(embedded_store, patch)
            keys = Session(profile="larmor").get_credentials().get_frozen_credentials()
        clear_environment(monkeypatch)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", keys.access_key)
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", keys.secret_key)
        monkeypatch.setenv("AWS_ENDPOINT_URL", "http://store.invalid:8333")
        with serving(_Server(endpoint)) as server:
            monkeypatch.setenv("http_proxy", server.url.replace("//", "//user:p%40ss@"))
            yield server

    @pytest.mark.parametrize("client", CLIENTS)
    def test_both_clients_go_through_it(self, proxy: _Server, folder: str, client: Client) -> None:
        store = ObjectStore(f"s3://larmor/{folder}", client)
        for _ in range(2):
            assert store.read("object", 10, 300) == CONTENT[10:300]
        assert {urlsplit(url).netloc for _, url, _ in proxy.asked} == {"store.invalid:8333"}
        wanted = f"Basic {base64.b64encode(b'user:p@ss').decode()}"
        assert {headers.get("proxy-authorization") for _, _, headers in proxy.asked} == {wanted}

    def test_a_secure_store_is_reached_by_a_tunnel(self, proxy: _Server, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", "https://store.invalid")
        monkeypatch.setenv("https_proxy", proxy.url)
        with pytest.raises(OSError, match="Tunnel connection failed: 502"):
            HttpRanges("larmor").read("key", 0, 10)
        assert [(method, place) for method, place, _ in proxy.asked] == [("CONNECT", "store.invalid:443")]

    @pytest.mark.parametrize("excepted", ["no_proxy", "this machine"])
    def test_what_is_excepted_is_asked_directly(
        self, proxy: _Server, folder: str, endpoint: str, monkeypatch: pytest.MonkeyPatch, excepted: str
    ) -> None:
        """The embedded store is on this machine, where no proxy finds it."""
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        if excepted == "no_proxy":
            monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert HttpRanges("larmor").read(f"{folder}/object", 10, 300) == CONTENT[10:300]
        assert proxy.asked == []


@pytest.mark.parametrize("name", ["br[1].nii.gz", "a*b.nii.gz", "what?.nii.gz"])
def test_an_object_whose_name_looks_like_a_pattern_is_meant_itself(
    store_environment: dict[str, str], tmp_path: Path, name: str
) -> None:
    bucket = f"s3://larmor/{uuid.uuid4().hex}"
    store = ObjectStore(bucket)
    for other in (name, "br1.nii.gz", "axb.nii.gz", "whatx.nii.gz"):
        store.write(f"in/{other}", b"")
        store.write(f"in/{other.removesuffix('.nii.gz')}/deeper.nii", b"")
    assert [ref.files for ref in find_sources([f"{bucket}/in/{name}"])] == [(f"{bucket}/in/{name}",)]
    stem = name.removesuffix(".nii.gz")
    assert [ref.files for ref in find_sources([f"{bucket}/in/{stem}"])] == [(f"{bucket}/in/{stem}/deeper.nii",)]
