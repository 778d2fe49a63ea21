"""A run's folder in the store: configuration, history, checkpoints with their manifests, result.

    config.yaml                                       the experiment; created only once
    origin.json, environments/…                       data set, mask and versions (cluster/origin.py)
    lease/NUMBER.json                                 who drives the run (cluster/lease.py)
    history/STEP.json                                 rows of losses up to that step; a replay writes the same bytes
    checkpoints/step-STEP-TOKEN/…                     every rank's files
    checkpoints/step-STEP-TOKEN/parts/rank-RANK.json  size and SHA-256 of that rank's files, once they are there
    checkpoints/step-STEP-TOKEN/manifest.json         written last: all parts in one, metrics
    warnings/step-STEP-TOKEN.txt                      why that checkpoint was skipped, and which was used instead
    result.json                                       written when the run has finished
    failure.txt                                       why the training cannot go on: it diverged

Needs neither Ray nor DeepSpeed, so that `larmor pull` runs anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.lease import check_lease, delete_all_but_lease
from storage.errors import InputError
from storage.object_store import ObjectStore

MANIFEST_FORMAT = 1
_FOLDER = re.compile(r"checkpoints/step-\d+-[^/]+")
Files = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Checkpoint:
    """A published checkpoint: its folder below the run's, step, metrics, and path → {size, sha256}.

    `problem` says what is wrong with one that is not whole.
    """

    folder: str
    step: int
    metrics: Mapping[str, float]
    files: Files
    problem: str = ""


class DamagedCheckpoint(InputError):
    """A file of a checkpoint is not as it was written; `problem` says which, and why, without a remedy."""

    def __init__(self, problem: str) -> None:
        super().__init__(f"{problem}; remove this checkpoint's folder to use another one")
        self.problem = problem


class RunFolder:
    """The folder of one run. Methods raise what `ObjectStore` raises.

    With the number of a `lease`, what tells others how far the run is (history, manifests, result) is written only
    while that lease is the newest, else `LeaseLost` is raised; so is what removes checkpoints.
    """

    def __init__(self, url: str, lease: int | None = None) -> None:
        self.store = ObjectStore(url)
        self.lease = lease

    @property
    def url(self) -> str:
        return self.store.url

    def create(self, config_yaml: str) -> bool:
        """Claim the folder for this configuration; False if another run has it."""
        return self.store.create("config.yaml", config_yaml.encode())

    def config_yaml(self) -> str:
        """Raises `InputError` if no run is there."""
        self.store.check_access()
        try:
            return self.store.read("config.yaml").decode()
        except FileNotFoundError as error:
            raise InputError(f"{self.url}: no run is there (no config.yaml); check the URL") from error

    def replace_config(self, config_yaml: str) -> None:
        self.check_lease()
        self.store.write("config.yaml", config_yaml.encode())

    def delete(self) -> None:
        """Remove everything but the lease."""
        delete_all_but_lease(self.store)

    def check_lease(self) -> None:
        """Raises `LeaseLost` if another process drives the run now."""
        if self.lease is not None:
            check_lease(self.store, self.lease)

    # history

    def write_history(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        self.check_lease()
        self.store.write(f"history/{step:08d}.json", json.dumps(list(rows)).encode())

    def history(self, after: int = 0) -> list[dict[str, float]]:
        """Rows of all steps beyond `after`, in order; a step that was replayed counts once."""
        rows: dict[int, dict[str, float]] = {}
        for path in self.store.list("history"):
            if int(Path(path).stem) > after:
                for row in json.loads(self.store.read(path)):
                    rows[int(row["step"])] = {**rows.get(int(row["step"]), {}), **row}
        return [rows[step] for step in sorted(rows) if step > after]

    # result

    def write_result(self, result: Mapping[str, Any]) -> None:
        self.check_lease()
        self.store.write("result.json", json.dumps(dict(result), indent=2).encode())

    def result(self) -> dict[str, Any] | None:
        """What the finished run wrote, or None."""
        try:
            return json.loads(self.store.read("result.json"))
        except FileNotFoundError:
            return None

    def clear_result(self) -> None:
        """The run goes on."""
        self.check_lease()
        self.store.delete("result.json")

    def write_failure(self, reason: str) -> None:
        """Record why the training cannot go on as it is."""
        self.check_lease()
        self.store.write("failure.txt", reason.encode())

    def failure(self) -> str | None:
        """What `write_failure` recorded, or None."""
        try:
            return self.store.read("failure.txt").decode()
        except FileNotFoundError:
            return None

    def clear_failure(self) -> None:
        self.store.delete("failure.txt")

    # warnings

    def write_warning(self, checkpoint: str, text: str) -> None:
        """Record what was wrong with a checkpoint's folder."""
        self.store.write(f"warnings/{checkpoint.split('/')[-1]}.txt", text.encode())

    def warnings(self) -> list[str]:
        return [self.store.read(path).decode() for path in self.store.list("warnings")]

    # checkpoints

    def upload_part(self, folder: Path, checkpoint: str) -> dict[str, dict[str, Any]]:
        """Put one rank's files; return what the manifest says of them."""
        self.store.upload(folder, checkpoint)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files
        }

    def write_part(self, checkpoint: str, rank: int, files: Files) -> None:
        """Say that all files of this rank are there."""
        self.store.write(f"{checkpoint}/parts/rank-{rank:04d}.json", json.dumps(files, indent=1).encode())

    def read_parts(self, checkpoint: str, num_ranks: int) -> dict[str, Mapping[str, Any]] | None:
        """The files of all ranks; None as long as one of them is not done."""
        paths = list(self.store.list(f"{checkpoint}/parts"))
        if len(paths) < num_ranks:
            return None
        return {name: entry for path in paths for name, entry in json.loads(self.store.read(path)).items()}

    def publish(self, checkpoint: Checkpoint) -> None:
        """Write the manifest: from now on the checkpoint is whole."""
        self.check_lease()
        document = {
            "format": MANIFEST_FORMAT,
            "step": checkpoint.step,
            "metrics": dict(checkpoint.metrics),
            "files": dict(checkpoint.files),
        }
        self.store.write(f"{checkpoint.folder}/manifest.json", json.dumps(document, indent=1).encode())

    def published(self) -> list[Checkpoint]:
        """Every checkpoint that has a manifest, by step, with what is wrong with it.

        Raises `InputError` for one of a newer format: what it holds cannot be known.
        """
        sizes = self.store.list("checkpoints")
        folders = {path.removesuffix("/manifest.json") for path in sizes if path.endswith("/manifest.json")}
        found = (self._read_manifest(folder, sizes) for folder in sorted(folders) if _FOLDER.fullmatch(folder))
        return sorted((item for item in found if item), key=lambda item: item.step)

    def checkpoints(self) -> list[Checkpoint]:
        """Every whole checkpoint, by step. One with a missing or short file is not whole."""
        return [item for item in self.published() if not item.problem]

    def latest(self) -> Checkpoint | None:
        return max(self.checkpoints(), key=lambda item: item.step, default=None)

    def best(self, metric: str, higher_is_better: bool) -> Checkpoint:
        """The whole checkpoint with the best value of `metric`; of equal ones the earliest.

        Raises `InputError` if there is none, naming the metrics there are.
        """
        published = self.published()
        found = [item for item in published if not item.problem]
        ranked = _ranked(found, metric, higher_is_better)
        if not ranked:
            known = sorted({name for item in found for name in item.metrics})
            gap = "".join(f" ({item.folder}/{item.problem})" for item in published[:1])
            have = f"its metrics are {', '.join(known)}" if found else f"it has no whole checkpoint yet{gap}"
            raise InputError(f"{self.url}: no checkpoint with the metric '{metric}'; {have}")
        return ranked[0]

    def download(
        self, checkpoint: Checkpoint, target: Path, names: Iterable[str] | None = None, resume: bool = False
    ) -> None:
        """Get files of a checkpoint and verify each; `resume` as `ObjectStore` has it. Raises `DamagedCheckpoint`."""
        for name in names or checkpoint.files:
            path = target / name
            if path.is_file() and sha256(path) == checkpoint.files[name]["sha256"]:
                continue
            try:
                self.store.download(f"{checkpoint.folder}/{name}", path, resume)
            except FileNotFoundError as error:
                raise DamagedCheckpoint(f"{self.url}/{checkpoint.folder}/{name}: the file is missing") from error
            found = sha256(path)
            if found != checkpoint.files[name]["sha256"]:
                path.unlink()
                raise DamagedCheckpoint(
                    f"{self.url}/{checkpoint.folder}/{name}: checksum {found[:12]}… does not match the manifest's "
                    f"{checkpoint.files[name]['sha256'][:12]}…: the file was changed or damaged"
                )

    def unpublish(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint out of the choice; the next `prune` removes its files."""
        self.check_lease()
        self.store.delete(f"{checkpoint.folder}/manifest.json")

    def prune(self, newest: int, best: int, metric: str, higher_is_better: bool) -> None:
        """Remove all but the `newest` last checkpoints and the `best` ones, and whatever is not whole.

        Call it while no upload is on its way: one that is not whole was cut off, also if it is of a later step.
        """
        self.check_lease()
        published = self.published()
        found = [item for item in published if not item.problem]
        if not found:
            return
        kept = {item.folder for item in [*found[-newest:], *_ranked(found, metric, higher_is_better)[:best]]}
        for item in published:
            if item.folder not in kept:
                self.unpublish(item)  # first: no half-deleted one is ever chosen
        folders = {match[0] for path in self.store.list("checkpoints") if (match := _FOLDER.match(path))}
        for folder in sorted(folders - kept):
            self.store.delete(folder)

    def _read_manifest(self, folder: str, sizes: Mapping[str, int]) -> Checkpoint | None:
        """None if it has just been removed."""
        try:
            document = json.loads(self.store.read(f"{folder}/manifest.json"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            return _unreadable(folder, f"is not JSON ({error})")
        written = document.get("format") if isinstance(document, dict) else None
        if not isinstance(written, int):
            return _unreadable(folder, "is not a manifest of Larmor")
        if written > MANIFEST_FORMAT:
            raise InputError(
                f"{self.url}/{folder}: has manifest format {written}, this Larmor reads up to {MANIFEST_FORMAT}; "
                "update Larmor"
            )
        try:
            files = document["files"]
            missing = [name for name, entry in files.items() if sizes.get(f"{folder}/{name}") != entry["size"]]
            problem = f"{missing[0]} is missing or cut short" if missing else ""
            return Checkpoint(folder, int(document["step"]), dict(document["metrics"]), files, problem)
        except (KeyError, TypeError, ValueError, AttributeError):  # whatever else may be in JSON
            return _unreadable(folder, "is not a manifest of Larmor")


def _unreadable(folder: str, problem: str) -> Checkpoint:
    return Checkpoint(folder, checkpoint_step(folder), {}, {}, f"manifest.json {problem}")


def _ranked(found: Iterable[Checkpoint], metric: str, higher_is_better: bool) -> list[Checkpoint]:
    """Those that have the metric, the best first; of equal ones the earlier first."""
    sign = -1 if higher_is_better else 1
    rated = [item for item in found if not math.isnan(item.metrics.get(metric, math.nan))]
    return sorted(rated, key=lambda item: (sign * item.metrics[metric], item.step))


def checkpoint_folder(step: int, token: str) -> str:
    """Name of a checkpoint's folder. The token keeps two attempts at one step apart."""
    return f"checkpoints/step-{step:08d}-{token}"


def checkpoint_step(folder: str) -> int:
    return int(folder.split("/")[-1].split("-")[1])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
