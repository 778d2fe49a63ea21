"""What travels to a cluster: Larmor's own source and a job's experiment; dependencies are there, or get installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from pathlib import Path

from pydantic import BaseModel

from cluster.experiment import dump_yaml
from storage.errors import InputError

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


def pinned_requirements() -> list[str]:
    """Larmor's dependencies in the versions that are installed here; Ray is the cluster's own.

    Raises `InputError` where only Larmor's source is there.
    """
    try:
        requirements = importlib.metadata.requires("larmor") or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("Larmor is not installed here, so its dependencies are not known: pip install .") from error
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements if "extra ==" not in text]
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in names if name != "ray"}
    return [f"{name}=={version}" for name, version in versions.items()]


def _origin(module: str) -> Path:
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    return Path(found.origin)
