from __future__ import annotations

import configparser
import json
import os
import socket
import stat
import subprocess
import sys
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from botocore.exceptions import ClientError
from botocore.session import Session
from s3fs import S3FileSystem

from larmor.storage.objects import embedded_store as module
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.ports import GRPC_OFFSET


@pytest.fixture
def own_store(tmp_path: Path) -> Iterator[EmbeddedStore]:
    """A store that the test may stop and kill; it is not started yet."""
    store = EmbeddedStore(tmp_path / "store")
    yield store
    store.stop(timeout=0.2)  # no need to be gentle


def keys_of(store: EmbeddedStore) -> dict[str, str]:
    parser = configparser.ConfigParser()
    parser.read(store.environment()["AWS_SHARED_CREDENTIALS_FILE"])
    return dict(parser["larmor"])


def file_system(store: EmbeddedStore) -> S3FileSystem:
    keys = keys_of(store)
    return S3FileSystem(
        key=keys["aws_access_key_id"],
        secret=keys["aws_secret_access_key"],
        endpoint_url=store.status().endpoint,
        skip_instance_cache=True,
    )


def listener() -> socket.socket:
    taken = socket.socket()
    while True:
        taken.bind(("127.0.0.1", 0))
        if taken.getsockname()[1] < 65_536 - GRPC_OFFSET:
            taken.listen()
            return taken
        taken.close()
        taken = socket.socket()


class TestRunningStore:
    def test_environment_is_all_that_a_client_needs(self, store_environment: dict[str, str]) -> None:
        assert not any("KEY" in name for name in store_environment)
        content = os.urandom(3_000_000)
        fs = S3FileSystem()
        fs.pipe_file("larmor/folder/object", content)
        assert fs.cat_file("larmor/folder/object") == content
        assert fs.cat_file("larmor/folder/object", start=-10) == content[-10:]

    def test_second_start_finds_it_running(self, embedded_store: EmbeddedStore) -> None:
        before = embedded_store.status()
        assert embedded_store.start() is False
        assert embedded_store.status().pid == before.pid
        assert embedded_store.status().endpoint == before.endpoint

    def test_second_start_on_another_port_is_refused(self, embedded_store: EmbeddedStore) -> None:
        with pytest.raises(InputError, match=r"already runs on port \d+, not 30000"):
            embedded_store.start(port=30_000)

    def test_variables_of_the_caller_do_not_lead_it_astray(
        self, embedded_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        wrong = {"AWS_ACCESS_KEY_ID": "wrong", "AWS_SECRET_ACCESS_KEY": "wrong", "AWS_PROFILE": "nobody"}
        for name, value in {
            **wrong,
            "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
            "HTTP_PROXY": "http://127.0.0.1:9",
        }.items():
            monkeypatch.setenv(name, value)
        assert embedded_store.start() is False
        assert "larmor" in embedded_store.status().buckets

    def test_buckets(self, embedded_store: EmbeddedStore) -> None:
        for _ in range(2):
            embedded_store.start(buckets=("larmor", "third"))
            assert {"larmor", "third"} <= set(embedded_store.status().buckets)

    @pytest.mark.parametrize("wrong", ["key", "secret", "anonymous"])
    def test_wrong_credentials_are_refused(
        self, embedded_store: EmbeddedStore, store_environment: dict[str, str], wrong: str
    ) -> None:
        owner = file_system(embedded_store)
        owner.pipe_file("larmor/secret", b"content")
        keys = keys_of(embedded_store)
        options: dict[str, Any] = {"key": keys["aws_access_key_id"], "secret": keys["aws_secret_access_key"]}
        options = {"anon": True} if wrong == "anonymous" else options | {wrong: "0" * 40}
        stranger = S3FileSystem(endpoint_url=embedded_store.status().endpoint, skip_instance_cache=True, **options)
        with pytest.raises(PermissionError):
            stranger.cat_file("larmor/secret")
        with pytest.raises(PermissionError):
            stranger.pipe_file("larmor/secret", b"other")
        assert owner.cat_file("larmor/secret") == b"content"

    def test_conditional_create_has_one_winner(self, store_environment: dict[str, str]) -> None:
        client = Session().create_client("s3")

        def create(number: int) -> int | None:
            try:
                client.put_object(Bucket="larmor", Key=key, Body=b"%d" % number, IfNoneMatch="*")
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] in (409, 412):
                    return None
                raise
            return number

        for _ in range(3):
            key = f"race/{uuid.uuid4()}"
            with ThreadPoolExecutor(8) as pool:
                winners = [number for number in pool.map(create, range(8)) if number is not None]
            assert len(winners) == 1
            assert client.get_object(Bucket="larmor", Key=key)["Body"].read() == b"%d" % winners[0]

    def test_listens_on_loopback_only(self, embedded_store: EmbeddedStore) -> None:
        process = psutil.Process(embedded_store.status().pid)
        listening = [c.laddr for c in process.net_connections("inet") if c.status == psutil.CONN_LISTEN]
        endpoint = embedded_store.status().endpoint
        assert endpoint is not None
        port = int(endpoint.rpartition(":")[2])
        assert {port, port + GRPC_OFFSET} <= {address.port for address in listening}
        assert {address.ip for address in listening} == {"127.0.0.1"}

    def test_inner_servers_do_not_hand_out_content(self, embedded_store: EmbeddedStore) -> None:
        import requests

        file_system(embedded_store).pipe_file("larmor/inner", b"content")
        filer = json.loads((embedded_store.root / "state.json").read_text())["ports"][2]
        with requests.Session() as session:
            session.trust_env = False
            assert session.get(f"http://127.0.0.1:{filer}/buckets/larmor/inner", timeout=10).status_code == 401

    def test_only_the_owner_can_read_it(self, embedded_store: EmbeddedStore) -> None:
        root = embedded_store.root
        assert stat.S_IMODE(root.stat().st_mode) == 0o700
        assert stat.S_IMODE((root / "data").stat().st_mode) == 0o700
        for name in ("credentials", "config", "state.json", "weed.log"):
            assert stat.S_IMODE((root / name).stat().st_mode) == 0o600, name

    def test_secret_stands_in_no_log_and_no_command_line(self, embedded_store: EmbeddedStore) -> None:
        secret = keys_of(embedded_store)["aws_secret_access_key"]
        assert len(secret) >= 40
        assert secret not in embedded_store.log.read_text()
        assert secret not in " ".join(psutil.Process(embedded_store.status().pid).cmdline())


class TestStartAndStop:
    def test_data_port_and_keys_survive(self, own_store: EmbeddedStore) -> None:
        assert own_store.start() is True
        before, keys = own_store.status(), keys_of(own_store)
        file_system(own_store).pipe_file("larmor/kept", b"content" * 1000)
        assert own_store.stop() is True
        assert own_store.stop() is False
        assert before.pid is not None
        assert before.endpoint is not None
        assert not psutil.pid_exists(before.pid)
        state = json.loads((own_store.root / "state.json").read_text())
        ports = [port + offset for port in state["ports"] for offset in (0, GRPC_OFFSET)]
        left = [path for port in ports for path in Path("/tmp").glob(f"seaweedfs-*-{port}.sock")]
        assert left == []
        stopped = own_store.status()
        assert (stopped.running, stopped.endpoint, stopped.pid) == (False, None, None)
        assert stopped.bytes_used >= 7000
        assert own_store.start() is True
        assert own_store.status().endpoint == before.endpoint
        assert keys_of(own_store) == keys
        assert file_system(own_store).cat_file("larmor/kept") == b"content" * 1000

        crashing = psutil.Process(own_store.status().pid)
        crashing.kill()
        crashing.wait(10)
        assert own_store.status().running is False
        with socket.socket() as other:  # the old port is gone meanwhile
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            other.bind(("127.0.0.1", int(before.endpoint.rpartition(":")[2])))
            other.listen()
            assert own_store.start() is True
        assert own_store.status().endpoint != before.endpoint
        for leftover in Path("/tmp").glob(f"seaweedfs-s3-{before.endpoint.rpartition(':')[2]}.sock"):
            leftover.unlink()  # the store leaves alone what may belong to the port's new owner
        assert file_system(own_store).cat_file("larmor/kept") == b"content" * 1000

    def test_concurrent_starts_make_one_server_that_outlives_them(self, own_store: EmbeddedStore) -> None:
        code = (
            "from larmor.storage.objects.embedded_store import *\n"
            f"print(EmbeddedStore(Path({str(own_store.root)!r})).start())"
        )
        starts = [subprocess.Popen([sys.executable, "-c", code], stdout=-1, text=True) for _ in range(2)]
        assert sorted(start.communicate(timeout=90)[0].strip() for start in starts) == ["False", "True"]
        servers = [p for p in psutil.process_iter(["cmdline"]) if f"-dir={own_store.data}" in (p.info["cmdline"] or ())]
        assert [server.pid for server in servers] == [own_store.status().pid]

    def test_taken_port_is_named(self, own_store: EmbeddedStore) -> None:
        with listener() as taken:
            port = taken.getsockname()[1]
            with pytest.raises(InputError, match=rf"port {port} is taken.*choose another"):
                own_store.start(port=port)
            if port - GRPC_OFFSET >= 1024:  # the port + 10000 of another one
                with pytest.raises(InputError, match=rf"port {port} is taken.*{port - GRPC_OFFSET}"):
                    own_store.start(port=port - GRPC_OFFSET)
        assert not own_store.status().running

    @pytest.mark.parametrize("port", [80, 55_536, 70_000])
    def test_port_out_of_range(self, own_store: EmbeddedStore, port: int) -> None:
        with pytest.raises(InputError, match=rf"port {port} is out of range; choose one from 1024 to 55535"):
            own_store.start(port=port)

    def test_server_that_dies_shows_the_end_of_its_log(
        self, own_store: EmbeddedStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        broken = tmp_path / "weed"
        broken.write_text("#!/bin/sh\necho the disk is on fire\nexit 3\n")
        broken.chmod(0o755)
        monkeypatch.setattr(module, "_weed", lambda: str(broken))
        with pytest.raises(InputError, match=r"(?s)ended at its start.*the disk is on fire"):
            own_store.start()
        assert not own_store.status().running

    def test_little_disk_space(self, own_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(module.shutil, "disk_usage", lambda _: SimpleNamespace(free=300 << 20))
        with pytest.raises(InputError, match=r"300 MiB of disk space are free.*1024"):
            own_store.start()

    @pytest.mark.parametrize("same_start", [True, False])
    def test_foreign_process_of_that_number_is_left_alone(self, own_store: EmbeddedStore, same_start: bool) -> None:
        arguments = [] if same_start else [f"-dir={own_store.data}"]
        with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)", *arguments]) as foreign:
            try:
                started = psutil.Process(foreign.pid).create_time() - (0 if same_start else 3600)
                own_store.root.mkdir()
                state = {"pid": foreign.pid, "create_time": started, "ports": [1, 2, 3, 4, 5]}
                (own_store.root / "state.json").write_text(json.dumps(state))
                assert own_store.status().running is False
                assert own_store.stop() is False
                assert foreign.poll() is None
            finally:
                foreign.kill()

    def test_store_that_was_never_started(self, own_store: EmbeddedStore) -> None:
        with pytest.raises(InputError, match="never started; run `larmor store start`"):
            own_store.environment()
        assert own_store.stop() is False
        assert own_store.status().running is False
        assert not own_store.root.exists()

    @pytest.mark.parametrize("buckets", [(), ("UPPER",), ("larmor", "a")])
    def test_bad_buckets_are_refused_before_anything_runs(
        self, own_store: EmbeddedStore, buckets: tuple[str, ...]
    ) -> None:
        with pytest.raises(InputError, match="bucket"):
            own_store.start(buckets=buckets)
        assert not own_store.root.exists()

    def test_default_root(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("LARMOR_HOME", str(tmp_path))
        assert EmbeddedStore.default_root() == tmp_path / "store"
        monkeypatch.delenv("LARMOR_HOME")
        assert EmbeddedStore.default_root().name == "store"
