"""Volumes over HTTP: what the door lets in, and a real Ray Serve with the model behind it."""

from __future__ import annotations

import asyncio
import gzip
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from larmor.cluster.experiments.experiment import ClusterConfig
from larmor.cluster.experiments.serving_config import ServingConfig
from larmor.cluster.on_ray.http_server import Door, HttpOptions, http_server, running_replicas
from larmor.commands.models import reconstruct
from larmor.commands.serve import serving_cluster
from larmor.recon.serving.server import Listening
from larmor.recon.serving.uploads import Answer, Upload
from larmor.storage.objects.errors import InputError
from tests.helpers import small_recipe, write_heads, write_model

starlette: Any = pytest.importorskip("starlette.requests", reason="pip install 'larmor-mri[http]'")
TOKEN = "of-a-test"
pytestmark = [
    pytest.mark.filterwarnings("ignore::pydantic.PydanticDeprecatedSince20"),  # of Ray Serve
    pytest.mark.filterwarnings("ignore::DeprecationWarning:ray"),
]
KNOWN = {"authorization": f"Bearer {TOKEN}"}


class Replicas:
    """In place of Ray Serve's handle: notes what it is given."""

    def __init__(self) -> None:
        self.uploads: list[Upload] = []
        self.reconstruct = self

    async def remote(self, upload: Upload) -> Answer:
        self.uploads.append(upload)
        return Answer(200, b"image", "application/gzip", "volume.nii.gz", 7)


def ask(
    door: Door, method: str, path: str, headers: dict[str, str], parts: Any = (b"",), query: str = ""
) -> tuple[int, str, dict[str, str]]:
    async def messages() -> AsyncIterator[dict[str, Any]]:
        for part in parts:
            if part is None:
                await asyncio.sleep(60)
            yield {"type": "http.request", "body": part, "more_body": True}
        yield {"type": "http.request", "body": b"", "more_body": False}

    received = messages()
    sent = [(name.encode(), value.encode("latin1")) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "query_string": query.encode(), "headers": sent}
    request = starlette.Request({**scope, "scheme": "http", "server": ("127.0.0.1", 1)}, lambda: anext(received))
    response = asyncio.run(door(request))
    return response.status_code, bytes(response.body).decode(), dict(response.headers)


def door(replicas: Any = None, largest: int = 100, patience: float = 5.0) -> Door:
    return Door(replicas or Replicas(), TOKEN, largest, patience)


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/health", {}, 200),
        ("GET", "/metrics", {}, 401),
        ("POST", "/reconstruct", {}, 401),
        ("POST", "/reconstruct", {"authorization": "Bearer other"}, 403),
        ("POST", "/reconstruct", {"authorization": "Bearer ä"}, 403),
        ("POST", "/reconstruct", {"authorization": TOKEN}, 403),
        ("GET", "/reconstruct", KNOWN, 405),
        ("POST", "/metrics", KNOWN, 405),
        ("GET", "/../etc", KNOWN, 404),
        ("POST", "/reconstruct", KNOWN, 400),
    ],
)
def test_strangers_and_wrong_requests_are_refused(method: str, path: str, headers: dict[str, str], status: int) -> None:
    replicas = Replicas()
    found, text, answered = ask(door(replicas), method, path, headers)
    assert (found, text.count("\n")) == (status, 1)
    assert answered.get("www-authenticate") == ("Bearer" if status == 401 else None)
    assert not replicas.uploads
    assert TOKEN not in text


@pytest.mark.parametrize(
    ("query", "sentence"),
    [("colour=red", "colour is not known"), ("undersample=maybe", "choose true or false")],
)
def test_unknown_wishes_are_refused(query: str, sentence: str) -> None:
    status, text, _ = ask(door(), "POST", "/reconstruct", KNOWN, [b"volume"], query)
    assert status == 400
    assert sentence in text


def test_too_much_and_too_slow_are_refused() -> None:
    status, text, _ = ask(door(), "POST", "/reconstruct", KNOWN, 3 * [b"x" * 40])
    assert (status, "larger than 100 bytes" in text) == (413, True)
    status, text, _ = ask(door(patience=0.05), "POST", "/reconstruct", KNOWN, [b"x", None])
    assert (status, "not sent within 0.05 s" in text) == (408, True)


def test_a_volume_goes_through_and_is_counted() -> None:
    replicas = Replicas()
    entry = door(replicas)
    query = "suffix=.npy&format=h5&field_of_view=model&undersample=true"
    status, text, headers = ask(entry, "POST", "/reconstruct", KNOWN, [b"vol", b"ume"], query)
    assert (status, text) == (200, "image")
    assert headers["content-disposition"] == 'attachment; filename="volume.nii.gz"'
    assert replicas.uploads == [Upload(b"volume", ".npy", "h5", "model", True)]
    ask(entry, "GET", "/nothing", {})
    assert figures(ask(entry, "GET", "/metrics", KNOWN)[1]) == {"slices": 7, "errors": 1}


def figures(text: str) -> dict[str, float]:
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    return {name: found[f"larmor_serve_{name}_total"] for name in ("slices", "errors")}


def test_a_token_that_cannot_be_sent_is_refused() -> None:
    with pytest.raises(InputError, match="the token has spaces"):
        HttpOptions(token="a b")
    assert TOKEN not in repr(HttpOptions(token=TOKEN))


class TestCluster:
    """Replicas and batches: of the experiment's file, or of the command line in their place."""

    @pytest.fixture
    def experiment(self, tmp_path: Path) -> str:
        path = tmp_path / "mine.yaml"
        path.write_text("cluster: {wait_seconds: 7, serving: {replicas: 2, max_replicas: 4, cpus_per_replica: 0.5}}\n")
        return str(path)

    def test_the_file_says_it_and_the_command_line_goes_before(self, experiment: str) -> None:
        assert serving_cluster(None) == ClusterConfig()
        found = serving_cluster(experiment, batch_size=2, replicas=None)
        assert (found.wait_seconds, found.serving.model_dump()) == (
            7,
            {"replicas": 2, "max_replicas": 4, "cpus_per_replica": 0.5, "batch_size": 2},
        )
        assert serving_cluster(experiment, replicas=3).serving.replicas == 3

    def test_limits_that_cross_are_refused(self, experiment: str) -> None:
        with pytest.raises(InputError, match="max_replicas=4 is less than replicas=5; raise it"):
            serving_cluster(experiment, replicas=5)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("http")
    recipe = small_recipe(mask={"kind": "gaussian2d", "sampling_ratio": 0.4})
    return {"model": write_model(folder / "model", recipe), "head": write_heads(folder, ["ann"])[0]}


def test_places_that_cannot_be_used_are_refused(places: dict[str, Path]) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for where, sentence in (
            (Listening("0.0.0.0"), "nothing that is sent is encrypted"),
            (Listening(port=port), "cannot be used"),
        ):
            with pytest.raises(InputError, match=sentence), http_server(places["model"], HttpOptions(where)):
                pass


@pytest.mark.slow
class TestRayServe:
    """A real one: its start takes most of the time."""

    @pytest.fixture(scope="class")
    def url(self, places: dict[str, Path]) -> Iterator[str]:
        with http_server(places["model"], HttpOptions(Listening(port=0), token=TOKEN, largest=2**20)) as url:
            yield url

    def test_a_volume_comes_back_as_larmor_reconstruct_writes_it(
        self, url: str, places: dict[str, Path], tmp_path: Path
    ) -> None:
        content = places["head"].read_bytes()
        assert requests.get(f"{url}/health", timeout=60).text == "ok\n"
        answered = requests.post(f"{url}/reconstruct?suffix=.nii.gz", content, headers=KNOWN, timeout=120)
        assert answered.status_code == 200, answered.text
        (report,) = reconstruct(places["model"], str(places["head"]), tmp_path)
        found, expected = (
            np.asarray(nibabel.Nifti1Image.from_bytes(gzip.decompress(one)).dataobj)
            for one in (answered.content, report.files[0].read_bytes())
        )
        assert np.array_equal(found, expected)

        refused = requests.post(f"{url}/reconstruct", b"garbage", headers=KNOWN, timeout=60)
        assert (refused.status_code, "volume.nii.gz" in refused.text) == (400, True)
        assert requests.post(f"{url}/reconstruct", content, timeout=60).status_code == 401
        assert requests.post(f"{url}/reconstruct", bytes(2**20 + 1), headers=KNOWN, timeout=60).status_code == 413
        counted = figures(requests.get(f"{url}/metrics", headers=KNOWN, timeout=60).text)
        assert counted == {"slices": expected.shape[1], "errors": 3}


@pytest.mark.slow
def test_a_second_replica_comes_while_volumes_wait_and_gives_the_same(places: dict[str, Path]) -> None:
    serving = ServingConfig(max_replicas=2, cpus_per_replica=0.5)
    options = HttpOptions(Listening(port=0), ClusterConfig(serving=serving), token=TOKEN)
    content = places["head"].read_bytes()
    most, answers, over = 0, set(), threading.Event()

    def send(url: str) -> None:
        while not over.is_set():
            answered = requests.post(f"{url}/reconstruct?suffix=.nii.gz", content, headers=KNOWN, timeout=120)
            answers.add((answered.status_code, gzip.decompress(answered.content)))

    with http_server(places["model"], options) as url, ThreadPoolExecutor(6) as threads:
        assert running_replicas() == 1
        sent = [threads.submit(send, url) for _ in range(6)]
        for _ in range(90):
            if (most := max(most, running_replicas())) == 2:
                break
            time.sleep(1)
        time.sleep(3)  # so that the second takes volumes too
        shown = requests.get(f"{url}/metrics", headers=KNOWN, timeout=60).text
        over.set()
        for one in sent:
            one.result()
    assert most == 2
    assert "larmor_serve_replicas 2.0" in shown
    assert [status for status, _ in answers] == [200]  # one answer, whoever gave it
