"""What a run or a sweep is made from, kept in its folder: the data set, the mask, and the versions that train it.

origin.json              data set (URL, SHA-256 of its root document, splits by subject, sources with licence and
                         checksums), mask (pattern's hash, achieved ratio), your own code (names, hash,
                         versions) and what your own metrics are; written when the run is claimed
environments/HASH.json   versions, code and machine; one for each environment that has claimed the run

Data set, mask and your own code are pinned: a run that is resumed with others is refused. Larmor's code may change,
and is recorded.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import time
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from larmor.cluster.runs.initial import RECORD
from larmor.cluster.runs.run_folder import RunFolder
from larmor.recon.recipe.metric import METRICS, Metric, from_record, to_record
from larmor.storage.formats.provenance import larmor_version
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:  # who reads a record, as `larmor pull` does, needs no PyTorch
    from larmor.cluster.experiments.experiment import Experiment

E = TypeVar("E", bound="Experiment")

_CODE = ("larmor.storage", "larmor.recon")  # what reads, trains and evaluates
PACKAGES = ("torch", "ray", "deepspeed", "numpy", "zarr", "s3fs", "safetensors")


def versions() -> dict[str, str]:
    """Versions of Larmor, of what it stands on, of Python and of the system that runs now."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    ours = {"larmor": larmor_version(), "code": code_hash()}
    return {**ours, **found, "Python": platform.python_version(), "system": platform.platform()}


def code_hash() -> str:
    """The first half of the SHA-256 of the code that reads, trains and evaluates: versions do not tell trees apart."""
    digest = hashlib.sha256()
    for package in _CODE:
        spec = find_spec(package)
        for place in (spec.submodule_search_locations if spec else None) or ():
            for path in sorted(Path(place).rglob("*.py")):
                digest.update(f"{package}/{path.relative_to(place).as_posix()}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:32]


class Folder(Protocol):
    """The folder of a run or a sweep."""

    store: ObjectStore


def pinned(experiment: E) -> E:
    """The experiment with `data.sha256`, and of a mask file `mask.sha256`, as they are now where it leaves them open.

    Raises `InputError` if what is there is not what it names.
    """
    from larmor.recon.physics.masks import make_mask, mask_hash
    from larmor.recon.recipe.own_code import check_code
    from larmor.storage.dataset.dataset import read_identity
    from larmor.storage.loading.config import check_identity

    found = read_identity(ObjectStore(experiment.data.url))
    check_identity(experiment.data, found)
    code = experiment.code.model_copy(update={"sha256": check_code(experiment.code)})
    parts: dict[str, Any] = {"code": code, "data": experiment.data.model_copy(update={"sha256": found})}
    if experiment.mask.file is not None:
        digest = mask_hash(make_mask(experiment.mask, experiment.data.crop))
        parts["mask"] = experiment.mask.model_copy(update={"sha256": digest})
    return experiment.model_copy(update=parts)


def check_origin(experiment: Experiment, folder: Folder) -> None:
    """Raises `InputError` if what is recorded in `folder` was started with another data set or mask than the present
    one."""
    try:
        known = json.loads(folder.store.read("origin.json"))
    except FileNotFoundError:
        return
    now = _origin(experiment)
    changed = {
        "data": f"the data set {experiment.data.url} has been converted again since",
        "mask": f"the mask file {experiment.mask.file} has changed since"
        if experiment.mask.file
        else "these settings gave another mask then, with other versions (see environments/ of the run)",
        "code": f"your own code in {', '.join(experiment.code.paths)} has changed since",
    }
    names = {"data": "data set", "mask": "mask", "code": "code"}
    for part, what in changed.items():
        if part in now and part in known and known[part]["sha256"] != now[part]["sha256"]:
            raise InputError(
                f"{folder.store.url}: was started with another {names[part]}: {what} "
                f"(SHA-256 {known[part]['sha256'][:12]}…, now {now[part]['sha256'][:12]}…); restore the old one, "
                "choose another name=…, or pass --overwrite to start again"
            )


def record_origin(experiment: Experiment, folder: Folder) -> None:
    """Record what a run or a sweep is made from, once, and the environment that claims it now.

    Raises what `check_origin` raises.
    """
    if folder.store.exists("origin.json"):
        check_origin(experiment, folder)
    else:
        folder.store.create("origin.json", json.dumps(_origin(experiment), indent=1).encode())
    environment = versions()
    digest = hashlib.sha256(json.dumps(environment).encode()).hexdigest()[:16]
    content = json.dumps({"began": time.time(), "versions": environment}, indent=1)
    folder.store.create(f"environments/{digest}.json", content.encode())


def _origin(experiment: Experiment) -> dict[str, Any]:
    from larmor.recon.physics.masks import describe_mask
    from larmor.storage.dataset.dataset import read_root

    data = ObjectStore(experiment.data.url)
    root = read_root(data, kind=None)
    splits = {
        name: {"num_slices": entry["num_slices"], "subjects": entry["subjects"], "volumes": entry["volumes"]}
        for name, entry in root["splits"].items()
    }
    code = {"code": _own_code(experiment)} if experiment.own_parts or experiment.code.paths else {}
    return {
        **code,
        **_own_metrics(experiment),
        "data": {
            "url": data.url,
            "sha256": hashlib.sha256(data.read("zarr.json")).hexdigest(),
            "splits": splits,
            "sources": root["sources"],
        },
        **(
            {}
            if experiment.decoding or experiment.signal.mode == "pet"
            else {"mask": describe_mask(experiment.mask, experiment.data.crop)}
        ),
    }


def _own_metrics(experiment: Experiment) -> dict[str, Any]:
    from larmor.recon.recipe.own_metric import find_metric

    found = {name: to_record(find_metric(name)) for name in experiment.training.own_metrics}
    return {"metrics": found} if found else {}


def metric_of(folder: Folder, name: str) -> Metric:
    """The entry of a metric of Larmor's, or of one's own as it is recorded in the folder: no code is needed for it.

    Raises `InputError` for a metric that is not recorded there.
    """
    if name in METRICS:
        return METRICS[name]
    known = recorded_metrics(folder)
    if name not in known:
        listed = f"; its own metrics are {', '.join(known)}" if known else ", and no metric of one's own"
        raise InputError(f"{folder.store.url}: has no metric {name}{listed}; Larmor's are {', '.join(METRICS)}")
    return known[name]


def recorded_metrics(folder: Folder) -> dict[str, Metric]:
    """The metrics of one's own of a run or a sweep, by MODULE:NAME, as `origin.json` describes them."""
    try:
        recorded = json.loads(folder.store.read("origin.json")).get("metrics", {})
    except FileNotFoundError:
        recorded = {}
    return {name: from_record(metric) for name, metric in recorded.items()}


def _own_code(experiment: Experiment) -> dict[str, Any]:
    """Which parts are not Larmor's, the hash of their code, and the versions of the packages that they lie in."""
    from larmor.recon.recipe.own_code import check_code  # `pull` needs no pydantic

    packages = importlib.metadata.packages_distributions()
    tops = sorted({name.partition(":")[0].partition(".")[0] for name in experiment.own_parts.values()})
    found = {dist: importlib.metadata.version(dist) for top in tops for dist in packages.get(top, ())}
    return {"parts": experiment.own_parts, "sha256": check_code(experiment.code), "versions": found}


def read_origin(run: RunFolder) -> dict[str, Any]:
    """`data`, `mask`, `environments` (oldest first) of a run and, if it has them, its `initial` weights (their record);
    without what an older Larmor did not record."""
    try:
        origin = json.loads(run.store.read("origin.json"))
    except FileNotFoundError:
        origin = {}
    with contextlib.suppress(FileNotFoundError):
        origin["initial"] = json.loads(run.store.read(RECORD))
    environments = [json.loads(run.store.read(path)) for path in run.store.list("environments")]
    return {**origin, "environments": sorted(environments, key=lambda item: item["began"])}


def trained_with(origin: dict[str, Any]) -> Sequence[dict[str, str]]:
    """The versions of each environment that trained the run, oldest first."""
    return [environment["versions"] for environment in origin.get("environments", ())]
