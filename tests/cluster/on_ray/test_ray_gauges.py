"""The gauges of a training as Prometheus sees them: Debian's `prometheus`, with the configuration that Ray writes."""

from __future__ import annotations

import contextlib
import importlib.resources
import json
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from larmor.cluster.worker.gauges import GAUGES
from tests.ray_head import RayHead, free_port, ray_head
from tests.workbench import larmor_process, tiny, unique_name

PROMETHEUS = shutil.which("prometheus")
ON_A_GPU, AFTER_A_MINUTE = {"larmor_gpu_memory_bytes"}, {"larmor_mfu"}


@contextlib.contextmanager
def prometheus(head: RayHead, folder: Path) -> Iterator[str]:
    """Scrapes the cluster; its address."""
    config = head.folder / "session_latest" / "metrics" / "prometheus" / "prometheus.yml"
    address = f"127.0.0.1:{free_port()}"
    command = [str(PROMETHEUS), f"--config.file={config}", f"--storage.tsdb.path={folder}"]
    with subprocess.Popen(
        [*command, f"--web.listen-address={address}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            yield f"http://{address}"
        finally:
            process.kill()


def ask(address: str, query: str) -> dict[tuple[str, str], float]:
    """(name, value of the label beside run and experiment) → value now."""
    with contextlib.suppress(requests.ConnectionError):
        answer = requests.get(f"{address}/api/v1/query", {"query": query}, timeout=5).json()
        return {
            (row["metric"]["__name__"], row["metric"].get("term") or row["metric"].get("metric") or ""): float(
                row["value"][1]
            )
            for row in answer["data"]["result"]
        }
    return {}


def empty_panels(address: str, name: str) -> set[str]:
    """Panels of the dashboard whose first query has no answer, for the experiment `name`."""
    file = importlib.resources.files("larmor.cluster.on_ray") / "kubernetes" / "monitoring" / "dashboard.json"
    found = set()
    for panel in json.loads(file.read_text())["panels"]:
        query = panel["targets"][0]["expr"].replace("$experiment", name).replace("$run", ".*")
        answer = requests.get(f"{address}/api/v1/query", {"query": query}, timeout=5).json()
        if not answer["data"]["result"]:
            found.add(panel["title"])
    return found


@pytest.mark.slow
@pytest.mark.skipif(PROMETHEUS is None, reason="needs Prometheus: apt-get install prometheus")
def test_prometheus_sees_a_training_while_it_runs(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    name = unique_name("watched")
    arguments = tiny(
        name,
        tiny_heads,
        "s3://larmor",
        "training.num_steps=100000",
        "training.log_every=10",
        "training.validate_every=20",
        "training.checkpoint_every=20",
        "cluster.num_workers=1",
    )
    with (
        ray_head() as head,
        prometheus(head, tmp_path) as address,
        larmor_process("train", *arguments, "--address", head.address, **head.known()) as process,
    ):
        ours = f'{{__name__=~"ray_larmor_.*",run="{name}",experiment="{name}"}}'
        wanted = {f"ray_{gauge.name}" for gauge in GAUGES if gauge.name not in ON_A_GPU | AFTER_A_MINUTE}
        seen: dict[tuple[str, str], float] = {}
        for _ in range(120):
            seen = ask(address, ours)
            if wanted <= {name for name, _ in seen}:
                break
            assert process.poll() is None, process.communicate()
            time.sleep(1)
        assert wanted <= {name for name, _ in seen}
        assert seen["ray_larmor_running", ""] == 1
        assert seen["ray_larmor_step", ""] >= 20
        assert seen["ray_larmor_validation", "psnr"] > 0
        shares = [value for (name, _), value in seen.items() if name == "ray_larmor_gradient_share"]
        assert sum(shares) == pytest.approx(1)
        assert empty_panels(address, name) <= {"GPU: busy", "GPU: memory", "GPU: share of its peak"}
        process.terminate()
        said, _ = process.communicate()
        for _ in range(60):
            if not ask(address, ours):
                break
            time.sleep(1)
        assert ask(address, ours) == {}, "the series end with the training"
    assert f"dashboard: {head.dashboard} (token: in {head.token})" in said
