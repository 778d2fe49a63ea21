"""Code of one's own on a cluster whose nodes do not have it: trained, resumed, searched, submitted as a job."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.embedded_store import EmbeddedStore
from tests.leaks import store_keys
from tests.own_lab import write_lab
from tests.ray_head import RayHead, ray_head
from tests.workbench import succeed, unique_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OUTPUT = "s3://larmor"


@pytest.fixture(scope="module")
def head(embedded_store: EmbeddedStore) -> Iterator[RayHead]:
    """A head that has the store's keys in its environment: a job runs with what it knows."""
    with ray_head(("--num-cpus=2",), **store_keys(embedded_store)) as running:
        yield running


def test_it_travels_to_workers_sweeps_and_jobs(
    head: RayHead, tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    experiment, name = str(write_lab(tmp_path)), unique_name("own")
    os.chdir(tmp_path)
    few = (
        f"data.url={tiny_heads}",
        f"output_url={OUTPUT}",
        "data.crop=[64,64]",
        "training.global_batch_size=2",
        "training.validation_slices=2",
        "training.validate_every=4",
        "training.checkpoint_every=4",
        "cluster.num_workers=1",
    )
    known = head.known()
    for steps in (4, 8):
        succeed(
            "train", "--address", head.address, experiment, f"name={name}", *few, f"training.num_steps={steps}", **known
        )
    run = RunFolder(f"{OUTPUT}/runs/{name}")
    assert [row["step"] for row in run.history()] == list(range(1, 9)), "resumed, not begun again"

    succeed("sweep", experiment, f"name={name}", *few, "training.num_steps=4", "sweep.num_trials=2", timeout=600)
    succeed("pull", f"{OUTPUT}/sweeps/{name}", "--to", "best")
    succeed("reconstruct", "best", tiny_heads, "--to", "images", "--trust-code", "mylab")
    succeed("export", "best", "--to", "best.onnx", "--trust-code", "mylab")

    job = f"{name}-job"
    submitted = (f"name={job}", *few, "training.num_steps=4")
    succeed("submit", experiment, "--address", head.dashboard, *submitted, timeout=600, **known)
    origin = json.loads(RunFolder(f"{OUTPUT}/runs/{job}").store.read("origin.json"))
    assert origin["code"] == json.loads(run.store.read("origin.json"))["code"]
