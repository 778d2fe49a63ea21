"""What the section `tracking` takes, and what it says of the rest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from larmor.cluster.experiments import tracking
from larmor.cluster.experiments.experiment import Experiment, build, dump_for_workers
from larmor.cluster.experiments.tracking import TrackingConfig, check_trackers
from larmor.storage.objects.errors import InputError


def test_without_the_section_nothing_is_tracked() -> None:
    assert Experiment().tracking.names == ()


@pytest.mark.parametrize(
    "uri", ["http://host:5000", "https://host", "sqlite:///mlflow.db", "file:///runs", "mlruns", "databricks"]
)
def test_places_of_mlflow(uri: str) -> None:
    assert TrackingConfig(mlflow=uri).names == ("mlflow",)


@pytest.mark.parametrize(
    ("section", "parts"),
    [
        ({"mlflow": "https://me:secret@host"}, ["tracking.mlflow", "holds no password", "MLFLOW_TRACKING_PASSWORD"]),
        ({"wandb": "a/b/c"}, ["tracking.wandb", "ENTITY/PROJECT"]),
        ({"wandb": "what?"}, ["tracking.wandb", "ENTITY/PROJECT"]),
        ({"wandb": ""}, ["tracking.wandb"]),
        ({"mlfow": "x"}, ["tracking.mlfow", "did you mean 'mlflow'?"]),
    ],
)
def test_mistakes(section: dict[str, str], parts: list[str]) -> None:
    with pytest.raises(InputError) as found:
        build({"tracking": section}, Experiment, "experiment.yaml")
    assert [part for part in parts if part not in str(found.value)] == []


def test_a_missing_library_is_named_with_its_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'larmor-mri\[wandb\]'"):
        check_trackers(TrackingConfig(wandb="heads"))


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("sqlite:///mlflow.db", "sqlite:///HERE/mlflow.db"),
        ("sqlite:////tmp/mlflow.db", "sqlite:////tmp/mlflow.db"),
        ("mlruns", "HERE/mlruns"),
        ("file:///tmp/mlruns", "file:///tmp/mlruns"),
        ("http://host:5000", "http://host:5000"),
        ("databricks", "databricks"),
    ],
)
def test_workers_find_a_file_from_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str, absolute: str
) -> None:
    monkeypatch.chdir(tmp_path)
    content = dump_for_workers(Experiment.model_validate({"tracking": {"mlflow": uri}}))
    assert content["tracking"]["mlflow"] == absolute.replace("HERE", os.getcwd())
