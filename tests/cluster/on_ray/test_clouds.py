"""The main job with data and results in another cloud: convert, train, be killed, resume, sweep, pull."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.examples.phantom import write_phantom
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.workbench import larmor_process, succeed, tiny

LOSSES = ("loss", "critic_loss", "normalized_root_mse", "val/psnr", "val/ssim")
STEPS = 30
SCHEDULE = (
    f"training.num_steps={STEPS}",
    "training.checkpoint_every=10",
    "training.validate_every=10",
    "training.log_every=10",
)
ALONE = (*SCHEDULE, "cluster.num_workers=1")
SPLITS = ("--matrix", "64", "--validation", "phantom02", "--test", "phantom03")

pytestmark = pytest.mark.slow


@pytest.fixture(params=["gs", "az"])
def bucket(request: pytest.FixtureRequest, cloud: Callable[[str], str]) -> str:
    return cloud(request.param)


def losses(run: RunFolder) -> list[tuple[float | None, ...]]:
    return [tuple(row.get(name) for name in LOSSES) for row in run.history()]


def kill_after_a_checkpoint(arguments: tuple[str, ...], run: RunFolder) -> int:
    """Start the command and kill it as soon as `run` has a checkpoint: its step."""
    with larmor_process(*arguments) as process:
        while not (latest := run.latest()):
            assert process.poll() is None, process.communicate()
            time.sleep(0.2)
        process.send_signal(signal.SIGKILL)
        assert process.wait(timeout=60) == -signal.SIGKILL
    return latest.step


@pytest.fixture
def heads(bucket: str, tmp_path: Path) -> str:
    """Three synthetic heads as a data set in `bucket`."""
    paths = [str(path) for path in write_phantom(tmp_path / "heads", num_subjects=3, seed=0)]
    succeed("convert", *paths, "--to", f"{bucket}/heads", "--if-missing", *SPLITS)
    return f"{bucket}/heads"


def test_a_training_that_is_killed_resumes_exactly(bucket: str, heads: str, tmp_path: Path) -> None:
    """Not even the place changes a number: an undisturbed training in a folder has the same losses."""
    assert "all is well" in succeed("verify", heads)
    killed = RunFolder(f"{bucket}/runs/killed")
    arguments = ("train", "--local", *tiny("killed", heads, bucket, *ALONE))
    assert kill_after_a_checkpoint(arguments, killed) < STEPS
    succeed(*arguments)
    assert "already finished" in succeed(*arguments)
    succeed("train", "--local", *tiny("undisturbed", heads, str(tmp_path), *ALONE))
    assert losses(killed) == losses(RunFolder(f"{tmp_path}/runs/undisturbed"))

    assert "killed" in succeed("runs", bucket)
    succeed("pull", f"{bucket}/runs/killed", "--to", str(tmp_path / "model"))
    scan = str(tmp_path / "heads" / "phantom01.nii.gz")
    succeed("reconstruct", str(tmp_path / "model"), scan, "--to", str(tmp_path / "images"))
    assert list((tmp_path / "images").iterdir())


def test_two_workers_on_a_cluster_train(bucket: str, heads: str) -> None:
    succeed("train", *tiny("cluster", heads, bucket, *SCHEDULE, "cluster.num_workers=2"), timeout=500)
    run = RunFolder(f"{bucket}/runs/cluster")
    assert [row["step"] for row in run.history()] == list(range(1, STEPS + 1))
    assert run.result() is not None


def test_a_sweep_finds_a_best_trial(bucket: str, heads: str) -> None:
    arguments = tiny("search", heads, bucket, *ALONE)
    assert "best" in succeed("sweep", *arguments, "--trials", "2", timeout=500)
    assert SweepFolder(f"{bucket}/sweeps/search").result() is not None
