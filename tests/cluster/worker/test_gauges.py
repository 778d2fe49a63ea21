"""Gauges of a running training: what they are set to, how they are named, and that they end with it."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker import gauges
from larmor.cluster.worker.gauges import GAUGES, Gauge
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.tracker import Sweep
from larmor.cluster.worker.tracking import Tracking
from larmor.cluster.worker.worker import RunWorker
from larmor.storage.objects.object_store import ObjectStore

REPORT = {
    "loss": 3.0,
    "share/adversarial": 0.2,
    "share/content": 0.5,
    "slices_per_second": 40.0,
    "data_share": 0.25,
    "compute_share": 0.75,
    "training_seconds": 2.0,
    "waiting_share": 0.125,
    "world_size": 2.0,
}


class Board:
    """What is shown now: (name, value of the label beside run and experiment) → value."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, str], float] = {}
        self.labels: list[dict[str, str]] = []
        self.threads: set[str] = set()

    def set(self, gauge: Gauge, value: float, labels: Mapping[str, str]) -> None:
        self.shown[gauge.name, labels.get(gauge.label, "")] = value
        self.labels.append(dict(labels))
        self.threads.add(threading.current_thread().name)

    def wait(self, name: str, value: float, label: str = "") -> None:
        for _ in range(500):
            if self.shown.get((name, label)) == value:
                return
            time.sleep(0.01)
        raise AssertionError(f"{name} {label} never became {value}: {self.shown}")


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gauges, "_PERIOD", 0.01)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return Experiment.model_validate(
        {"name": "night", "output_url": str(tmp_path / "out"), "training": {"num_steps": 9}}
    )


def worker_on(board: Board | None, experiment: Experiment, sweep: Sweep | None = None, url: str = "") -> RunWorker:
    run = RunFolder(url or experiment.run_url)
    tracking = Tracking(experiment, run, sweep, board.set if board else None)
    return RunWorker(Ranks(), run, experiment.training, torch.device("cpu"), tracking=tracking)


def write_weights(folder: Path) -> None:
    (folder / "weights").write_bytes(b"w")


def test_the_newest_figures_are_shown(experiment: Experiment) -> None:
    board = Board()
    with worker_on(board, experiment) as worker:
        worker.begin(0)
        board.wait("larmor_running", 1)
        assert board.shown["larmor_num_steps", ""] == 9
        assert board.shown["larmor_restarts", ""] == 0
        worker.report(2, {**REPORT, "val/psnr": 31.5}, ())
        board.wait("larmor_validation", 31.5, "psnr")
        worker.report(4, {**REPORT, "share/adversarial": 0.005, "slices_per_second": 44.0}, ())
        board.wait("larmor_step", 4)
        assert board.shown["larmor_gradient_share", "adversarial"] == 0.005
        assert board.shown["larmor_gradient_share", "content"] == 0.5
        assert board.shown["larmor_slices_per_second", ""] == 44
        assert board.shown["larmor_time_share", "data"] == 0.25
        assert board.shown["larmor_workers", ""] == 2
        assert board.shown["larmor_waiting_share", ""] == 0.125
        assert board.shown["larmor_goodput", ""] > 0
        assert board.shown["larmor_validation", "psnr"] == 31.5, "stays until the next validation"
    assert board.threads == {"larmor-gauges"}, "no report waits for a gauge"


def test_a_start_after_another_is_a_restart(experiment: Experiment) -> None:
    for restarts in range(3):
        board = Board()
        with worker_on(board, experiment) as worker:
            worker.begin(0)
            board.wait("larmor_restarts", restarts)
            assert board.shown["larmor_restarts", ""] == restarts


def test_ages_grow_until_there_is_a_checkpoint_and_a_report(experiment: Experiment) -> None:
    board = Board()

    def age(name: str) -> float:
        return board.shown[name, ""]

    with worker_on(board, experiment) as worker:
        worker.begin(0)
        board.wait("larmor_running", 1)
        while age("larmor_checkpoint_age_seconds") < 0.3:
            time.sleep(0.01)
        worker.report(2, REPORT, ())
        board.wait("larmor_step", 2)
        assert age("larmor_report_age_seconds") < age("larmor_checkpoint_age_seconds")
        grown = age("larmor_checkpoint_age_seconds")
        worker.save(2, {"val/psnr": 30.0}, write_weights)
        worker.checkpoints.flush()
        while age("larmor_checkpoint_age_seconds") >= grown:
            time.sleep(0.01)


def test_nothing_is_set_once_the_training_has_ended(experiment: Experiment) -> None:
    board = Board()
    with contextlib.suppress(RuntimeError), worker_on(board, experiment) as worker:
        worker.begin(0)
        board.wait("larmor_running", 1)
        raise RuntimeError("broken")
    board.shown.clear()
    time.sleep(0.1)
    assert board.shown == {}
    assert not [thread for thread in threading.enumerate() if thread.name == "larmor-gauges"]


def test_a_run_is_named_and_so_is_its_sweep(experiment: Experiment, tmp_path: Path) -> None:
    for sweep, url, labels in (
        (None, "", {"run": "night", "experiment": "night"}),
        (Sweep("search", ObjectStore(str(tmp_path))), "", {"run": "night", "experiment": "search"}),
        (None, f"{experiment.run_url}/seeds/0", {"run": f"night-seed-{experiment.seed}", "experiment": "night"}),
    ):
        board = Board()
        with worker_on(board, experiment, sweep, url) as worker:
            worker.begin(0)
            board.wait("larmor_running", 1)
        assert labels in board.labels


def test_the_number_of_series_does_not_grow(experiment: Experiment) -> None:
    """Own losses and figures that no gauge is for add none, and neither do steps."""
    board = Board()
    with worker_on(board, experiment) as worker:
        worker.begin(0)
        for step in range(1, 30):
            worker.report(step, {**REPORT, f"own_loss_{step}": 1.0, f"own/{step}": 2.0}, ())
        board.wait("larmor_step", 29)
    assert {name for name, _ in board.shown} <= {gauge.name for gauge in GAUGES}
    assert len(board.shown) == 14


def test_without_ray_there_are_none(experiment: Experiment) -> None:
    with worker_on(None, experiment) as worker:
        worker.begin(0)
        worker.report(1, REPORT, ())
        assert not [thread for thread in threading.enumerate() if thread.name == "larmor-gauges"]
