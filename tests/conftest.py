"""Fixtures that several packages share."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from larmor.storage.objects.embedded_store import EmbeddedStore
from tests import cloud_servers
from tests.faulty_proxy import FaultyProxy, proxied_environment


def pytest_configure() -> None:
    """A shell that starts the tests in its background has interrupts ignored, and what is ignored is inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


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

    yield use_only(embedded_store, monkeypatch)
    S3FileSystem.clear_instance_cache()


def use_only(store: EmbeddedStore, patch: pytest.MonkeyPatch) -> dict[str, str]:
    """Let `s3://` lead to `store`, whatever the environment said before."""
    from s3fs import S3FileSystem

    for name in [name for name in os.environ if name.startswith("AWS_")]:
        patch.delenv(name)
    environment = store.environment()
    for name, value in environment.items():
        patch.setenv(name, value)
    S3FileSystem.clear_instance_cache()
    return environment


@pytest.fixture(scope="session")
def tiny_heads(embedded_store: EmbeddedStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Three synthetic heads, converted to 64×64 slices in the embedded store: the data set's URL."""
    from larmor.storage.conversion.convert import ConvertOptions, convert
    from larmor.storage.examples.phantom import write_phantom
    from larmor.storage.formats.recognise import find_sources

    paths = write_phantom(tmp_path_factory.mktemp("phantoms"), num_subjects=3, seed=0)
    sources = find_sources([str(path) for path in paths])
    held_out = {"validation": ["phantom02"], "test": ["phantom03"]}
    url = "s3://larmor/tiny-heads"
    with pytest.MonkeyPatch.context() as patch:
        use_only(embedded_store, patch)
        convert(sources, url, ConvertOptions(matrix=(64, 64), held_out=held_out))
    return url


@pytest.fixture
def faulty_proxy(
    embedded_store: EmbeddedStore,
    store_environment: dict[str, str],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[FaultyProxy]:
    """What S3 clients go through on their way to `embedded_store`; it injects nothing until it is told to."""
    from s3fs import S3FileSystem

    endpoint = embedded_store.status().endpoint
    assert endpoint is not None
    with FaultyProxy(endpoint) as proxy:
        for name, value in proxied_environment(embedded_store, proxy, tmp_path_factory.mktemp("proxied")).items():
            monkeypatch.setenv(name, value)
        S3FileSystem.clear_instance_cache()
        yield proxy


@pytest.fixture(scope="session")
def google_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which clients find one Google Cloud Storage for the whole run. Sets nothing globally."""
    with cloud_servers.google_server(tmp_path_factory.mktemp("google") / "log") as environment:
        yield environment


@pytest.fixture(scope="session")
def azure_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment in which clients find one Azure Blob Storage for the whole run. Sets nothing globally."""
    with cloud_servers.azure_server(tmp_path_factory.mktemp("azure") / "log") as environment:
        yield environment


@pytest.fixture
def cloud(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], str]:
    """A function that leads the URLs of one protocol (gs, az) to its server: the bucket's URL."""

    def lead(protocol: str) -> str:
        server = request.getfixturevalue("google_server" if protocol == "gs" else "azure_server")
        cloud_servers.use_only(server, monkeypatch)
        return f"{protocol}://{cloud_servers.BUCKET}"

    return lead
