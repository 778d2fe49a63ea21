"""What travels to a cluster's workers: paths of the embedded store, never a profile or key of this machine."""

from __future__ import annotations

import pytest

from cluster.ray_cluster import worker_environment


def test_embedded_store_is_found_by_paths(store_environment: dict[str, str]) -> None:
    assert store_environment.items() <= worker_environment().items()


def test_nothing_of_this_machines_account_travels(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PROFILE", "CONFIG_FILE", "SHARED_CREDENTIALS_FILE", "ACCESS_KEY_ID", "SECRET_ACCESS_KEY"):
        monkeypatch.setenv(f"AWS_{name}", "mine")
    assert not any(name.startswith("AWS_") for name in worker_environment())
