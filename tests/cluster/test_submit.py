"""What travels with a job: Larmor's source and the experiment, and nothing else."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest

from cluster.experiment import Experiment, load_experiment, shipped_experiments
from cluster.submit import PACKED, submit
from storage.embedded_store import EmbeddedStore
from storage.errors import InputError
from tests import workbench
from tests.helpers import contents_of

ROOT = Path(__file__).resolve().parents[2]
Job = dict[str, Any]


@pytest.fixture
def job(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Job:
    """Submit to a client that keeps the working directory; what it was given."""
    import ray.job_submission

    given: Job = {}

    class Client:
        def __init__(self, address: str) -> None:
            given["address"] = address

        def list_jobs(self) -> list[Any]:
            return []

        def submit_job(self, **options: Any) -> None:
            given.update(options)
            Path(options["runtime_env"]["working_dir"]).rename(tmp_path / "job")
            Path(options["runtime_env"]["working_dir"]).mkdir()

        async def tail_job_logs(self, name: str) -> Any:
            yield "the log"

        def get_job_status(self, name: str) -> Any:
            return ray.job_submission.JobStatus.SUCCEEDED

    monkeypatch.setattr(ray.job_submission, "JobSubmissionClient", Client)
    given["shown"] = []
    experiment = Experiment.model_validate({"name": "mine", "loss": {"a": 7}})
    assert submit(experiment, ["train"], "http://127.0.0.1:8265", given["shown"].append)
    given["folder"] = tmp_path / "job"
    return given


def test_the_source_is_packed_with_its_data_files(job: Job) -> None:
    packed = contents_of(job["folder"])
    assert {path.split("/")[0].removesuffix(".py") for path in packed} == {*PACKED, "experiment.yaml"}
    for path in (
        "larmor.py",
        "storage/object_store.py",
        "recon/train.py",
        "cluster/ray_train.py",
        "tuning/sweep.py",
        "tuning/report.html",
        *(f"cluster/experiments/{name}.yaml" for name in shipped_experiments()),
    ):
        assert packed[path] == (ROOT / path).read_bytes()
    assert not any("__pycache__" in path for path in packed)
    assert sum(map(len, packed.values())) < 2**20, "source, no data"


def test_the_experiment_travels_whole(job: Job) -> None:
    experiment = load_experiment(str(job["folder"] / "experiment.yaml"), [], Experiment)
    assert experiment == Experiment.model_validate({"name": "mine", "loss": {"a": 7}})
    assert job["submission_id"] == "train-mine"
    assert job["entrypoint"] == "python -m larmor train experiment.yaml --address auto"
    assert job["shown"] == ["submitted as job 'train-mine'", "the log"]


def test_the_packed_source_runs_from_its_folder(job: Job) -> None:
    program = (
        "import pathlib, larmor, storage.convert, recon.train, cluster.ray_train, tuning.sweep, tuning.report\n"
        "from cluster.experiment import load_experiment, shipped_experiments, Experiment\n"
        "print(larmor.__file__, tuning.report.__file__, *shipped_experiments())\n"
        "load_experiment('experiment.yaml', [], Experiment)\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=job["folder"], env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    larmor_file, report_file, *names = done.stdout.split()
    assert Path(larmor_file).resolve() == job["folder"] / "larmor.py"
    assert Path(report_file).resolve() == job["folder"] / "tuning" / "report.py"
    assert names == list(shipped_experiments())


def test_no_secret_travels(
    store_environment: dict[str, str],
    embedded_store: EmbeddedStore,
    monkeypatch: pytest.MonkeyPatch,
    request: pytest.FixtureRequest,
) -> None:
    secret, token = uuid.uuid4().hex, uuid.uuid4().hex
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", f"AKIA{secret[:16].upper()}")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    monkeypatch.setenv("RAY_AUTH_TOKEN", token)
    job: Job = request.getfixturevalue("job")
    credentials = Path(store_environment["AWS_SHARED_CREDENTIALS_FILE"]).read_text().split()
    hidden = [secret, secret[:16].upper(), token, credentials[-1]]
    travels = [*contents_of(job["folder"]).values(), repr({**job, "folder": None}).encode()]
    assert [value for value in hidden for content in travels if value.encode() in content] == []
    assert job["runtime_env"]["env_vars"] == {"PYTHONUNBUFFERED": "1"}
    assert len(credentials[-1]) >= 40, "there was a secret to find"


@pytest.mark.parametrize("address", ["cluster", "127.0.0.1:8265", "http://", "ray://127.0.0.1:10001"])
def test_an_address_that_is_no_dashboards_url_is_refused(address: str) -> None:
    with pytest.raises(InputError, match=r"is not a dashboard's URL; write http://HOST:PORT"):
        submit(Experiment(), ["train"], address, print)


def test_an_address_that_cannot_be_reached_is_refused(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    done = workbench.larmor("submit", "laptop", "--address", address, timeout=120, LARMOR_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"the cluster at {address} cannot be reached" in done.stderr
    assert "is its dashboard up?" in done.stderr
    assert "Traceback" not in done.stderr
