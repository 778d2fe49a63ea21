"""What a run is made from, kept in its folder: the data set, the mask, and the versions that train it.

origin.json              data set (URL, SHA-256 of its root document, splits by subject, sources with licence and
                         checksums) and mask (pattern's hash, achieved ratio); written when the run is claimed
environments/HASH.json   versions and machine; one for each environment that has claimed the run
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cluster.run_folder import RunFolder

if TYPE_CHECKING:  # who reads a record, as `larmor pull` does, needs no PyTorch
    from cluster.experiment import Experiment

PACKAGES = ("larmor", "torch", "ray", "deepspeed", "numpy", "zarr", "s3fs", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Larmor, of what it stands on, of Python and of the system that runs now."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return {**found, "Python": platform.python_version(), "system": platform.platform()}


def record_origin(experiment: Experiment, run: RunFolder) -> None:
    """Record what `run` is made from, once, and the environment that claims it now."""
    if not run.store.exists("origin.json"):
        run.store.create("origin.json", json.dumps(_origin(experiment), indent=1).encode())
    environment = versions()
    digest = hashlib.sha256(json.dumps(environment).encode()).hexdigest()[:16]
    content = json.dumps({"began": time.time(), "versions": environment}, indent=1)
    run.store.create(f"environments/{digest}.json", content.encode())


def _origin(experiment: Experiment) -> dict[str, Any]:
    from recon.masks import describe_mask
    from storage.dataset import read_root
    from storage.object_store import ObjectStore

    data = ObjectStore(experiment.data.url)
    root = read_root(data)
    splits = {
        name: {"num_slices": entry["num_slices"], "subjects": entry["subjects"], "volumes": entry["volumes"]}
        for name, entry in root["splits"].items()
    }
    return {
        "data": {
            "url": data.url,
            "sha256": hashlib.sha256(data.read("zarr.json")).hexdigest(),
            "splits": splits,
            "sources": root["sources"],
        },
        "mask": describe_mask(experiment.mask, experiment.data.crop),
    }


def read_origin(run: RunFolder) -> dict[str, Any]:
    """`data`, `mask` and `environments` (oldest first) of a run; without what an older Larmor did not record."""
    try:
        origin = json.loads(run.store.read("origin.json"))
    except FileNotFoundError:
        origin = {}
    environments = [json.loads(run.store.read(path)) for path in run.store.list("environments")]
    return {**origin, "environments": sorted(environments, key=lambda item: item["began"])}


def trained_with(origin: dict[str, Any]) -> Sequence[dict[str, str]]:
    """The versions of each environment that trained the run, oldest first."""
    return [environment["versions"] for environment in origin.get("environments", ())]
