"""What travels to a cluster: Larmor's own source, and a job's experiment. The cluster brings the dependencies."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

from pydantic import BaseModel

from cluster.experiment import dump_yaml

PACKAGES = ("storage", "recon", "cluster", "tuning")


def write_package(folder: Path, experiment: BaseModel) -> None:
    """Make `folder` a working directory in which `python -m larmor train experiment.yaml` runs this very Larmor."""
    for source in package_folders():
        shutil.copytree(source, folder / source.name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(_origin("larmor"), folder)
    (folder / "experiment.yaml").write_text(dump_yaml(experiment))


def package_folders() -> list[Path]:
    """Where the packages lie that workers import."""
    return [_origin(name).parent for name in PACKAGES]


def _origin(module: str) -> Path:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)
