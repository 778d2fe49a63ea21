"""Fixtures that several packages share."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from storage.embedded_store import EmbeddedStore


@pytest.fixture(scope="session")
def embedded_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedStore]:
    """One real object store for the whole run, with the bucket `larmor`. Sets nothing globally."""
    store = EmbeddedStore(tmp_path_factory.mktemp("embedded") / "store")
    store.start()
    yield store
    store.stop()


@pytest.fixture
def store_environment(embedded_store: EmbeddedStore, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """The environment in which S3 clients find `embedded_store`, and no other AWS setting counts."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    environment = embedded_store.environment()
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    yield environment
    S3FileSystem.clear_instance_cache()
