"""Training across two machines: network namespaces with addresses of their own, one of them without Larmor's source."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from larmor.cluster.on_ray.job_package import package_folder
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.embedded_store import EmbeddedStore
from tests.leaks import store_keys
from tests.ray_head import RAY, make_token, running
from tests.tcp_relay import TcpRelay
from tests.workbench import command, environment, tiny, unique_name

pytestmark = pytest.mark.slow
OUTPUT = "s3://larmor"
TAG = f"lm{os.getpid() % 10000}"  # names of interfaces have at most 15 letters
NETWORK = f"10.213.{os.getpid() % 250}"
GATEWAY, HEAD, WORKER = f"{NETWORK}.254", f"{NETWORK}.1", f"{NETWORK}.2"


def ip(arguments: str) -> None:
    subprocess.run(["ip", *arguments.split()], check=True, capture_output=True, timeout=30)


@pytest.fixture
def machines() -> Iterator[dict[str, list[str]]]:
    """What stands before a command that is to run at an address; both machines hang on a bridge of this one."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        pytest.skip("network namespaces need root and iproute2")
    with contextlib.ExitStack() as undo:
        try:
            ip(f"link add {TAG} type bridge")
            undo.callback(ip, f"link del {TAG}")
            ip(f"addr add {GATEWAY}/24 dev {TAG}")
            ip(f"link set {TAG} up")
            for number, address in enumerate((HEAD, WORKER)):
                name = f"{TAG}n{number}"
                ip(f"netns add {name}")
                undo.callback(ip, f"netns del {name}")
                ip(f"link add {TAG}v{number} type veth peer name eth0 netns {name}")
                ip(f"link set {TAG}v{number} master {TAG} up")
                ip(f"-n {name} addr add {address}/24 dev eth0")
                ip(f"-n {name} link set eth0 up")
                ip(f"-n {name} link set lo up")
                ip(f"-n {name} route add default via {GATEWAY}")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"no network namespaces here: {error.stderr.decode().strip()}")
        # the second machine has no checkout: packages are hidden from it, not the libraries beside them
        hide = f"mount -t tmpfs none {package_folder()}"
        bare = ["unshare", "--mount", "sh", "-c", f'{hide}; exec ip netns exec {TAG}n1 "$@"', "sh"]
        yield {HEAD: ["ip", "netns", "exec", f"{TAG}n0"], WORKER: bare}


def test_two_workers_train_together(
    machines: dict[str, list[str]], tiny_heads: str, embedded_store: EmbeddedStore, store_environment: object
) -> None:
    name = unique_name("machines")
    keys = store_keys(embedded_store)
    place = urlsplit(keys["AWS_ENDPOINT_URL"])
    assert place.hostname is not None
    assert place.port is not None
    folder = Path(tempfile.mkdtemp(prefix="lrm-", dir="/tmp"))
    known = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(make_token(folder / "token"))}
    start = [RAY, "start", "--block", "--num-cpus=1", "--object-store-memory=100000000"]
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        relay = stack.enter_context(TcpRelay((place.hostname, place.port), GATEWAY))
        keys["AWS_ENDPOINT_URL"] = f"http://{relay.address[0]}:{relay.address[1]}"
        head = [*machines[HEAD], *start, "--head", "--port=6379", "--dashboard-host=127.0.0.1"]
        stack.enter_context(running([*head, f"--temp-dir={folder}/head"], **keys, **known))
        worker = [*machines[WORKER], *start, f"--address={HEAD}:6379", f"--temp-dir={folder}/worker"]
        time.sleep(10)  # a node that comes before its head gives up
        stack.enter_context(running(worker, **keys, **known, PYTHONPATH=""))
        schedule = ("training.num_steps=4", "training.checkpoint_every=4", "training.validate_every=4")
        more = (*schedule, "cluster.num_workers=2", "cluster.wait_seconds=60", "training.zero_stage=1")
        train = command("train", *tiny(name, tiny_heads, OUTPUT, *more), "--address", f"{HEAD}:6379")
        done = subprocess.run(
            [*machines[HEAD], *train],
            env=environment(**keys, **known),
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert run.result() is not None
    assert [row["step"] for row in run.history()] == [1, 2, 3, 4]
    latest = run.latest()
    assert latest is not None
    assert {name for name in latest.files if "state-00001-of-00002" in name}, "the bare machine saved its part"
