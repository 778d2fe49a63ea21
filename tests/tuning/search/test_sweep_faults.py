"""Sweeps that lose something on the way: the driver, a trial's worker, a node, the store.

    python -m pytest -m slow tests/tuning/search/test_sweep_faults.py

After each: no trial that had ended was lost or changed, all have ended, and the best pulled is the best reported.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from larmor.storage.objects.embedded_store import EmbeddedStore
from larmor.tuning.search.ladder import Ladder
from larmor.tuning.search.records import TrialRecord
from larmor.tuning.search.sweep_folder import SweepFolder
from tests.workbench import larmor_process, succeed, tiny, unique_name

OUTPUT = "s3://larmor"
SCHEDULE = (
    "training.num_steps=20",
    "training.checkpoint_every=5",
    "training.validate_every=5",
    "training.zero_stage=1",
    "cluster.num_workers=1",
    "sweep.overrides={}",
    "sweep.metric=psnr",
    "sweep.start_seeds=1",
    "sweep.concurrent_trials=1",
)
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


class Scene:
    """A sweep that runs, and what had ended before the fault."""

    NUM_TRIALS = 3

    def __init__(self, name: str, data_url: str, seed: int, *more: str) -> None:
        self.folder = SweepFolder(f"{OUTPUT}/sweeps/{name}")
        settings = tiny(name, data_url, OUTPUT, *SCHEDULE, f"sweep.seed={seed}")
        self.arguments = ("sweep", *settings, "--trials", str(self.NUM_TRIALS), *more)
        self.random = random.Random(seed)
        self.before: dict[str, TrialRecord] = {}

    def running(self, **how: Any) -> contextlib.AbstractContextManager[subprocess.Popen[str]]:
        return larmor_process(*self.arguments, **how)

    def wait_for_the_moment(self) -> None:
        """A random moment after a random number of trials have begun."""
        wanted = self.random.randint(1, self.NUM_TRIALS - 1)
        for _ in range(2400):
            begun = [path for path in self.folder.store.list("trials") if path.endswith("/begun.json")]
            if len(begun) >= wanted:
                time.sleep(self.random.uniform(0, 3))
                self.before = {trial.id: trial for trial in self.folder.trials()}
                return
            time.sleep(0.1)
        raise AssertionError("no trial has begun within four minutes")

    def check(self, model: Path) -> None:
        result = self.folder.result()
        assert result is not None
        after = {trial.id: trial for trial in result.trials}
        assert sorted(after) == [f"{number:04d}" for number in range(1, self.NUM_TRIALS + 1)]
        assert {trial.state for trial in after.values()} == {"finished"}
        assert {name: after[name] for name in self.before} == self.before
        self.check_figures(after, result.best, model)

    def check_figures(self, after: dict[str, TrialRecord], reported: TrialRecord, model: Path) -> None:
        for name, trial in after.items():
            assert [row["step"] for row in self.folder.trial_run(name).history()] == list(
                range(1, (trial.steps or 0) + 1)
            )
        succeed("pull", self.folder.url, "--to", str(model))
        best = self.folder.trial_run(reported.id).best("val/psnr", True)
        pulled = hashlib.sha256((model / "generator.safetensors").read_bytes()).hexdigest()
        assert pulled == best.files["generator.safetensors"].sha256
        assert json.loads((model / "metrics.json").read_text())["metrics"]["val/psnr"] == max(
            trial.metrics["val/psnr"] for trial in after.values()
        )


class AshaScene(Scene):
    """A search with rungs at 5 and 10 of 20 steps."""

    NUM_TRIALS = 7

    def __init__(self, name: str, data_url: str, seed: int) -> None:
        super().__init__(name, data_url, seed, "sweep.scheduler=asha", "sweep.reduction_factor=2")
        self.arguments = (*self.arguments, "space.generator_optimizer.learning_rate=loguniform(1e-6,1e-1)")

    def check(self, model: Path) -> None:
        """Nobody waits who is among the best of a rung, and what had finished is as it was."""
        result = self.folder.result()
        assert result is not None
        after = {trial.id: trial for trial in result.trials}
        assert len(after) == self.NUM_TRIALS
        finished = {name: trial for name, trial in self.before.items() if trial.state == "finished"}
        assert {name: after[name] for name in finished} == finished
        ladder = Ladder(5, 2, 20, higher_is_better=True)
        for name, trial in after.items():
            assert (trial.state, trial.steps) in [("stopped", 5), ("stopped", 10), ("finished", 20)]
            curve = {
                int(row["step"]): row["val/psnr"] for row in self.folder.trial_run(name).history() if "val/psnr" in row
            }
            ladder.remember(name, curve, waits=trial.state == "stopped")
        assert ladder.ready() is None
        assert {trial.state for trial in after.values()} == {"stopped", "finished"}
        self.check_figures(after, result.best, model)


def finish(process: subprocess.Popen[str]) -> None:
    _, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors[-6000:]


def kill_workers(sweep: subprocess.Popen[str]) -> None:
    for child in psutil.Process(sweep.pid).children(recursive=True):
        if "RayTrainWorker" in " ".join(child.cmdline()):
            os.kill(child.pid, signal.SIGKILL)


def test_the_head_is_lost(tiny_heads: str, store_environment: dict[str, str], tmp_path: Path) -> None:
    """The command ends by itself, and a cluster of its own later goes on."""
    scene = AshaScene(unique_name("head"), tiny_heads, 1)
    with scene.running() as process:
        scene.wait_for_the_moment()
        for child in psutil.Process(process.pid).children(recursive=True):
            if child.name() in ("gcs_server", "raylet"):
                child.kill()
        process.communicate(timeout=300)
        assert process.returncode not in (0, None)
    succeed(*scene.arguments, timeout=400)
    scene.check(tmp_path / "model")


@pytest.mark.parametrize("seed", range(3))
def test_the_driver_is_killed(tiny_heads: str, store_environment: dict[str, str], tmp_path: Path, seed: int) -> None:
    scene = Scene(unique_name("driver"), tiny_heads, seed)
    with scene.running() as process:
        scene.wait_for_the_moment()
        process.kill()
    succeed(*scene.arguments, timeout=400)
    scene.check(tmp_path / "model")


@pytest.mark.parametrize("seed", range(2))
def test_the_driver_of_a_search_with_asha_is_killed(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path, seed: int
) -> None:
    scene = AshaScene(unique_name("asha"), tiny_heads, seed)
    for _ in range(2):
        with scene.running() as process:
            scene.wait_for_the_moment()
            process.kill()
    succeed(*scene.arguments, timeout=400)
    scene.check(tmp_path / "model")


def test_a_worker_of_a_search_with_asha_is_killed(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    scene = AshaScene(unique_name("asha"), tiny_heads, 0)
    with scene.running() as process:
        scene.wait_for_the_moment()
        kill_workers(process)
        finish(process)
    scene.check(tmp_path / "model")


def test_an_interrupted_sweep_goes_on(tiny_heads: str, store_environment: dict[str, str], tmp_path: Path) -> None:
    """Ctrl-C reaches all processes that the command has started."""
    scene = Scene(unique_name("interrupted"), tiny_heads, 0)
    with scene.running(start_new_session=True) as process:
        scene.wait_for_the_moment()
        children = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        output, errors = process.communicate(timeout=30)
        assert process.returncode == 130
        assert "larmor: SIGINT: the sweep ends;" in errors
        assert "the same command resumes it" in errors
        assert "core worker" not in output + errors
        alive = psutil.wait_procs(children, timeout=10)[1]
        assert [child for child in alive if child.status() != psutil.STATUS_ZOMBIE] == []
    succeed(*scene.arguments, timeout=400)
    scene.check(tmp_path / "model")


@pytest.mark.parametrize("seed", range(3))
def test_a_trials_worker_is_killed(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path, seed: int
) -> None:
    scene = Scene(unique_name("worker"), tiny_heads, seed)
    with scene.running() as process:
        scene.wait_for_the_moment()
        kill_workers(process)
        finish(process)
    scene.check(tmp_path / "model")


@pytest.mark.parametrize("seed", range(3))
def test_a_node_is_lost(
    tiny_heads: str,
    store_environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    seed: int,
) -> None:
    """Two nodes with room for one trial each, and a head with none: the other node goes on with the trial."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True})
    nodes = [cluster.add_node(num_cpus=1) for _ in range(2)]
    try:
        scene = Scene(unique_name("node"), tiny_heads, seed, "--address", cluster.address)
        with scene.running() as process:
            scene.wait_for_the_moment()
            busy = [node for node in nodes if _has_a_worker(node)]
            cluster.remove_node(busy[0], allow_graceful=False)
            finish(process)
        scene.check(tmp_path / "model")
    finally:
        cluster.shutdown()


def _has_a_worker(node: Any) -> bool:
    raylet = node.all_processes["raylet"][0].process.pid
    lines = [" ".join(child.cmdline()) for child in psutil.Process(raylet).children(recursive=True)]
    return any("RayTrainWorker" in line for line in lines)


@pytest.mark.parametrize("seed", range(3))
def test_the_store_goes_away_and_comes_back(
    embedded_store: EmbeddedStore, tiny_heads: str, store_environment: dict[str, str], tmp_path: Path, seed: int
) -> None:
    scene = Scene(unique_name("store"), tiny_heads, seed)
    with scene.running() as process:
        scene.wait_for_the_moment()
        pid = embedded_store.status().pid
        assert pid is not None
        store = psutil.Process(pid)
        store.suspend()  # connections hang, as they do when a network goes
        try:
            time.sleep(scene.random.uniform(5, 25))
        finally:
            store.resume()
        finish(process)
    scene.check(tmp_path / "model")
