"""What travels to a cluster: Larmor's own source and a job's experiment; dependencies are there, or get installed."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
import shutil
from pathlib import Path

from pydantic import BaseModel

from larmor.cluster.experiments.experiment import dump_yaml
from larmor.storage.formats.provenance import DISTRIBUTION
from larmor.storage.objects.errors import InputError

WINGS = ("storage", "recon", "cluster", "tuning")  # beside `larmor` in a checkout, within it where it is installed
_LEFT_OUT = shutil.ignore_patterns("__pycache__")


def write_package(folder: Path, experiment: BaseModel) -> None:
    """Make `folder` a working directory in which `python -m larmor train experiment.yaml` runs this very Larmor."""
    write_source(folder)
    (folder / "experiment.yaml").write_text(dump_yaml(experiment))


def write_source(folder: Path) -> Path:
    """Copy Larmor's own source to `folder`/larmor, whole as a wheel has it; returns that path."""
    package = folder / "larmor"
    for place in package_folders():
        shutil.copytree(place, package if place.name == "larmor" else package / place.name, ignore=_LEFT_OUT)
    return package


def package_folders() -> list[Path]:
    """Where the source lies: the package `larmor`, and the wings of a checkout, which lie beside it."""
    package, *wings = (_place(name) for name in ("larmor", *(f"larmor.{wing}" for wing in WINGS)))
    return [package, *(wing for wing in wings if package not in wing.parents)]


def pinned_requirements() -> list[str]:
    """Larmor's dependencies in the versions that are installed here; Ray is the cluster's own.

    Raises `InputError` where only Larmor's source is there.
    """
    try:
        requirements = importlib.metadata.requires(DISTRIBUTION) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise InputError("Larmor is not installed here, so its dependencies are not known: pip install .") from error
    names = [re.split(r"[^\w.-]", text, maxsplit=1)[0] for text in requirements if "extra ==" not in text]
    versions = {name: importlib.metadata.version(name).partition("+")[0] for name in names if name != "ray"}
    return [f"{name}=={version}" for name, version in versions.items()]


def _place(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.submodule_search_locations
    return Path(found.submodule_search_locations[0])
