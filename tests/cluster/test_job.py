"""`larmor submit` to a real, separately started Ray cluster with token authentication."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
import requests

from cluster.run_folder import RunFolder
from tests.workbench import environment, larmor, succeed, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = ("training.num_steps=4", "training.checkpoint_every=4", "training.validate_every=4", "cluster.num_workers=1")


@dataclass(frozen=True)
class Cluster:
    address: str
    token: Path


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_answer(url: str) -> None:
    """Until the dashboard answers: without a token, with a refusal."""
    for _ in range(300):
        try:
            status = requests.get(url, timeout=5).status_code
        except requests.ConnectionError:
            time.sleep(0.2)
        else:
            assert status == 401
            return
    raise AssertionError(f"{url}: no answer within a minute")


@pytest.fixture
def cluster(store_environment: dict[str, str], tmp_path: Path) -> Iterator[Cluster]:
    """A head node of its own, as `ray-cluster.yaml` starts it: loopback dashboard, token required."""
    token = tmp_path / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    port, dashboard = free_port(), free_port()
    variables = environment(RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(token), RAY_USAGE_STATS_ENABLED="0")
    variables["PATH"] = f"{Path(sys.executable).parent}:{variables['PATH']}"
    ray = str(Path(sys.executable).parent / "ray")
    start = [ray, "start", "--head", f"--port={port}", "--num-cpus=2", "--object-store-memory=100000000"]
    start += ["--node-ip-address=127.0.0.1", "--dashboard-host=127.0.0.1", f"--dashboard-port={dashboard}", "--block"]
    temporary = f"/tmp/larmor-test-{os.getpid()}"  # sockets lie below it: the path must be short
    start += [f"--temp-dir={temporary}"]
    with subprocess.Popen(
        start, env=variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as head:
        try:
            wait_for_answer(f"http://127.0.0.1:{dashboard}/api/version")
            yield Cluster(f"http://127.0.0.1:{dashboard}", token)
        finally:
            # at once: `ray stop` would end every cluster of this user
            for process in [*psutil.Process(head.pid).children(recursive=True), head]:
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()
            shutil.rmtree(temporary, ignore_errors=True)


def test_job_trains_and_a_stranger_is_refused(cluster: Cluster, tiny_heads: str, tmp_path: Path) -> None:
    name = unique_name("job")
    arguments = ("submit", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE), "--address", cluster.address)
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token)}
    output = succeed(*arguments, **known)
    assert f"submitted as job 'train-{name}'" in output
    assert "best checkpoint: step      4/4" in output
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert (run.result() or {})["state"] == "finished"

    before = run.store.list()
    wrong = tmp_path / "wrong-token"
    wrong.write_text(secrets.token_hex(32))
    refused = larmor(*arguments, **known | {"RAY_AUTH_TOKEN_PATH": str(wrong)})
    assert refused.returncode == 1
    assert "Traceback" not in refused.stderr
    assert run.store.list() == before


def test_job_that_fails_fails_the_command(cluster: Cluster, tiny_heads: str) -> None:
    missing = "s3://larmor/there-is-none"
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(cluster.token)}
    arguments = tiny(unique_name("job"), missing, OUTPUT, *SCHEDULE)
    done = larmor("submit", *arguments, "--address", cluster.address, **known)
    assert done.returncode == 1
    assert "no data set is there" in done.stdout
    assert "the job failed" in done.stderr
