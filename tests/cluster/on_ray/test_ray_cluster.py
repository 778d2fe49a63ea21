"""What travels to a cluster's workers: paths of the embedded store, never a profile or key of this machine; and what a
cluster of this machine's own is like: its token, its processors."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from larmor.cluster.on_ray.ray_cluster import (
    describe_dashboard,
    usable_cpus,
    use_known_token,
    use_own_token,
    worker_environment,
)
from larmor.storage.objects.errors import InputError


def test_embedded_store_is_found_by_paths(store_environment: dict[str, str]) -> None:
    assert store_environment.items() <= worker_environment().items()


def test_nothing_of_this_machines_account_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "CONFIG_FILE", "SHARED_CREDENTIALS_FILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "mine")
    assert not any(name.startswith("AWS_") for name in worker_environment())


class TestToken:
    """What this machine's own clusters ask for."""

    @pytest.fixture(autouse=True)
    def _home(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("LARMOR_HOME", str(tmp_path / "home"))
        monkeypatch.setenv("HOME", str(tmp_path))
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "RAY_AUTH_MODE"):
            monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
            monkeypatch.delenv(name)

    def test_it_is_made_once_and_for_its_owner_alone(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        use_own_token()
        path = Path(os.environ["RAY_AUTH_TOKEN_PATH"])
        token = path.read_text()
        assert len(token) == 64
        assert path.stat().st_mode & 0o777 == 0o600
        assert [item.name for item in path.parent.iterdir()] == [path.name], "nothing else is left there"
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        use_own_token()
        assert path.read_text() == token

    def test_an_empty_one_is_made_anew(self, tmp_path: Path) -> None:
        """A process was killed before it had written it."""
        (tmp_path / "home").mkdir()
        (tmp_path / "home" / "ray-token").touch()
        use_own_token()
        assert len((tmp_path / "home" / "ray-token").read_text()) == 64

    def test_a_kill_leaves_no_empty_one(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def killed(size: int) -> str:
            raise KeyboardInterrupt

        monkeypatch.setattr(secrets, "token_hex", killed)
        with pytest.raises(KeyboardInterrupt):
            use_own_token()
        assert not (tmp_path / "home" / "ray-token").exists()

    def test_people_are_told_where_it_is_and_not_what_it_is(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert describe_dashboard("10.0.0.1:8265") == "http://10.0.0.1:8265", "a cluster that asks for none"
        use_own_token()
        file = tmp_path / "home" / "ray-token"
        assert describe_dashboard("127.0.0.1:8265") == f"http://127.0.0.1:8265 (token: in {file})"
        monkeypatch.setenv("RAY_AUTH_TOKEN", "hidden")
        assert describe_dashboard("http://head:1") == "http://head:1 (token: the value of RAY_AUTH_TOKEN)"
        monkeypatch.delenv("RAY_AUTH_TOKEN")
        monkeypatch.delenv("RAY_AUTH_TOKEN_PATH")
        assert describe_dashboard("head:1") == f"http://head:1 (token: in {tmp_path / '.ray' / 'auth_token'})"

    @pytest.mark.parametrize("use", [use_own_token, use_known_token])
    @pytest.mark.parametrize("content", ["", "\n", None])
    def test_a_given_file_without_a_token_is_refused(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, use: Callable[[], None], content: str | None
    ) -> None:
        given = tmp_path / "given"
        if content is not None:
            given.write_text(content)
        monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(given))
        with pytest.raises(InputError, match=r"given: holds no token .*RAY_AUTH_TOKEN_PATH"):
            use()


def test_processors_are_counted_where_the_system_knows_no_affinity(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    assert 1 <= (usable_cpus() or 0) <= (os.cpu_count() or 0)
    monkeypatch.delattr(psutil.Process, "cpu_affinity")
    assert usable_cpus() == os.cpu_count()
