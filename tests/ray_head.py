"""A Ray head of its own, started as `ray-cluster.yaml` starts one: dashboard on loopback, token required."""

from __future__ import annotations

import contextlib
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.workbench import environment

RAY = str(Path(sys.executable).parent / "ray")


@dataclass(frozen=True)
class RayHead:
    """`dashboard` is a URL, `address` HOST:PORT for Ray itself, `folder` where Ray keeps its session."""

    dashboard: str
    address: str
    token: Path
    folder: Path

    def known(self) -> dict[str, Any]:
        """The variables of somebody who has the token."""
        return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.token)}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_token(path: Path) -> Path:
    path.touch(mode=0o600)
    path.write_text(secrets.token_hex(32))
    return path


@contextlib.contextmanager
def ray_head(options: Sequence[str] = ("--num-cpus=2",), port: int | None = None, **changes: str) -> Iterator[RayHead]:
    """Runs while the block does. Sockets lie below its folder: the path has to be short."""
    folder = Path(tempfile.mkdtemp(prefix="lrm-", dir="/tmp"))
    port, dashboard = port or free_port(), free_port()
    head = RayHead(f"http://127.0.0.1:{dashboard}", f"127.0.0.1:{port}", make_token(folder / "token"), folder / "ray")
    start = [RAY, "start", "--head", "--block", f"--port={port}", f"--temp-dir={head.folder}", *options]
    start += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}"]
    start += ["--object-store-memory=100000000", f"--ray-client-server-port={free_port()}"]
    # jobs start through the node's agent, which takes a fixed port otherwise: another Ray of this machine may have it
    start += [f"--dashboard-agent-listen-port={free_port()}"]
    with running(start, **head.known(), **changes) as process:
        try:
            wait_for_answer(f"{head.dashboard}/api/version", process)
            yield head
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def another_node(head: RayHead, *options: str, **changes: str) -> contextlib.AbstractContextManager[object]:
    """A second raylet of the cluster, which comes some seconds after this returns.

    It keeps its session in a folder of its own, as another machine does: each node unpacks a job's files anew, and
    would take them from under the job that runs on the other.
    """
    own = tempfile.mkdtemp(prefix="n", dir=head.folder)
    start = [RAY, "start", "--block", f"--address={head.address}", "--node-ip-address=127.0.0.1", *options]
    start += [f"--temp-dir={own}"]
    start += ["--object-store-memory=100000000", f"--dashboard-agent-listen-port={free_port()}"]
    return running(start, **head.known(), **changes)


@contextlib.contextmanager
def running(arguments: Sequence[str], **changes: str) -> Iterator[subprocess.Popen[bytes]]:
    """A `ray start --block` and all that it started; `ray stop` would end every cluster of this user."""
    variables = environment(RAY_USAGE_STATS_ENABLED="0", **changes)
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    with subprocess.Popen(
        arguments, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            yield process
        finally:
            for child in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()


def wait_for_answer(url: str, process: subprocess.Popen[bytes]) -> None:
    """Until the dashboard answers: without a token, with a refusal."""
    for _ in range(300):
        assert process.poll() is None, f"{process.args!r} ended with exit code {process.returncode}"
        try:
            status = requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            assert status == 401
            return
    raise AssertionError(f"{url}: no answer within a minute")
