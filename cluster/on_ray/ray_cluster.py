"""Connecting to Ray: a private local instance with token authentication, or a running cluster."""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

import psutil

from larmor.cluster.on_ray.job_package import write_code, write_source
from larmor.cluster.worker.stopping import Interrupted
from larmor.storage.objects.embedded_store import PROFILE
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.home import data_home

# paths and names only: a key never travels through Ray
_FORWARDED = ("AWS_PROFILE", "AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")

_HOOK = "larmor.cluster.on_ray.network.use_the_nodes_interface"  # by name: ray:// takes nothing else


@contextlib.contextmanager
def connected(
    address: str | None, code: Sequence[str] = (), say: Callable[[str], None] = lambda text: None
) -> Iterator[None]:
    """Connect to the Ray cluster at `address`, or start one of this machine's own and stop it at the end.

    The own instance asks for a token, and its dashboard listens on 127.0.0.1 only. This dashboard runs, since Ray looks
    finished placement groups up there: without it every training ends 11 s later, and a stopped trial
    keeps its resources.

    `code`, folders and .py files of the user's own, goes to the workers of a running cluster; those on this machine
    find it where it lies. `say` is told where the dashboard is, and which file has its token.

    Raises `InputError` if the cluster cannot be reached.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    port = _free_port()
    if address:
        use_known_token()
        _check_reachable(address)
    else:  # all of it before the import: Ray reads these variables only once
        use_own_token()
        os.environ.update(worker_environment())  # a runtime environment would keep processes in stock from being used
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
    import ray

    options: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if address:
        with tempfile.TemporaryDirectory(prefix="larmor-") as folder:
            own = {"worker_process_setup_hook": _HOOK, **_own_source(Path(folder), code)}
            options["runtime_env"] = {"env_vars": worker_environment(), **own}
            try:
                context = ray.init(address=address, **options)
            except (ConnectionError, RuntimeError, ValueError) as error:
                raise InputError(
                    f"the Ray cluster at {address} cannot be reached ({error}); is it running, and does it require "
                    "a token other than the one in ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH?"
                ) from error
    else:
        context = ray.init(
            address="local",
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=port,
            num_cpus=usable_cpus(),
            object_store_memory=128 * 2**20,  # batches never pass through Ray's object store
            **options,
        )
    if context.dashboard_url:
        say(f"dashboard: {describe_dashboard(context.dashboard_url)}")
    orderly = True
    try:
        yield
    except Interrupted:
        orderly = False  # see `leave_at_once`
        raise
    finally:
        if orderly:
            ray.shutdown()


def describe_dashboard(url: str) -> str:
    """Its address, and where its token is; never the token."""
    where = url if "://" in url else f"http://{url}"
    if os.environ.get("RAY_AUTH_MODE") != "token":
        return where
    if os.environ.get("RAY_AUTH_TOKEN"):
        return f"{where} (token: the value of RAY_AUTH_TOKEN)"
    return f"{where} (token: in {os.environ.get('RAY_AUTH_TOKEN_PATH') or _usual_token_file()})"


def leave_at_once(code: int) -> NoReturn:
    """End this process with exit code `code`, and the Ray processes that it has started.

    After an interruption inside `connected`: threads still talk to Ray then, and where Ray is shut down under them it
    ends the process in its own way, with a message of its own and exit code 1.
    """
    for child in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def require_resources(
    bundles: Sequence[dict[str, float]],
    wait_seconds: int,
    what: str = "workers",
    remedy: str = "lower cluster.num_workers or cluster.cpus_per_worker",
) -> None:
    """Wait until the cluster has the resources of all `bundles` in total, asking an autoscaler for them.

    Raises `InputError` after `wait_seconds`, saying what there is and what was asked for: Ray itself would
    wait for ever. `what` the bundles are for, and the `remedy`, stand in its message.
    """
    import ray
    from ray.autoscaler.sdk import request_resources

    needed: dict[str, float] = {}
    for bundle in bundles:
        for name, amount in bundle.items():
            needed[name] = needed.get(name, 0) + amount
    deadline = time.monotonic() + wait_seconds
    asked = False
    while True:
        have = ray.cluster_resources()
        short = {name: amount for name, amount in needed.items() if have.get(name, 0) < amount}
        if not short:
            break
        if not asked:
            request_resources(bundles=list(bundles))
            asked = True
        if time.monotonic() >= deadline:
            lacking = ", ".join(f"{amount:g} {name} (it has {have.get(name, 0):g})" for name, amount in short.items())
            raise InputError(
                f"the cluster cannot hold {len(bundles)} {what}: they need {lacking}; {remedy}, add nodes, or wait "
                "longer with cluster.wait_seconds"
            )
        time.sleep(1)
    if asked:
        request_resources(bundles=[])


def _check_reachable(address: str) -> None:
    """Raises `InputError` unless something listens at HOST:PORT: Ray itself would try for many minutes."""
    host, colon, port = address.removeprefix("ray://").rpartition(":")
    if not colon:
        return  # `auto`: Ray looks for a cluster on this machine, and says at once if there is none
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=10).close()
    except (OSError, ValueError, OverflowError) as error:
        raise InputError(
            f"the Ray cluster at {address} cannot be reached ({error}); is it running, and is the address right?"
        ) from error


def worker_environment() -> dict[str, str]:
    """Environment that workers get beyond their node's own.

    Where the embedded store is, cluster and command line share a machine, and workers find it by the paths of its
    files. Any other S3 is the cluster's own affair: a profile of this machine may not exist there.
    """
    embedded = os.environ.get("AWS_PROFILE") == PROFILE
    forwarded = {name: os.environ[name] for name in _FORWARDED if embedded and name in os.environ}
    return {**forwarded, "OMP_WAIT_POLICY": "PASSIVE"}


def use_known_token() -> str | None:
    """Show the token that this machine has for clusters, if it has one; a cluster that asks for none ignores it.

    Returns the token. Raises `InputError` if the environment names a file that holds none.
    """
    known = os.environ.get("RAY_AUTH_TOKEN")
    if not known and (given := os.environ.get("RAY_AUTH_TOKEN_PATH")):
        _require_token(given)
        known = Path(given).expanduser().read_text().strip()
    file = _usual_token_file()
    if not known and file.is_file():
        known = file.read_text().strip()
    if known:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    return known or None


def _usual_token_file() -> Path:
    return Path.home() / ".ray" / "auth_token"


def _own_source(folder: Path, code: Sequence[str]) -> dict[str, Any]:
    """What brings this very Larmor, and `code`, to the workers, from copies in `folder`; a job has brought them."""
    if "LARMOR_JOB" in os.environ:
        return {}
    return {"py_modules": [str(path) for path in (write_source(folder), *write_code(folder, code))]}


def use_own_token() -> None:
    """Ask for a token on every connection; it lies in a file of the user's own.

    Raises `InputError` if the environment names a file that holds none.
    """
    os.environ["RAY_AUTH_MODE"] = "token"
    if os.environ.get("RAY_AUTH_TOKEN"):
        return
    if given := os.environ.get("RAY_AUTH_TOKEN_PATH"):
        _require_token(given)
        return
    path = data_home() / "ray-token"
    if not _holds_token(path):
        path.unlink(missing_ok=True)
        _make_token(path)
    os.environ["RAY_AUTH_TOKEN_PATH"] = str(path)


def _make_token(path: Path) -> None:
    """Whole or not at all, and once: of several processes all take the token of the first."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".ray-token-") as file:  # for its owner alone
        file.write(secrets.token_hex(32))
        file.flush()
        with contextlib.suppress(FileExistsError):
            os.link(file.name, path)


def _holds_token(path: Path) -> bool:
    try:
        return bool(path.read_text().strip())
    except FileNotFoundError:
        return False


def _require_token(path: str) -> None:
    """Ray would say that a token is missing, and not where it looked."""
    if not _holds_token(Path(path)):
        raise InputError(
            f"{path}: holds no token for Ray, and RAY_AUTH_TOKEN_PATH names it; put the cluster's token there "
            "(`ray get-auth-token --generate` makes one), or unset RAY_AUTH_TOKEN_PATH"
        )


def usable_cpus() -> int | None:
    """The processors that this process may use; where the system cannot tell (macOS), all."""
    process = psutil.Process()
    return len(process.cpu_affinity()) if hasattr(process, "cpu_affinity") else os.cpu_count()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def worker_bundle(cpus: int, use_gpu: bool) -> dict[str, float]:
    """Resources of one worker."""
    bundle = {"CPU": float(cpus)}
    return {**bundle, "GPU": 1.0} if use_gpu else bundle
