"""Trackers of trials that train in Ray's workers."""

from __future__ import annotations

from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.workbench import TINY, succeed, unique_name


@pytest.mark.slow
def test_trials_of_a_sweep_are_tracked_below_it(
    tiny_heads: str, store_environment: dict[str, str], tmp_path: Path
) -> None:
    name, uri = unique_name("tracked"), f"sqlite:///{tmp_path}/mlflow.db"
    overrides = [
        *TINY,
        f"name={name}",
        f"data.url={tiny_heads}",
        "training.num_steps=4",
        "training.log_every=2",
        "training.validate_every=2",
        "training.checkpoint_every=4",
        "cluster.num_workers=1",
        "sweep.overrides={}",
        "sweep.scheduler=none",
        "sweep.space={}",
        "space.loss.a=loguniform(1,10)",
        "sweep.concurrent_trials=1",
        f"tracking.mlflow={uri}",
        "tracking.wandb=heads",
    ]
    succeed("sweep", "laptop", *overrides, "--trials", "2", WANDB_MODE="offline", WANDB_DIR=str(tmp_path))
    client = MlflowClient(uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    runs = {run.info.run_name: run for run in client.search_runs(experiments)}
    sweep = runs.pop(name)
    assert len(runs) == 2
    for run in runs.values():
        assert run.info.status == "FINISHED"
        assert run.data.tags["mlflow.parentRunId"] == sweep.info.run_id
        assert [item.step for item in client.get_metric_history(run.info.run_id, "validation/psnr")] == [2, 4]
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 2
