"""`larmor submit`, `status` and `stop` against a real, separately started Ray cluster with token authentication."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from larmor.cluster.on_ray.job_log import Patience, follow
from larmor.cluster.on_ray.jobs import Jobs, exit_code
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.leaks import contents, leaks, store_keys
from tests.ray_head import RayHead, another_node, free_port, make_token, ray_head
from tests.tcp_relay import TcpRelay
from tests.workbench import larmor, larmor_process, succeed, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = (
    "training.num_steps=4",
    "training.checkpoint_every=4",
    "training.validate_every=4",
    "cluster.num_workers=2",
    "cluster.wait_seconds=200",  # on a busy machine the second node takes its time
)
LINES = 40


@pytest.fixture(scope="module")
def head(embedded_store: EmbeddedStore) -> Iterator[RayHead]:
    """Two nodes that have the store's keys in their environment, as pods get them from a secret."""
    keys = store_keys(embedded_store)
    with ray_head(["--num-cpus=1"], **keys) as head, another_node(head, "--num-cpus=1", **keys):
        yield head


@pytest.fixture
def jobs(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """The cluster's jobs, asked by somebody who has the token."""
    for name, value in head.known().items():
        monkeypatch.setenv(name, value)
    return Jobs(head.dashboard)


def start_script(jobs: Jobs, script: str) -> str:
    """A job of one line of Python, which stands for a training where only what is around it is asked about."""
    deadline = time.monotonic() + 240
    while True:
        name = unique_name("script")
        try:
            jobs.client.submit_job(entrypoint=f"exec python -u -c {shlex.quote(script)}", submission_id=name)
        except RuntimeError as error:  # on a busy machine the head's agent starts long after its dashboard
            if "No available agent" not in str(error) or time.monotonic() > deadline:
                raise
            time.sleep(1)
            continue
        if _has_begun(jobs, name) or time.monotonic() > deadline:
            return name


def _has_begun(jobs: Jobs, name: str) -> bool:
    """Whether Ray has started the job's process within a minute: on a busy machine it may never do so."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        if "Running entrypoint for job " in jobs.client.get_job_logs(name):
            return True
        time.sleep(0.1)
    return False


def output_of(shown: Sequence[str]) -> str:
    """What the job itself wrote; Ray's lines stand before it."""
    return "".join(shown).partition("Running entrypoint for job ")[2].partition("\n")[2]


def first_line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def test_a_job_trains_on_two_nodes_and_no_secret_is_left(
    head: RayHead, jobs: Jobs, tiny_heads: str, embedded_store: EmbeddedStore, store_environment: object
) -> None:
    name = unique_name("job")
    arguments = ("submit", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE), "--address", head.dashboard)
    keys = store_keys(embedded_store)
    done = larmor(*arguments, **head.known(), **keys)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"submitted as job '{name}'\n")
    assert "best checkpoint: step      4/4" in done.stdout
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert run.result() is not None
    told = succeed("status", name, "--address", head.dashboard, **head.known())
    assert told.startswith(f"{name}: succeeded, submitted ")
    assert f"results: {OUTPUT}/runs/{name}" in told
    assert f"{name}: succeeded, submitted " in succeed("jobs", "--address", head.dashboard, **head.known())
    log = succeed("logs", name, "--address", head.dashboard, **head.known())
    assert "best checkpoint: step      4/4" in log

    secrets = [keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], head.token.read_text()]
    texts = {"output": done.stdout + done.stderr, "job": repr(jobs.get(name)), "status": told}
    assert leaks(secrets, [head.folder, run.store], texts) == []
    assert f"job-driver-{name}.log" in " ".join(path for path, _ in contents(head.folder)), "Ray's notes were searched"


def test_a_running_job_is_come_back_to_left_alone_and_stopped(
    head: RayHead, jobs: Jobs, tiny_heads: str, store_environment: object
) -> None:
    """It asks for more workers than there are, so that it waits until it is stopped."""
    many = ("cluster.num_workers=64", "training.global_batch_size=64", "cluster.wait_seconds=600")
    experiment = tiny(unique_name("job"), tiny_heads, OUTPUT, *many)
    name = load_sweep_experiment(experiment[0], experiment[1:]).name
    arguments = ("submit", *experiment, "--address", head.dashboard)
    with larmor_process(*arguments, **head.known()) as first:
        assert first_line(first) == f"submitted as job '{name}'\n"
        with larmor_process(*arguments, **head.known()) as second:
            assert first_line(second) == f"job '{name}' runs already; this is its log\n"
            second.send_signal(signal.SIGINT)
            _, told = second.communicate(timeout=60)
        assert second.returncode == 130
        assert f"job '{name}' keeps running; the same command follows it again" in told
        assert "Traceback" not in told
        other = load_sweep_experiment(experiment[0], [*experiment[1:], "loss.a=7"]).training_part()
        with pytest.raises(InputError, match=r"another experiment runs as job .* it differs in loss\.a;"):
            jobs.submit("train", other)
        while f"run: {OUTPUT}/runs/{name}" not in (line := first_line(first)):
            assert line, "the log ended before the job's first line"
        assert succeed("stop", name, "--address", head.dashboard, **head.known()).startswith(f"{name}: stopped, ")
        first.communicate(timeout=60)
    assert first.returncode == 1


def test_an_interrupt_that_comes_with_an_answer_is_not_lost() -> None:
    async def talking(name: str) -> AsyncIterator[str]:
        for number in range(1000):
            await asyncio.sleep(0)
            if number == 5:
                os.kill(os.getpid(), signal.SIGINT)
            yield f"{number}"

    running = SimpleNamespace(start_time=1, status=SimpleNamespace(is_terminal=lambda: False))
    client = SimpleNamespace(tail_job_logs=talking)
    jobs: Any = SimpleNamespace(get=lambda name: running, find=lambda name: running, client=client)
    shown: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        follow(jobs, "job", shown.append, Patience(pause=0.01))
    assert len(shown) < 10


@pytest.mark.parametrize("token", ["wrong", "none"])
def test_a_stranger_is_refused(head: RayHead, tmp_path: Path, token: str) -> None:
    shown = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(make_token(tmp_path / "wrong"))}
    variables: dict[str, Any] = shown if token == "wrong" else {"RAY_AUTH_MODE": "disabled"}
    done = larmor("submit", "laptop", "--address", head.dashboard, **variables)
    assert done.returncode == 1
    assert "refuses the token: put the cluster's token into ~/.ray/auth_token" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_fails_fails_the_command_and_can_be_submitted_again(
    head: RayHead, store_environment: dict[str, str]
) -> None:
    arguments = tiny(unique_name("job"), "s3://larmor/there-is-none", OUTPUT, *SCHEDULE)
    done = larmor("submit", *arguments, "--address", head.dashboard, **head.known())
    assert done.returncode == 1
    assert "there is no data set here" in done.stdout
    again = succeed("submit", *arguments, "--address", head.dashboard, "--detach", **head.known())
    assert again.startswith("submitted as job")
    assert len(again.splitlines()) == 1


def test_the_exit_code_is_the_jobs_and_its_log_is_shown_as_it_is(jobs: Jobs) -> None:
    failed = start_script(jobs, "import sys; print('[bold]out of luck', flush=True); sys.exit(7)")
    shown: list[str] = []
    assert exit_code(follow(jobs, failed, shown.append)) == 7
    assert output_of(shown) == "[bold]out of luck\n"


def test_stop_asks_first(head: RayHead, jobs: Jobs) -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit())); "
        "print('training'); time.sleep(600)"
    )
    name = start_script(jobs, script)
    shown: list[str] = []
    follower = threading.Thread(target=follow, args=(jobs, name, shown.append))
    follower.start()
    while output_of(shown) != "training\n":
        threading.Event().wait(0.1)
    told = succeed("stop", name, "--address", head.dashboard, **head.known())
    assert told.startswith(f"{name}: stopped, submitted ")
    follower.join(60)
    assert output_of(shown) == "training\nsaved\n"


def test_a_log_is_followed_through_lost_connections_without_a_line_lost_or_repeated(jobs: Jobs) -> None:
    host, port = jobs.address.removeprefix("http://").split(":")
    name = start_script(jobs, f"import time; [(print('line', i), time.sleep(0.2)) for i in range({LINES})]")
    shown: list[str] = []
    with TcpRelay((host, int(port))) as relay:
        through = Jobs(f"http://{relay.address[0]}:{relay.address[1]}")

        def disturb(text: str) -> None:
            shown.append(text)
            number = len("".join(shown).splitlines())
            relay.away = number >= LINES // 2 and not back.is_set()
            if relay.away:
                threading.Timer(1.0, come_back).start()
            if number % 10 == 0 or relay.away:
                relay.cut()

        back = threading.Event()

        def come_back() -> None:
            back.set()
            relay.away = False

        follow(through, name, disturb, Patience(pause=0.1))
        assert relay.accepted > 4
    assert output_of(shown) == "".join(f"line {i}\n" for i in range(LINES))


def test_a_dashboard_that_stays_away_ends_the_following_but_says_how_to_come_back(jobs: Jobs) -> None:
    host, port = jobs.address.removeprefix("http://").split(":")
    name = start_script(jobs, "import time; print('here'); time.sleep(600)")
    with TcpRelay((host, int(port))) as relay:

        def leave(text: str) -> None:
            relay.away = True
            relay.cut()

        with pytest.raises(InputError, match=r"cannot be reached.*the same command follows it again"):
            follow(Jobs(f"http://{relay.address[0]}:{relay.address[1]}"), name, leave, Patience(away=1.0, pause=0.1))
    jobs.client.stop_job(name)


@pytest.mark.parametrize("address", ["cluster", "127.0.0.1:8265", "http://", "ray://127.0.0.1:10001"])
def test_an_address_that_is_no_dashboards_url_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"is not a dashboard's URL; write http://HOST:PORT"):
        Jobs(address)


def test_an_address_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    address = f"http://127.0.0.1:{free_port()}"
    done = larmor("submit", "laptop", "--address", address, timeout=120, LARMOR_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"the cluster at {address} cannot be reached" in done.stderr
    assert "is its dashboard up?" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_job_that_nobody_knows_is_named_with_those_there_are(jobs: Jobs) -> None:
    with pytest.raises(InputError, match=r"there is no job 'nobody'; there is "):
        jobs.get("nobody")
