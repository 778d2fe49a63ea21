"""Code of one's own on a cluster whose nodes do not have it: trained, resumed, searched, submitted as a job."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.embedded_store import EmbeddedStore
from tests.leaks import store_keys
from tests.own_lab import write_lab
from tests.ray_head import RayHead, ray_head
from tests.workbench import larmor_process, succeed, unique_name

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
OUTPUT = "s3://larmor"
METRIC = "mylab.parts:largest_error"
STEPS = 1200
TRAINING = (f"training.num_steps={STEPS}", "training.validate_every=100", "training.checkpoint_every=100")
TRIAL = ("training.num_steps=4", "training.validate_every=4", "training.checkpoint_every=4")


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
        "cluster.num_workers=1",
    )
    known, run = head.known(), RunFolder(f"{OUTPUT}/runs/{name}")
    train = ("train", "--address", head.address, experiment, f"name={name}", *few, *TRAINING)
    with larmor_process(*train, **known) as process:
        step = _kill_a_worker_that_has_no_code_here(head, run, tmp_path / "mylab")
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, output[-4000:] + errors[-4000:]
    assert 0 < step < STEPS
    assert [row["step"] for row in run.history()] == list(range(1, STEPS + 1))
    attempts = run.store.list("attempts")
    assert len(attempts) > 1, "started again, from a checkpoint"
    assert run.best(f"val/{METRIC}", False).metrics[f"val/{METRIC}"] > 0

    (tmp_path / "away").rename(tmp_path / "mylab")
    sweep = (experiment, f"name={name}", *few, *TRIAL, "sweep.num_trials=3")
    told = succeed("sweep", "--address", head.address, *sweep, timeout=600, **known)
    assert f"val/{METRIC}" in told
    succeed("pull", f"{OUTPUT}/sweeps/{name}", "--to", "best", "--prefer", METRIC)
    record = json.loads((tmp_path / "best" / "metrics.json").read_text())
    assert record["parameters"]["generator.options.width"] in (8, 16, 32)
    assert record["metrics"][f"val/{METRIC}"] > 0
    trusted = ("--trust-code", "mylab")
    succeed("reconstruct", "best", tiny_heads, "--to", "images", *trusted)
    told = succeed("evaluate", "best", tiny_heads, "--split", "validation", "--metric", METRIC, *trusted)
    assert "largest_error" in told
    succeed("export", "best", "--to", "best.onnx", *trusted)

    succeed("report", f"{OUTPUT}/sweeps/{name}", "--to", "report.html", "--evaluation", "best/evaluation", *trusted)
    page = (tmp_path / "report.html").read_text()
    assert "largest_error: lower is better" in page
    assert "No pictures: " not in page

    job = f"{name}-job"
    succeed("submit", experiment, "--address", head.dashboard, f"name={job}", *few, *TRIAL, timeout=600, **known)
    origin = json.loads(RunFolder(f"{OUTPUT}/runs/{job}").store.read("origin.json"))
    assert origin["code"] == json.loads(run.store.read("origin.json"))["code"]


def _kill_a_worker_that_has_no_code_here(head: RayHead, run: RunFolder, code: Path) -> int:
    """After its first checkpoint, when the folder is gone: who is started again has what travelled alone."""
    step = _first_checkpoint(run)
    code.rename(code.with_name("away"))
    for process in psutil.process_iter(["cmdline"]):
        if "RayTrainWorker" not in " ".join(process.info["cmdline"] or ()):
            continue
        if any(str(head.folder) in " ".join(parent.cmdline()) for parent in process.parents()):
            process.send_signal(signal.SIGKILL)
            return step
    raise AssertionError("there is no worker to kill")


def _first_checkpoint(run: RunFolder) -> int:
    for _ in range(3600):
        if (checkpoint := run.latest()) is not None:
            return checkpoint.step
        time.sleep(0.05)
    raise AssertionError("no checkpoint within three minutes")
