"""Google Cloud Storage and Azure Blob Storage, beyond what every store is asked (test_object_store.py)."""

from __future__ import annotations

import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from larmor.storage.objects import remote, urls
from larmor.storage.objects.conditional_writes import check_conditional_writes
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from tests import cloud_servers

Cloud = Callable[[str], str]
BOTH = pytest.mark.parametrize("protocol", ["gs", "az"])
VARIABLES = {"gs": "STORAGE_EMULATOR_HOST", "az": "AZURE_STORAGE_CONNECTION_STRING"}


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARMOR_STORE_PATIENCE", "1")


def azure_at(address: str) -> str:
    return f"DefaultEndpointsProtocol=http;AccountName=some;AccountKey=c29tZQ==;BlobEndpoint={address}/some;"


class Scripted(ThreadingHTTPServer):
    """Answers each request with the next of `statuses`, and records the method of each."""

    daemon_threads = True

    def __init__(self, statuses: list[int]) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.statuses, self.methods = iter(statuses), list[str]()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answer(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        server = self.server
        assert isinstance(server, Scripted)
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self.path.startswith("/storage/v1/b/bucket?"):  # what Google's client asks by itself, from version 3 on
            self.send_response(404)
        else:
            server.methods.append(self.command)
            self.send_response(next(server.statuses, 503))
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = _answer

    def log_message(self, *_: object) -> None:
        """Quiet."""


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str, list[int]], tuple[ObjectStore, Scripted]]]:
    """A function: a store of this protocol, and its server, which answers with these statuses, then with 503."""
    servers: list[Scripted] = []

    def start(protocol: str, statuses: list[int]) -> tuple[ObjectStore, Scripted]:
        pytest.importorskip("google.cloud.storage" if protocol == "gs" else "azure.storage.blob")
        server = Scripted(statuses)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        address = server.address if protocol == "gs" else azure_at(server.address)
        cloud_servers.use_only({VARIABLES[protocol]: address}, monkeypatch)
        return ObjectStore(f"{protocol}://bucket/folder"), server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@BOTH
def test_each_request_that_is_repeated_asks_the_guard_before(
    protocol: str, failing: Callable[[str, list[int]], tuple[ObjectStore, Scripted]]
) -> None:
    """The vendors' clients repeat nothing by themselves: a lease that is lost between two tries ends the change."""
    store, server = failing(protocol, [])
    for change in (
        lambda guard: store.write("object", b"1", guard=guard),
        lambda guard: store.create("object", b"1", guard=guard),
        lambda guard: store.remove(["object"], guard=guard),
    ):
        asked: list[int] = []
        before = len(server.methods)

        def guard(asked: list[int] = asked) -> None:
            asked.append(1)
            if len(asked) == 3:
                raise RuntimeError("the lease is lost")

        with pytest.raises(RuntimeError, match="lease is lost"):
            change(guard)
        assert len(server.methods) - before == 2


@BOTH
def test_a_store_that_keeps_failing_is_given_up_and_named(
    protocol: str, failing: Callable[[str, list[int]], tuple[ObjectStore, Scripted]]
) -> None:
    store, server = failing(protocol, [])
    with pytest.raises(StoreAway, match=rf"{protocol}://bucket/folder/object: .*503.*LARMOR_STORE_PATIENCE"):
        store.read("object")
    assert len(server.methods) > 2


@BOTH
@pytest.mark.parametrize("status", [401, 403])
def test_a_refusal_names_the_credentials(
    protocol: str, status: int, failing: Callable[[str, list[int]], tuple[ObjectStore, Scripted]]
) -> None:
    store, server = failing(protocol, [status])
    named = "GOOGLE_APPLICATION_CREDENTIALS" if protocol == "gs" else "AZURE_STORAGE_CONNECTION_STRING"
    with pytest.raises(InputError, match=rf"{protocol}://bucket/folder: access refused .*{named}"):
        store.check_access()
    assert len(server.methods) == 1


@BOTH
def test_a_server_that_is_not_there_is_named(protocol: str, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("google.cloud.storage" if protocol == "gs" else "azure.storage.blob")
    address = "http://127.0.0.1:1"
    cloud_servers.use_only({VARIABLES[protocol]: address if protocol == "gs" else azure_at(address)}, monkeypatch)
    with pytest.raises(StoreAway, match=f"{protocol}://bucket.*cannot be reached .*refused"):
        ObjectStore(f"{protocol}://bucket").check_access()


@BOTH
def test_a_bucket_that_does_not_exist_is_named(protocol: str, cloud: Cloud) -> None:
    cloud(protocol)
    with pytest.raises(InputError, match=f"{protocol}://no-such/place: the bucket 'no-such' does not exist"):
        ObjectStore(f"{protocol}://no-such/place").check_access()


@BOTH
def test_conditional_writes_are_there(protocol: str, cloud: Cloud) -> None:
    store = ObjectStore(f"{cloud(protocol)}/{uuid.uuid4().hex}")
    check_conditional_writes(store, "probe")
    assert store.list() == {}


@BOTH
def test_what_one_has_created_is_known_by_its_mark(
    protocol: str, cloud: Cloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The answer to the first try gets lost, and the second one is told that the object is there."""
    store = ObjectStore(f"{cloud(protocol)}/{uuid.uuid4().hex}")
    put, tries = store._remote.put, []  # type: ignore[union-attr]

    def lose_the_first_answer(*given: object, **named: object) -> None:
        tries.append(given)
        put(*given, **named)  # type: ignore[arg-type]
        if len(tries) == 1:
            raise ConnectionResetError("cut off")

    monkeypatch.setattr(store._remote, "put", lose_the_first_answer)
    assert store.create("claim", b"mine")
    assert len(tries) == 2
    assert not store.create("claim", b"again")
    assert store.read("claim") == b"mine"


@BOTH
def test_folders_and_names_with_spaces(protocol: str, cloud: Cloud) -> None:
    store = ObjectStore(f"{cloud(protocol)}/{uuid.uuid4().hex}")
    names = ["a/x.bin", "a/deep/y", "b c/ü+&%20", "top"]
    for name in names:
        store.write(name, name.encode())
    assert list(store.list()) == sorted(names)
    assert store.folders() == ["a", "b c"]
    assert store.folders("a") == ["a/deep"]
    assert store.folders("nothing") == []
    assert store.exists("a")
    for name in names:
        assert store.read(name) == name.encode()


@BOTH
def test_a_file_of_several_requests_arrives_whole(protocol: str, cloud: Cloud, tmp_path: Path) -> None:
    store = ObjectStore(f"{cloud(protocol)}/{uuid.uuid4().hex}")
    data = bytes(range(256)) * (9 * 2**12)  # what Google's client sends in a session of its own
    store.write("object", data)
    assert store.read("object", 2**20 + 1, 2**20 + 9) == data[1:9]
    store.download("object", tmp_path / "object")
    assert (tmp_path / "object").read_bytes() == data
    store.remove(["object"])
    assert not store.exists("object")


@pytest.mark.parametrize(("url", "extra"), [("gs://b/p", "gcs"), ("az://b/p", "azure"), ("abfs://b/p", "azure")])
def test_a_client_that_is_not_installed_is_named_with_its_extra(
    url: str, extra: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> ModuleSpec | None:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(remote, "find_spec", missing)
    with pytest.raises(InputError, match=rf"{url}: .*is not installed; pip install 'larmor-mri\[{extra}\]'"):
        ObjectStore(url)


def test_nothing_of_the_clouds_is_imported_for_other_places() -> None:
    for module in ("larmor.storage.objects.google_storage", "larmor.storage.objects.azure_blobs"):
        assert module not in sys.modules or "google.cloud.storage" in sys.modules or "azure" in sys.modules


def test_google_credentials_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("google.cloud.storage")
    cloud_servers.use_only({"GOOGLE_APPLICATION_CREDENTIALS": str(tmp_path / "none.json")}, monkeypatch)
    with pytest.raises(InputError, match=r"gs://bucket: no Google credentials.*gcloud auth.*GS_NO_SIGN_REQUEST"):
        ObjectStore("gs://bucket")
    monkeypatch.setenv("GS_NO_SIGN_REQUEST", "YES")
    assert ObjectStore("gs://bucket/folder/").url == "gs://bucket/folder"


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({}, "no account is named"),
        ({"AZURE_STORAGE_CONNECTION_STRING": "nonsense"}, "[Cc]onnection string"),
    ],
)
def test_azure_settings_that_are_wrong(
    environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("azure.storage.blob")
    cloud_servers.use_only(environment, monkeypatch)
    with pytest.raises(InputError, match=rf"az://bucket: .*{message}.*AZURE_STORAGE_ACCOUNT"):
        ObjectStore("az://bucket")


@pytest.mark.parametrize(
    ("url", "environment", "account"),
    [
        ("az://box/place", {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_KEY": "c29tZQ=="}, "mine"),
        ("abfs://box/place", {"AZURE_STORAGE_ACCOUNT": "mine", "AZURE_STORAGE_SAS_TOKEN": "sv=1&sig=2"}, "mine"),
        ("abfss://box@other.dfs.core.windows.net/place", {"AZURE_NO_SIGN_REQUEST": "YES"}, "other"),
        ("abfss://box@other.dfs.core.windows.net/place", {"AZURE_STORAGE_ACCOUNT": "mine"}, "other"),
    ],
)
def test_the_account_is_that_of_the_url_or_of_the_environment(
    url: str, environment: dict[str, str], account: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("azure.storage.blob")
    from larmor.storage.objects.azure_blobs import azure_blobs

    cloud_servers.use_only(environment, monkeypatch)
    assert azure_blobs(url).account == account
    assert ObjectStore(url).full_path("object") == "box/place/object"


@pytest.mark.parametrize("url", ["gs://", "az:///", "abfs://@account.dfs.core.windows.net/x"])
def test_a_bucket_is_needed(url: str) -> None:
    with pytest.raises(InputError, match=f"no bucket is named; write {url[:2]}.*(BUCKET|CONTAINER)"):
        urls.split(url)
