"""What travels to a cluster: Larmor's source and the experiment, and nothing else."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from larmor.cluster.experiments.experiment import Experiment
from larmor.cluster.experiments.shipped import shipped_experiments
from larmor.cluster.on_ray.job_package import package_folder, pinned_requirements, write_package
from larmor.storage.objects.errors import InputError
from larmor.tuning.search.experiment import load_sweep_experiment
from tests.helpers import contents_of

ROOT = Path(__file__).resolve().parents[3]
EXPERIMENT = Experiment.model_validate({"name": "mine", "loss": {"a": 7}})


@pytest.fixture
def package(tmp_path: Path) -> Path:
    write_package(tmp_path, EXPERIMENT)
    return tmp_path


def test_the_source_is_packed_with_its_data_files(package: Path) -> None:
    packed = contents_of(package)
    assert {path.split("/")[0] for path in packed} == {"larmor", "experiment.yaml"}
    for path in (
        "larmor/__main__.py",
        "larmor/py.typed",
        "storage/objects/object_store.py",
        "recon/training/train.py",
        "cluster/on_ray/ray_train.py",
        "tuning/search/sweep.py",
        "tuning/report/report.html",
        *(f"cluster/experiments/{name}.yaml" for name in shipped_experiments()),
    ):
        assert packed[f"larmor/{path.removeprefix('larmor/')}"] == (ROOT / path).read_bytes()
    assert not any("__pycache__" in path for path in packed)
    assert sum(map(len, packed.values())) < 2 * 2**20, "source, no data"
    assert package_folder() == ROOT / "larmor"


def test_the_experiment_travels_whole(package: Path) -> None:
    assert load_sweep_experiment(str(package / "experiment.yaml"), []).training_part() == EXPERIMENT


def test_the_packed_source_runs_from_its_folder(package: Path) -> None:
    program = (
        "import larmor, larmor.storage.conversion.convert, larmor.recon.training.train\n"
        "import larmor.cluster.on_ray.ray_train, larmor.tuning.search.sweep, larmor.tuning.report.report\n"
        "from larmor.cluster.experiments.shipped import shipped_experiments\n"
        "from larmor.tuning.search.experiment import load_sweep_experiment\n"
        "print(larmor.__file__, larmor.tuning.report.report.__file__, *shipped_experiments())\n"
        "load_sweep_experiment('experiment.yaml', [])\n"
    )
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=package, env=variables, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    larmor_file, report_file, *names = done.stdout.split()
    assert Path(larmor_file).resolve() == package / "larmor" / "__init__.py"
    assert Path(report_file).resolve() == package / "larmor" / "tuning" / "report" / "report.py"
    assert names == list(shipped_experiments())


def test_requirements_are_what_is_installed_here_but_not_ray() -> None:
    try:
        names = {requirement.partition("==")[0] for requirement in pinned_requirements()}
    except InputError:
        pytest.skip("larmor is not installed here, only its source is used")
    assert {"torch", "deepspeed", "zarr", "s3fs", "pydantic"} <= names
    assert names.isdisjoint({"ray", "pytest", "dipy"})
    for requirement in pinned_requirements():
        name, _, version = requirement.partition("==")
        assert re.fullmatch(r"[\w.]+", version)
        assert importlib.metadata.version(name).startswith(version)
