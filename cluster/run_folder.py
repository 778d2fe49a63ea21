"""A run's folder in the store: configuration, history, checkpoints with their manifests, result.

    config.yaml                                the experiment; created only once
    history/STEP.json                          rows of losses up to that step; written again by a replay, same bytes
    checkpoints/step-STEP-TOKEN/…              every rank's files
    checkpoints/step-STEP-TOKEN/manifest.json  written last: size and SHA-256 of every file, metrics
    result.json                                written when the run has finished
    failure.txt                                why the training cannot go on: it diverged

Needs neither Ray nor DeepSpeed, so that `larmor pull` runs anywhere.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from storage.errors import InputError
from storage.object_store import ObjectStore

MANIFEST_FORMAT = 1


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder below the run's, step, metrics, and path → {size, sha256}."""

    folder: str
    step: int
    metrics: Mapping[str, float]
    files: Mapping[str, Mapping[str, Any]]


class RunFolder:
    """The folder of one run. Methods raise what `ObjectStore` raises."""

    def __init__(self, url: str) -> None:
        self.store = ObjectStore(url)

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

    def delete(self) -> None:
        self.store.delete("")

    # history

    def write_history(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
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
        self.store.write("result.json", json.dumps(dict(result), indent=2).encode())

    def result(self) -> dict[str, Any] | None:
        """What the finished run wrote, or None."""
        try:
            return json.loads(self.store.read("result.json"))
        except FileNotFoundError:
            return None

    def write_failure(self, reason: str) -> None:
        """Record why the training cannot go on as it is."""
        self.store.write("failure.txt", reason.encode())

    def failure(self) -> str | None:
        """What `write_failure` recorded, or None."""
        try:
            return self.store.read("failure.txt").decode()
        except FileNotFoundError:
            return None

    def clear_failure(self) -> None:
        self.store.delete("failure.txt")

    # checkpoints

    def upload_part(self, folder: Path, checkpoint: str) -> dict[str, dict[str, Any]]:
        """Put one rank's files; return what the manifest says of them."""
        self.store.upload(folder, checkpoint)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): {"size": path.stat().st_size, "sha256": sha256(path)} for path in files
        }

    def publish(self, checkpoint: Checkpoint) -> None:
        """Write the manifest: from now on the checkpoint is whole."""
        document = {
            "format": MANIFEST_FORMAT,
            "step": checkpoint.step,
            "metrics": dict(checkpoint.metrics),
            "files": dict(checkpoint.files),
        }
        self.store.write(f"{checkpoint.folder}/manifest.json", json.dumps(document, indent=1).encode())

    def checkpoints(self) -> list[Checkpoint]:
        """Every whole checkpoint, by step. One with a missing or short file is not whole."""
        sizes = self.store.list("checkpoints")
        found = []
        for path in sizes:
            if not path.endswith("/manifest.json"):
                continue
            folder = path.removesuffix("/manifest.json")
            checkpoint = self._read_manifest(folder)
            if not _incomplete(checkpoint, sizes):
                found.append(checkpoint)
        return sorted(found, key=lambda item: item.step)

    def latest(self) -> Checkpoint | None:
        return max(self.checkpoints(), key=lambda item: item.step, default=None)

    def best(self, metric: str, higher_is_better: bool) -> Checkpoint:
        """The whole checkpoint with the best value of `metric`; of equal ones the earliest.

        Raises `InputError` if there is none, naming the metrics there are.
        """
        found = self.checkpoints()
        rated = [item for item in found if not math.isnan(item.metrics.get(metric, math.nan))]
        if not rated:
            known = sorted({name for item in found for name in item.metrics})
            have = f"its metrics are {', '.join(known)}" if found else f"it has no whole checkpoint yet{self._gap()}"
            raise InputError(f"{self.url}: no checkpoint with the metric '{metric}'; {have}")
        sign = 1 if higher_is_better else -1
        return max(rated, key=lambda item: (sign * item.metrics[metric], -item.step))

    def download(self, checkpoint: Checkpoint, target: Path, names: Iterable[str] | None = None) -> None:
        """Get files of a checkpoint and verify each. Raises `InputError` at a checksum that does not match."""
        for name in names or checkpoint.files:
            path = target / name
            if path.is_file() and sha256(path) == checkpoint.files[name]["sha256"]:
                continue
            try:
                self.store.download(f"{checkpoint.folder}/{name}", path)
            except FileNotFoundError as error:
                raise InputError(f"{self.url}/{checkpoint.folder}/{name}: the file is missing") from error
            found = sha256(path)
            if found != checkpoint.files[name]["sha256"]:
                path.unlink()
                raise InputError(
                    f"{self.url}/{checkpoint.folder}/{name}: checksum {found[:12]}… does not match the manifest's "
                    f"{checkpoint.files[name]['sha256'][:12]}…; the file was changed or damaged: remove this "
                    "checkpoint's folder to use another one"
                )

    def prune(self, keep: int, metric: str, higher_is_better: bool) -> None:
        """Remove all but the newest `keep` checkpoints and the best one, and older half-uploaded ones."""
        found = self.checkpoints()
        if not found:
            return
        kept = {item.folder for item in found[-keep:]}
        if any(metric in item.metrics for item in found):
            kept.add(self.best(metric, higher_is_better).folder)
        whole = {item.folder for item in found}
        folders = {"/".join(path.split("/")[:2]) for path in self.store.list("checkpoints")}
        for folder in sorted(folders - kept):
            if folder in whole:
                self.store.delete(f"{folder}/manifest.json")  # first: no half-deleted one is ever chosen
            elif checkpoint_step(folder) > found[-1].step:
                continue
            self.store.delete(folder)

    def _gap(self) -> str:
        """What the first published checkpoint lacks, as the end of an error message."""
        sizes = self.store.list("checkpoints")
        for path in sizes:
            if path.endswith("/manifest.json"):
                folder = path.removesuffix("/manifest.json")
                if missing := _incomplete(self._read_manifest(folder), sizes):
                    return f" ({folder}/{missing[0]} is missing or cut short)"
        return ""

    def _read_manifest(self, folder: str) -> Checkpoint:
        try:
            document = json.loads(self.store.read(f"{folder}/manifest.json"))
        except json.JSONDecodeError as error:
            raise InputError(f"{self.url}/{folder}/manifest.json: is not JSON ({error}); remove this folder") from error
        if not isinstance(document, dict) or not document.keys() >= {"format", "step", "metrics", "files"}:
            raise InputError(f"{self.url}/{folder}/manifest.json: is not a manifest of Larmor; remove this folder")
        if document["format"] > MANIFEST_FORMAT:
            raise InputError(
                f"{self.url}/{folder}: has manifest format {document['format']}, this Larmor reads up to "
                f"{MANIFEST_FORMAT}; update Larmor"
            )
        return Checkpoint(folder, document["step"], document["metrics"], document["files"])


def _incomplete(checkpoint: Checkpoint, sizes: Mapping[str, int]) -> list[str]:
    """Files that the manifest names and that are not there in full size."""
    folder = checkpoint.folder
    return [name for name, entry in checkpoint.files.items() if sizes.get(f"{folder}/{name}") != entry["size"]]


def checkpoint_folder(step: int, token: str) -> str:
    """Name of a checkpoint's folder. The token keeps two attempts at one step apart."""
    return f"checkpoints/step-{step:08d}-{token}"


def checkpoint_step(folder: str) -> int:
    return int(folder.split("/")[-1].split("-")[1])


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
