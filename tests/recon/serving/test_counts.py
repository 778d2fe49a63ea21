"""Prometheus' own parser reads what a server has done; without the token nobody does."""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from larmor.recon.serving.counts import MetricsServer
from larmor.recon.serving.server import Listening, ScanServer
from larmor.storage.objects.errors import InputError
from tests.recon.models.test_reconstruct import make_model
from tests.recon.serving.clients import exchange, scan
from tests.recon.serving.test_serving import HEADER, slices

pytestmark = pytest.mark.filterwarnings("ignore::xsdata.exceptions.ConverterWarning")  # of the clients


@pytest.fixture(scope="module")
def servers() -> Iterator[tuple[ScanServer, MetricsServer]]:
    scans = ScanServer(make_model(trained=True), Listening(port=0))
    metrics = MetricsServer(scans.counts, scans.is_alive)
    yield scans, metrics
    metrics.close()
    scans.close()


def get(url: str, token: str | None = None) -> tuple[int, str]:
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_what_was_done_is_counted(servers: tuple[ScanServer, MetricsServer]) -> None:
    scans, metrics = servers
    scan(scans.address, HEADER, slices(3))
    exchange(scans.address, [], b"garbage")
    while (answer := get(metrics.url, metrics.token))[0] == 200 and "open_connections 0.0" not in answer[1]:
        time.sleep(0.01)  # the server's side of the last connection is ending
    status, text = answer
    found = {sample.name: sample.value for family in text_string_to_metric_families(text) for sample in family.samples}
    assert status == 200
    assert found["larmor_serve_slices_total"] == 3
    assert found["larmor_serve_slice_seconds_count"] == 3
    assert found["larmor_serve_errors_total"] == 1
    assert found["larmor_serve_open_connections"] == 0


@pytest.mark.parametrize("token", [None, "wrong", "ä"])
def test_the_token_is_needed(servers: tuple[ScanServer, MetricsServer], token: str | None) -> None:
    status, text = get(servers[1].url, token)
    assert status == 401
    assert "larmor_serve" not in text


def test_health_needs_none_and_knows_when_the_server_ended() -> None:
    scans = ScanServer(make_model(), Listening(port=0))
    metrics = MetricsServer(scans.counts, scans.is_alive)
    try:
        url = metrics.url.replace("/metrics", "/health")
        assert get(url) == (200, "ok\n")
        scans.close()
        scans.wait()
        assert get(url)[0] == 503
        assert get(url + "/other")[0] == 404
    finally:
        metrics.close()


def test_a_port_or_token_that_cannot_be_used_is_refused(servers: tuple[ScanServer, MetricsServer]) -> None:
    scans, metrics = servers
    port = int(metrics.url.split(":")[2].split("/")[0])
    with pytest.raises(InputError, match=f"--metrics-port {port}"):
        MetricsServer(scans.counts, scans.is_alive, port)
    with pytest.raises(InputError, match="token"):
        MetricsServer(scans.counts, scans.is_alive, 0, "a b")
