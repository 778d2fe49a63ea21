"""`larmor submit`, `status` and `stop` against a real, separately started Ray cluster with token authentication."""

from __future__ import annotations

import signal
import subprocess
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from cluster.job_log import Patience, follow
from cluster.jobs import Jobs, exit_code
from cluster.run_folder import RunFolder
from storage.embedded_store import EmbeddedStore
from storage.errors import InputError
from tests.leaks import contents, leaks, store_keys
from tests.ray_head import RayHead, free_port, make_token, ray_head
from tests.tcp_relay import TcpRelay
from tests.workbench import command, environment, larmor, succeed, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = ("training.num_steps=4", "training.checkpoint_every=4", "training.validate_every=4", "cluster.num_workers=1")
LINES = 40


@pytest.fixture(scope="module")
def head(embedded_store: EmbeddedStore) -> Iterator[RayHead]:
    """A cluster that has the store's keys in its environment, as a pod gets them from a secret."""
    with ray_head(**store_keys(embedded_store)) as head:
        yield head


@pytest.fixture
def jobs(head: RayHead, monkeypatch: pytest.MonkeyPatch) -> Jobs:
    """The cluster's jobs, asked by somebody who has the token."""
    for name, value in head.known().items():
        monkeypatch.setenv(name, value)
    return Jobs(head.dashboard)


def start_script(jobs: Jobs, script: str) -> str:
    name = unique_name("script")
    jobs.client.submit_job(entrypoint=f"exec python -u -c {script!r}", submission_id=name)
    return name


def submitting(arguments: Sequence[str], **changes: str) -> subprocess.Popen[str]:
    """The command in a process of its own; its first line says that the job is there."""
    return subprocess.Popen(
        command(*arguments), env=environment(**changes), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_job_trains_a_second_submission_comes_back_to_it_strangers_are_refused_and_no_secret_is_left(
    head: RayHead, jobs: Jobs, tiny_heads: str, embedded_store: EmbeddedStore, tmp_path: Path, store_environment: object
) -> None:
    name = unique_name("job")
    arguments = ("submit", *tiny(name, tiny_heads, OUTPUT, *SCHEDULE), "--address", head.dashboard)
    keys = store_keys(embedded_store)
    with submitting(arguments, **head.known(), **keys) as first:
        assert first.stdout is not None
        assert first.stderr is not None
        assert first.stdout.readline() == f"submitted as job '{name}'\n"
        with submitting(arguments, **head.known()) as interrupted:
            assert interrupted.stdout is not None
            interrupted.stdout.readline()
            interrupted.send_signal(signal.SIGINT)
            _, told = interrupted.communicate(timeout=60)
            assert interrupted.returncode == 130
            assert f"job '{name}' goes on; the same command comes back to it" in told
            assert "Traceback" not in told
        another = larmor(*arguments, "loss.a=7", **head.known())
        assert another.returncode == 1
        assert "another experiment runs as job" in another.stderr
        assert "it differs in loss.a;" in another.stderr
        strangers = [
            larmor(*arguments, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN_PATH=str(make_token(tmp_path / "wrong"))),
            larmor(*arguments, RAY_AUTH_MODE="disabled"),
        ]
        for stranger in strangers:
            assert stranger.returncode == 1
            assert "refuses the token: put the cluster's token into ~/.ray/auth_token" in stranger.stderr
            assert "Traceback" not in stranger.stderr
        second = succeed(*arguments, **head.known())
        log, complaints = first.communicate(timeout=60)
        assert first.returncode == 0
    assert second == f"job '{name}' runs already; this is its log\n{log}"
    assert "best checkpoint: step      4/4" in log
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert (run.result() or {})["state"] == "finished"
    told = succeed("status", name, "--address", head.dashboard, **head.known())
    assert told.startswith(f"{name}: succeeded, submitted ")
    assert f"results: {OUTPUT}/runs/{name}" in told

    secrets = [keys["AWS_ACCESS_KEY_ID"], keys["AWS_SECRET_ACCESS_KEY"], head.token.read_text()]
    texts = {"output": log + complaints, "job": repr(jobs.get(name)), "status": told}
    assert leaks(secrets, [head.folder, run.store], texts) == []
    assert f"job-driver-{name}.log" in " ".join(path for path, _ in contents(head.folder)), "Ray's notes were searched"


def test_a_job_that_fails_fails_the_command_and_can_be_submitted_again(
    head: RayHead, store_environment: dict[str, str]
) -> None:
    arguments = tiny(unique_name("job"), "s3://larmor/there-is-none", OUTPUT, *SCHEDULE)
    for _ in range(2):
        done = larmor("submit", *arguments, "--address", head.dashboard, **head.known())
        assert done.returncode == 1
        assert "no data set is there" in done.stdout
        assert done.stdout.startswith("submitted as job")


def test_the_exit_code_is_the_jobs_and_its_log_is_shown_as_it_is(jobs: Jobs) -> None:
    """A script stands for a training: what is asked here is what comes between it and the user."""
    failed = start_script(jobs, "import sys; print('[bold]out of luck', flush=True); sys.exit(7)")
    shown: list[str] = []
    assert exit_code(follow(jobs, failed, shown.append)) == 7
    assert "".join(shown) == "[bold]out of luck\n"


def test_stop_asks_first(head: RayHead, jobs: Jobs) -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: (print('saved'), sys.exit())); "
        "print('training'); time.sleep(600)"
    )
    name = start_script(jobs, script)
    shown: list[str] = []
    follower = threading.Thread(target=follow, args=(jobs, name, shown.append))
    follower.start()
    while "training\n" not in shown:
        threading.Event().wait(0.1)
    told = succeed("stop", name, "--address", head.dashboard, **head.known())
    assert told.startswith(f"{name}: stopped, submitted ")
    follower.join(60)
    assert "".join(shown) == "training\nsaved\n"


def test_a_log_is_followed_through_lost_connections_without_a_line_lost_or_repeated(jobs: Jobs) -> None:
    host, port = jobs.address.removeprefix("http://").split(":")
    name = start_script(jobs, f"import time\nfor i in range({LINES}): print('line', i); time.sleep(0.2)")
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
    assert "".join(shown) == "".join(f"line {i}\n" for i in range(LINES))


def test_a_dashboard_that_stays_away_ends_the_following_but_says_how_to_come_back(jobs: Jobs) -> None:
    host, port = jobs.address.removeprefix("http://").split(":")
    name = start_script(jobs, "import time; print('here'); time.sleep(600)")
    with TcpRelay((host, int(port))) as relay:

        def leave(text: str) -> None:
            relay.away = True
            relay.cut()

        with pytest.raises(InputError, match=r"cannot be reached.*the same command comes back to it"):
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
