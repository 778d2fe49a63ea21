"""One suite that every kind of store passes."""

from __future__ import annotations

import pickle
import socket
import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from botocore import session
from s3fs import S3FileSystem

from larmor.storage.objects import object_store, s3_remote
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from tests.faulty_proxy import FaultyProxy
from tests.helpers import contents_of

DATA = bytes(range(256)) * 4


RANGES = [
    (None, None),
    (0, 10),
    (100, 101),
    (1000, None),
    (None, 7),
    (-1, None),
    (-20, None),
    (-len(DATA), None),
    (1020, 1030),
    (1024, None),
    (2000, 2010),
]


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LARMOR_STORE_PATIENCE", "1")


@pytest.fixture(params=["local", "memory", "s3", "gs", "az"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind."""
    if request.param == "local":
        return ObjectStore(tmp_path / "objects")
    if request.param == "s3":
        request.getfixturevalue("store_environment")
        return ObjectStore(f"s3://larmor/{uuid.uuid4().hex}")
    if request.param in ("gs", "az"):
        return ObjectStore(f"{request.getfixturevalue('cloud')(request.param)}/{uuid.uuid4().hex}")
    return ObjectStore(f"memory://{uuid.uuid4().hex}/objects")


@pytest.fixture(params=["local", "memory", "s3fs", "http", "gs", "az"])
def readable(request: pytest.FixtureRequest, tmp_path: Path) -> ObjectStore:
    """An empty store of each kind, with each client that reads ranges."""
    if request.param == "local":
        return ObjectStore(tmp_path / "objects")
    if request.param == "memory":
        return ObjectStore(f"memory://{uuid.uuid4().hex}/objects")
    if request.param in ("gs", "az"):
        return ObjectStore(f"{request.getfixturevalue('cloud')(request.param)}/{uuid.uuid4().hex}")
    request.getfixturevalue("store_environment")
    return ObjectStore(f"s3://larmor/{uuid.uuid4().hex}", request.param)


def test_a_range_is_the_slice_of_the_bytes(readable: ObjectStore) -> None:
    readable.write("deep/down/object", DATA)
    for start, stop in RANGES:
        assert readable.read("deep/down/object", start, stop) == DATA[start:stop]


def test_parts_are_the_bytes_between_edges(readable: ObjectStore) -> None:
    readable.write("object", DATA)
    edges = [2, 3, len(DATA) - 1, len(DATA) + 5, len(DATA) + 9]
    parts = [memoryview(bytearray(stop - start)) for start, stop in pairwise(edges)]
    assert readable.read_into("object", 2, parts) == len(DATA) - 2
    assert [bytes(part) for part in parts] == [DATA[2:3], DATA[3:-1], DATA[-1:] + bytes(5), bytes(4)]
    assert readable.read_into("object", len(DATA) + 5, parts) == 0


def test_a_start_before_the_beginning_gives_the_whole_object(readable: ObjectStore) -> None:
    readable.write("object", DATA)
    assert readable.read("object", start=-len(DATA) - 5) == DATA


def test_an_empty_object_has_no_bytes_anywhere(readable: ObjectStore) -> None:
    readable.write("empty", b"")
    for start, stop in RANGES:
        assert readable.read("empty", start, stop) == b""


def test_a_read_of_what_is_missing_is_not_found(readable: ObjectStore) -> None:
    readable.write("there", b"1")
    for start, stop in RANGES:
        with pytest.raises(FileNotFoundError):
            readable.read("not/there", start, stop)


def test_write_replaces(store: ObjectStore) -> None:
    store.write("object", DATA)
    store.write("object", b"short")
    assert store.read("object") == b"short"
    assert store.size("object") == 5
    assert store.list() == {"object": 5}


def test_a_reader_sees_the_old_bytes_or_the_new_ones(store: ObjectStore) -> None:
    versions = [bytes([value]) * 100_000 for value in range(20)]
    store.write("object", versions[0])
    done = threading.Event()

    def read() -> list[set[int]]:
        seen = []
        while not done.is_set():
            content = store.read("object")
            assert len(content) == len(versions[0])
            seen.append(set(content))
        return seen

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        try:
            for version in versions:
                store.write("object", version)
        finally:
            done.set()
        for reader in readers:
            assert all(len(values) == 1 for values in reader.result())


def test_create_has_one_winner(store: ObjectStore) -> None:
    threads = 8
    for attempt in range(2):
        barrier = threading.Barrier(threads)

        def create(number: int, attempt: int = attempt, barrier: threading.Barrier = barrier) -> bool:
            barrier.wait()
            return store.create(f"claim{attempt}", b"%d" % number)

        with ThreadPoolExecutor(threads) as pool:
            won = list(pool.map(create, range(threads)))
        assert sum(won) == 1
        assert store.read(f"claim{attempt}") == b"%d" % won.index(True)
    assert not store.create("claim0", b"later")
    assert len(store.list()) == 2


def test_list_gives_sizes_below_a_prefix_sorted(store: ObjectStore) -> None:
    assert store.list() == {}
    for path in ("b", "a/y", "a/x/deep", "ab/z"):
        store.write(path, path.encode())
    assert list(store.list().items()) == [("a/x/deep", 8), ("a/y", 3), ("ab/z", 4), ("b", 1)]
    assert store.list("a") == {"a/x/deep": 8, "a/y": 3}
    assert store.list("c") == {}


def test_a_listing_begins_after_a_path_that_need_not_be_there(store: ObjectStore) -> None:
    paths = [f"a/{number:03d}" for number in range(0, 40, 2)]
    for path in [*paths, "a0", "b/000"]:
        store.write(path, path.encode())
    assert list(store.list("a", False, "a/015")) == paths[8:]
    assert list(store.list("a", False, "a/016")) == paths[9:]
    assert store.list("a", False, "a/036") == {"a/038": 5}
    assert store.list("a", False, "a/038") == store.list("c", False, "c/1") == {}
    assert list(store.list("", False, "a/036")) == ["a/038", "a0", "b/000"]


def test_a_long_listing_of_s3_comes_in_pages(
    store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}")
    for number in range(9):
        store.write(f"a/{number}", b"x")
    call, asked = S3FileSystem.call_s3, []

    def in_pages(self: S3FileSystem, method: str, **options: object) -> object:
        asked.append(options)
        return call(self, method, MaxKeys=3, **options)

    monkeypatch.setattr(S3FileSystem, "call_s3", in_pages)
    assert list(store.list("a", False, "a/1")) == [f"a/{number}" for number in range(2, 9)]
    assert len(asked) == 3


def test_delete_takes_an_object_or_a_folder_and_nothing_beside(store: ObjectStore) -> None:
    for path in ("a/x", "a/y", "ab/z", "b"):
        store.write(path, b"1")
    store.delete("b")
    store.delete("a")
    store.delete("never/there")
    assert list(store.list()) == ["ab/z"]
    assert store.list("a") == {}
    assert not store.exists("a/x")
    store.delete()
    assert store.list() == {}


def test_upload_and_download_bring_the_bytes(store: ObjectStore, tmp_path: Path) -> None:
    files = {"one.bin": DATA * 3000, "deep/two.bin": DATA, "empty": b""}
    for name, content in files.items():
        (tmp_path / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "source" / name).write_bytes(content)
    store.upload(tmp_path / "source", "put/here")
    assert store.list() == {f"put/here/{name}": len(content) for name, content in files.items()}
    for name in files:
        store.download(f"put/here/{name}", tmp_path / "back" / name)
    assert contents_of(tmp_path / "back") == files


def test_a_download_that_fails_leaves_nothing(
    store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store.write("object", DATA)
    target = tmp_path / "back" / "object"

    def get_half(path: str, local: str) -> None:
        Path(local).write_bytes(DATA[:100])
        raise ConnectionResetError("cut off")

    with monkeypatch.context() as patch:
        patch.setattr(store.filesystem, "get_file", get_half)
        with pytest.raises((ConnectionResetError, StoreAway), match="cut off"):
            store.download("object", target)
    assert contents_of(tmp_path / "back") == {}
    store.download("object", target)
    assert target.read_bytes() == DATA


def test_a_local_write_that_fails_leaves_the_old_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = ObjectStore(tmp_path / "objects")
    store.write("object", DATA)
    write_bytes = Path.write_bytes

    def write_half(path: Path, data: bytes) -> int:
        write_bytes(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "object").write_bytes(b"new" * 100)
    monkeypatch.setattr(Path, "write_bytes", write_half)
    for attempt in (
        lambda: store.write("object", b"new" * 100),
        lambda: store.create("other", b"new" * 100),
        lambda: store.upload(tmp_path / "source", "."),
    ):
        with pytest.raises(OSError, match="No space left"):
            attempt()
    assert contents_of(tmp_path / "objects") == {"object": DATA}


def test_missing_objects_are_not_found(store: ObjectStore, tmp_path: Path) -> None:
    store.write("there", b"1")
    assert store.exists("there")
    assert not store.exists("not/there")
    for ask in (store.read, store.size, lambda path: store.download(path, tmp_path / "back")):
        with pytest.raises(FileNotFoundError):
            ask("not/there")
    assert not (tmp_path / "back").exists()


def test_a_store_below_another_one_is_a_part_of_it(store: ObjectStore) -> None:
    below = ObjectStore(f"{store.url}/in/side")
    below.write("object", b"1")
    assert store.list() == {"in/side/object": 1}
    assert below.list() == {"object": 1}
    store.check_access()


def test_it_travels_to_other_processes_as_its_url_and_client_alone(readable: ObjectStore) -> None:
    readable.write("object", DATA)
    readable.read("object", 0, 5)
    pickled = pickle.dumps(readable)
    assert len(pickled) < len(readable.url) + 100
    again = pickle.loads(pickled)
    assert again.read("object") == DATA
    assert (again.url, again.client) == (readable.url, readable.client)


@pytest.mark.parametrize("url", ["s3://", "s3:///", "s3:////"])
def test_s3_needs_a_bucket(url: str) -> None:
    with pytest.raises(InputError, match="no bucket is named; write s3://BUCKET"):
        ObjectStore(url)


@pytest.mark.parametrize("url", ["ftp://host/folder", "gcs://bucket", "http://host/data", "S3://bucket"])
def test_unknown_protocols_are_refused(url: str) -> None:
    with pytest.raises(InputError, match=f"{url}: .*is not supported; use a local path, or s3://"):
        ObjectStore(url)


def test_local_places_have_one_absolute_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("data", "data/", f"file://{tmp_path}/data", tmp_path / "data", "~/data"):
        assert ObjectStore(name).url == str(tmp_path / "data")
    assert ObjectStore("/").url == "/"


@pytest.mark.parametrize("before", [None, b"before"])
@pytest.mark.parametrize("verb", ["write", "create", "upload"])
def test_a_request_whose_body_never_comes_changes_nothing(
    store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, verb: str, before: bytes | None
) -> None:
    """A process that is killed between head and body leaves that behind; some stores make an empty object of it."""
    url = f"s3://larmor/{uuid.uuid4().hex}"
    store = ObjectStore(url)
    endpoint = urlsplit(session.Session().create_client("s3").meta.endpoint_url)
    if before:
        store.write("folder/object", before)
    (tmp_path / "object").write_bytes(b"after")

    def pass_on_the_head(listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                with client, socket.create_connection((endpoint.hostname, endpoint.port)) as server:
                    head = b""
                    while b"\r\n\r\n" not in head:
                        head += client.recv(65536)
                    assert head.startswith(b"PUT")
                    server.sendall(head[: head.index(b"\r\n\r\n") + 4])
                    server.shutdown(socket.SHUT_WR)
                    while server.recv(65536):
                        pass  # until the store has decided

    with socket.create_server(("127.0.0.1", 0)) as listener, monkeypatch.context() as patch:
        threading.Thread(target=pass_on_the_head, args=(listener,), daemon=True).start()
        patch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{listener.getsockname()[1]}")
        patch.setenv("LARMOR_STORE_PATIENCE", "0")
        S3FileSystem.clear_instance_cache()
        cut = ObjectStore(url)
        with pytest.raises(StoreAway):
            cut.upload(tmp_path, "folder") if verb == "upload" else getattr(cut, verb)("folder/object", b"after")
        listener.shutdown(socket.SHUT_RDWR)
    S3FileSystem.clear_instance_cache()
    assert ObjectStore(url).list() == ({"folder/object": len(before)} if before else {})


def test_an_object_is_stored_in_the_parts_that_were_asked_for(faulty_proxy: FaultyProxy) -> None:
    """Only if there are two: else one request brings it, with its MD5."""
    store, part = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}"), 5 * 2**20
    for size, num_parts in ((2 * part - 1, 0), (2 * part, 2), (2 * part + 1, 3)):
        data, before = np.random.default_rng(size).bytes(size), len(faulty_proxy.log)
        store.write("object", data, part)
        puts = [request.path for request in faulty_proxy.log[before:] if request.method == "PUT"]
        assert sum("partNumber=" in path for path in puts) == num_parts
        assert len(puts) == max(1, num_parts)
        assert store.read("object") == data


def test_objects_of_one_request_and_of_several_arrive_whole(
    store_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for module in (object_store, s3_remote):
        monkeypatch.setattr(module, "MULTIPART", 10 * 2**20)
    store = ObjectStore(f"s3://larmor/{uuid.uuid4().hex}")
    for size in (0, 1, 10 * 2**20 - 1, 10 * 2**20, 12 * 2**20):
        data = np.random.default_rng(size).bytes(size)
        (tmp_path / "file").write_bytes(data)
        store.write("written", data)
        store.upload(tmp_path, f"uploaded-{size}")
        assert store.create(f"created-{size}", data)
        for path in ("written", f"uploaded-{size}/file", f"created-{size}"):
            assert store.read(path) == data
