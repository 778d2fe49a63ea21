"""Trackers through their own libraries: what they are told, once, over restarts, and whatever becomes of them."""

from __future__ import annotations

import json
import logging
import shutil
import struct
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb
from mlflow import MlflowClient
from PIL import Image
from wandb.proto import wandb_internal_pb2

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker import delivery, tracking
from larmor.cluster.worker.ranks import Ranks
from larmor.cluster.worker.tracker import Sweep
from larmor.cluster.worker.tracking import Tracking
from larmor.cluster.worker.worker import RunWorker
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.ports import free_ports

MESSAGES: Any = wandb_internal_pb2  # without types
PICTURE = np.arange(12 * 40, dtype=np.uint8).reshape(12, 40)


@pytest.fixture(autouse=True)
def quiet_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_EXPERIMENT_NAME", "WANDB_DIR", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(delivery, "_FIRST_PAUSE", 0.05)
    wandb.teardown()  # it keeps the environment that it has once seen


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's database without a run: to make its tables takes seconds."""
    path = tmp_path_factory.mktemp("mlflow") / "empty.db"
    MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


@pytest.fixture
def uri(tables: Path, tmp_path: Path) -> str:
    shutil.copyfile(tables, tmp_path / "mlflow.db")
    return f"sqlite:///{tmp_path}/mlflow.db"


def experiment(folder: Path, name: str = "run", **trackers: str) -> Experiment:
    return Experiment.model_validate({"name": name, "output_url": str(folder / "out"), "tracking": trackers})


def metrics(step: int) -> dict[str, float]:
    return {"loss": 1.0 / step, "val/psnr": 20.0 + step, "data_share": 0.25, "training_seconds": 2.0 * step}


def train(found: Experiment, first: int, last: int, begin: int = 0, sweep: Sweep | None = None) -> None:
    """As much of a training as trackers hear of: a report at each step, with a picture."""
    run = RunFolder(found.run_url)
    tracked = Tracking(found, run, sweep)
    with RunWorker(Ranks(), run, found.training, torch.device("cpu"), tracking=tracked) as worker:
        worker.begin(begin)
        for step in range(first, last + 1):
            worker.show(PICTURE)
            worker.report(step, metrics(step), ())


def runs(uri: str) -> dict[str, Any]:
    client = MlflowClient(uri)
    experiments = [item.experiment_id for item in client.search_experiments()]
    return {run.info.run_name: run for run in client.search_runs(experiments)}


def steps(uri: str, run: Any, name: str = "validation/psnr") -> list[int]:
    return [metric.step for metric in MlflowClient(uri).get_metric_history(run.info.run_id, name)]


def out_of_reach(folder: Path) -> Path:
    """A folder that no database can be made in, since it is a file."""
    (folder / "away").touch()
    return folder / "away"


def within_reach(away: Path, tables: Path) -> None:
    away.unlink()
    away.mkdir()
    shutil.copyfile(tables, away / "mlflow.db")


def records(folder: Path, seconds: float = 60.0) -> list[Any]:
    """What an offline folder of Weights & Biases holds. Its client's own process may still be writing the end."""
    (file,) = folder.glob("*.wandb")
    deadline = time.monotonic() + seconds
    while True:
        found = read_records(file)
        if any(record.WhichOneof("record_type") == "exit" for record in found) or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def read_records(file: Path) -> list[Any]:
    content, place, found, parts = file.read_bytes(), 7, [], b""
    while place + 7 <= len(content):  # LevelDB's log: blocks of 32 KiB; checksum (4 bytes), length (2), kind (1), part
        if (rest := -place % 2**15) < 7:
            place += rest
            continue
        length, kind = struct.unpack("<4xHB", content[place : place + 7])
        parts += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last part
            found.append(MESSAGES.Record.FromString(parts))
            parts = b""
    return found


def rows(folder: Path) -> list[dict[str, Any]]:
    """The history that an offline folder holds."""
    return [
        {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in record.history.item}
        for record in records(folder)
        if record.WhichOneof("record_type") == "history"
    ]


class TestMlflow:
    def test_a_run_has_the_experiment_the_figures_and_the_images(self, tmp_path: Path, uri: str) -> None:
        found = experiment(tmp_path, mlflow=uri)
        train(found, 1, 3)
        (run,) = runs(uri).values()
        assert run.info.status == "FINISHED"
        assert run.data.params["training.global_batch_size"] == str(found.training.global_batch_size)
        assert run.data.params["generator.name"] == found.generator.name
        assert run.data.tags["larmor.run"] == found.run_url
        assert len(run.data.tags["larmor.code"]) == 32
        reported = [json.loads(line) for line in (Path(found.run_url) / "metrics.jsonl").read_text().splitlines()]
        assert run.data.metrics["validation/psnr"] == reported[-1]["val/psnr"]
        assert run.data.metrics["time/data_share"] == 0.25
        assert run.data.metrics["run/goodput"] == reported[-1]["goodput"]
        assert steps(uri, run) == [1, 2, 3]
        images = MlflowClient(uri).list_artifacts(run.info.run_id, "images")
        (newest,) = (item.path for item in images if "+step+3+" in item.path and item.path.endswith("png"))
        image = Image.open(tmp_path / "mlartifacts" / run.info.run_id / "artifacts" / newest)
        assert np.array_equal(np.array(image), PICTURE)

    def test_after_a_restart_the_run_goes_on_and_no_step_is_there_twice(self, tmp_path: Path, uri: str) -> None:
        found = experiment(tmp_path, mlflow=uri)
        train(found, 1, 6)
        longer = found.model_copy(update={"training": found.training.model_copy(update={"num_steps": 20_000})})
        train(longer, 4, 8, begin=3)
        (run,) = runs(uri).values()
        assert steps(uri, run) == list(range(1, 9))
        assert run.data.params["training.num_steps"] == "10000", "a param of MLflow never changes"

    def test_figures_that_arrived_unnoticed_are_not_sent_again(self, tmp_path: Path, uri: str) -> None:
        """The process died after the tracker had them, and before the run's folder said so."""
        found = experiment(tmp_path, mlflow=uri)
        train(found, 1, 4)
        note = Path(found.run_url) / "trackers" / "mlflow.json"
        note.write_text(json.dumps({**json.loads(note.read_text()), "step": 2}))
        train(found, 3, 5, begin=2)
        (run,) = runs(uri).values()
        assert steps(uri, run) == [1, 2, 3, 4, 5]

    def test_trials_are_below_their_sweep(self, tmp_path: Path, uri: str) -> None:
        sweep = Sweep("search", ObjectStore(tmp_path / "sweep"))
        for name in ("one", "two"):
            train(experiment(tmp_path, name, mlflow=uri), 1, 1, sweep=sweep)
        found = runs(uri)
        assert set(found) == {"search", "one", "two"}
        for name in ("one", "two"):
            assert found[name].data.tags["mlflow.parentRunId"] == found["search"].info.run_id
            assert found[name].data.tags["larmor.sweep"] == "search"
            assert found[name].data.tags["larmor.trial"] == name

    def test_another_store_gets_the_whole_run(self, tmp_path: Path, uri: str, tables: Path) -> None:
        second = f"sqlite:///{tmp_path}/second.db"
        shutil.copyfile(tables, tmp_path / "second.db")
        train(experiment(tmp_path, mlflow=uri), 1, 3)
        train(experiment(tmp_path, mlflow=second), 4, 5, begin=3)
        (run,) = runs(second).values()
        assert steps(second, run) == [1, 2, 3, 4, 5]


class TestOutOfReach:
    def test_the_training_goes_on_and_says_so_once(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(tracking, "_GOODBYE_SECONDS", 5.0)
        uri = f"http://127.0.0.1:{free_ports([0])[-1]}"
        found = experiment(tmp_path, mlflow=uri)
        with caplog.at_level(logging.WARNING, logger=delivery.__name__):
            train(found, 1, 3)
        (message,) = [record.getMessage() for record in caplog.records if record.name == delivery.__name__]
        assert f"tracking.mlflow={uri} cannot be reached" in message
        assert "the training goes on" in message
        (warning,) = RunFolder(found.run_url).warnings()
        assert "lacks 3 reports" in warning
        assert len((Path(found.run_url) / "metrics.jsonl").read_text().splitlines()) == 3

    def test_what_is_missing_is_sent_when_it_comes_back(self, tmp_path: Path, tables: Path) -> None:
        """During the training."""
        away = out_of_reach(tmp_path)
        uri = f"sqlite:///{away}/mlflow.db"
        found = experiment(tmp_path, mlflow=uri)
        run = RunFolder(found.run_url)
        with RunWorker(Ranks(), run, found.training, torch.device("cpu"), tracking=Tracking(found, run)) as worker:
            worker.begin(0)
            for step in (1, 2, 3):
                worker.report(step, metrics(step), ())
            time.sleep(0.3)
            within_reach(away, tables)
            worker.report(4, metrics(4), ())
        (tracked,) = runs(uri).values()
        assert steps(uri, tracked) == [1, 2, 3, 4]
        assert run.warnings() == []

    def test_the_next_start_sends_what_the_last_one_could_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: Path
    ) -> None:
        away = out_of_reach(tmp_path)
        uri = f"sqlite:///{away}/mlflow.db"
        found = experiment(tmp_path, mlflow=uri)
        train(found, 1, 3)
        assert RunFolder(found.run_url).warnings() != []
        within_reach(away, tables)
        tracking.send_the_rest(found, RunFolder(found.run_url))
        (tracked,) = runs(uri).values()
        assert steps(uri, tracked) == [1, 2, 3]
        assert RunFolder(found.run_url).warnings() == []

    def test_a_service_that_never_answers_holds_nothing_up(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(tracking, "_GOODBYE_SECONDS", 0.5)
        found = experiment(tmp_path, mlflow="http://unused")
        run = RunFolder(found.run_url)

        class Silent:
            name, place = "mlflow", "http://unused"

            def begin(self, *_: object) -> None:
                waiting.wait(60)

        waiting = threading.Event()
        monkeypatch.setitem(tracking._TRACKERS, "mlflow", lambda place, about: Silent())
        with RunWorker(Ranks(), run, found.training, torch.device("cpu"), tracking=Tracking(found, run)) as worker:
            worker.begin(0)
            worker.report(1, metrics(1), ())
        waiting.set()
        assert "it is slow" in run.warnings()[0]

    def test_only_the_newest_reports_and_pictures_wait(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(delivery, "_MOST_ENTRIES", 20)
        found = experiment(tmp_path, mlflow=f"sqlite:///{out_of_reach(tmp_path)}/mlflow.db")
        tracker = tracking.MlflowTracker(
            found.tracking.mlflow or "", tracking.describe(found, RunFolder(found.run_url), None)
        )
        waiting = delivery.Delivery(tracker, RunFolder(found.run_url))
        for step in range(1, 51):
            waiting.add(delivery.Entry(step, 0.0, {}, PICTURE))
        assert [entry.step for entry in waiting._pending] == list(range(31, 51))
        assert [entry.step for entry in waiting._pending if entry.picture is not None] == list(range(43, 51))
        waiting.close("finished", 5)


class TestWandb:
    def test_an_offline_run_is_read_back(self, tmp_path: Path) -> None:
        found = experiment(tmp_path, wandb="lab/heads")
        sweep = Sweep("search", ObjectStore(tmp_path / "sweep"))
        train(found, 1, 3, sweep=sweep)
        (folder,) = Path(found.run_url).glob("wandb/offline-run-*")
        (run,) = [item.run for item in records(folder) if item.WhichOneof("record_type") == "run"][:1]
        assert (run.entity, run.project, run.display_name, run.run_group) == ("lab", "heads", "run", "search")
        config = {item.key: json.loads(item.value_json) for item in run.config.update}
        assert config["training.global_batch_size"] == found.training.global_batch_size
        assert config["larmor.trial"] == "run"
        history = rows(folder)
        assert [row["_step"] for row in history] == [1, 2, 3]
        assert [row["validation/psnr"] for row in history] == [21.0, 22.0, 23.0]
        (image,) = folder.glob("files/media/images/validation/images_3_*.png")
        assert np.array_equal(np.array(Image.open(image).convert("L")), PICTURE)

    def test_a_restart_keeps_the_id_and_repeats_no_step(self, tmp_path: Path) -> None:
        found = experiment(tmp_path, wandb="heads")
        train(found, 1, 5)
        time.sleep(1.1)  # the folder's name has the second
        train(found, 4, 7, begin=3)
        folders = sorted(Path(found.run_url).glob("wandb/offline-run-*"))
        assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
        assert [[row["_step"] for row in rows(folder)] for folder in folders] == [[1, 2, 3, 4, 5], [6, 7]]

    def test_without_a_key_nobody_is_asked_for_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """Its library would ask on a terminal, and wait for an answer."""
        monkeypatch.setenv("WANDB_MODE", "online")
        monkeypatch.setenv("HOME", str(tmp_path))
        monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
        train(experiment(tmp_path, wandb="heads"), 1, 1)
        assert "there is no key; set WANDB_API_KEY where the workers run" in caplog.text


def test_both_trackers_hear_the_same(tmp_path: Path, uri: str) -> None:
    found = experiment(tmp_path, mlflow=uri, wandb="heads")
    train(found, 1, 2)
    (run,) = runs(uri).values()
    (folder,) = Path(found.run_url).glob("wandb/offline-run-*")
    last = rows(folder)[-1]
    assert {name: last[name] for name in run.data.metrics} == run.data.metrics


def test_no_credential_of_a_url_is_told(tmp_path: Path) -> None:
    found = experiment(tmp_path).model_copy(
        update={
            "data": experiment(tmp_path).data.model_copy(update={"url": "https://me:secret@host/data?X-Sig=secret&b=1"})
        }
    )
    about = tracking.describe(found, RunFolder(found.run_url), None)
    assert about.params["data.url"] == "https://host/data"
    assert "secret" not in json.dumps({**about.params, **about.tags})
