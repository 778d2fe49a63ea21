"""A run's folder in the store: configuration, history, checkpoints with their manifests, result.

    config.yaml                                       the experiment; created only once
    initial.json, initial/…                           weights that it starts from (cluster/runs/initial.py)
    origin.json, environments/…                       data set, mask and versions (cluster/runs/origin.py)
    lease/NUMBER.json                                 who drives the run (cluster/runs/lease.py)
    history/STEP.json                                 rows of losses (cluster/runs/history.py); a replay writes the same
    checkpoints/step-STEP-TOKEN/…                     every rank's files
    checkpoints/step-STEP-TOKEN/parts/rank-RANK.json  size and SHA-256 of that rank's files, once they are there
    checkpoints/step-STEP-TOKEN/manifest.json         written last: all parts in one, metrics
    trackers/NAME.json                                which run it is at a tracker (cluster/worker/delivery.py)
    warnings/step-STEP-TOKEN.txt                      why that checkpoint was skipped, and which was used instead
    result.json                                       written when the run has finished
    failure.txt                                       why the training cannot continue: it diverged

Needs neither Ray nor DeepSpeed, so that `larmor pull` runs anywhere.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from larmor.cluster.runs.checkpoint import (
    FOLDER,
    Checkpoint,
    DamagedCheckpoint,
    FileEntry,
    Files,
    check_files,
    files_document,
    ranked,
    read_manifest,
    write_manifest,
)
from larmor.cluster.runs.history import HistoryWriter, read_history
from larmor.cluster.runs.lease import check_lease, delete_all_but_lease
from larmor.cluster.runs.run_result import RunResult
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.local_names import inside
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads

REMOVED = " was removed: "  # in a warning about a checkpoint
_THREADS = 16  # 512 small objects take a second, not the half minute of one after another


class RunFolder:
    """The folder of one run. Methods raise what `ObjectStore` raises.

    With the number of a `lease`, what tells others how far the run is (history, manifests, result) is written only
    while that lease is the newest, else `LeaseLost` is raised; so is what removes checkpoints. The look comes right
    before each request, since the store may keep a request waiting for longer than a lease lives.
    """

    def __init__(self, url: str, lease: int | None = None) -> None:
        self.store = ObjectStore(url)
        self.lease = lease
        self._history = HistoryWriter(self.store, write=self._write)

    @property
    def url(self) -> str:
        return self.store.url

    def create(self, config_yaml: str) -> bool:
        """Claim the folder for this configuration; False if another run has it."""
        return self.store.create("config.yaml", config_yaml.encode(), guard=self.check_lease)

    def config_yaml(self) -> str:
        """Raises `InputError` if there is no run here."""
        self.store.check_access()
        try:
            return self.store.read("config.yaml").decode()
        except FileNotFoundError as error:
            raise InputError(f"{self.url}: there is no run here (no config.yaml); check the URL") from error

    def replace_config(self, config_yaml: str) -> None:
        self.check_lease()
        self.store.write("config.yaml", config_yaml.encode())

    def delete(self) -> None:
        """Remove everything but the lease."""
        delete_all_but_lease(self.store, self.check_lease)

    def check_lease(self) -> None:
        """Raises `LeaseLost` if another process drives the run now."""
        if self.lease is not None:
            check_lease(self.store, self.lease)

    def _write(self, path: str, content: bytes) -> None:
        """Put what tells others how far the run is."""
        self.store.write(path, content, guard=self.check_lease)

    # history

    def write_history(self, step: int, rows: Sequence[Mapping[str, float]]) -> None:
        """The rows up to `step` since the last report."""
        assert not rows or int(rows[-1]["step"]) == step, "the newest row is that of the report"
        self._history.add(rows)

    def history(self, after: int = 0) -> list[dict[str, float]]:
        """Rows of all steps beyond `after`, in order; a step that was replayed counts once."""
        return read_history(self.store, after)

    # result

    def write_result(self, result: RunResult) -> None:
        self._write("result.json", result.to_json())

    def result(self) -> RunResult | None:
        """What the finished run wrote, or None. Raises `InputError` if it is not a run's result."""
        try:
            content = self.store.read("result.json")
        except FileNotFoundError:
            return None
        return RunResult.read(content, f"{self.url}/result.json")

    def clear_result(self) -> None:
        """The run continues."""
        self.check_lease()
        self.store.delete("result.json")

    def write_failure(self, reason: str) -> None:
        """Record why the training cannot continue as it is."""
        self._write("failure.txt", reason.encode())

    def failure(self) -> str | None:
        """What `write_failure` recorded, or None."""
        try:
            return self.store.read("failure.txt").decode()
        except FileNotFoundError:
            return None

    def clear_failure(self) -> None:
        self.store.remove(["failure.txt"], guard=self.check_lease)

    # warnings

    def write_warning(self, checkpoint: str, text: str) -> None:
        """Record what was wrong with a checkpoint's folder, or with a tracker of that name."""
        self._write(f"warnings/{checkpoint.split('/')[-1]}.txt", text.encode())

    def warnings(self) -> list[str]:
        return [self.store.read(path).decode() for path in self.store.list("warnings")]

    def clear_warning(self, name: str) -> None:
        """What was wrong is not any more."""
        self.store.remove([f"warnings/{name}.txt"], guard=self.check_lease)

    # checkpoints

    def upload_part(self, folder: Path, checkpoint: str) -> dict[str, FileEntry]:
        """Put one rank's files; return what the manifest says of them."""
        self.store.upload(folder, checkpoint)
        files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
        return {
            path.relative_to(folder).as_posix(): FileEntry(path.stat().st_size, file_digest(path)) for path in files
        }

    def write_part(self, checkpoint: str, rank: int, files: Files) -> None:
        """Say that all files of this rank are there."""
        self.store.write(
            f"{checkpoint}/parts/rank-{rank:04d}.json", json.dumps(files_document(files), indent=1).encode()
        )

    def read_parts(self, checkpoint: str, num_ranks: int) -> Files | None:
        """The files of all ranks; None as long as one of them is not done."""
        paths = list(self.store.list(f"{checkpoint}/parts"))
        if len(paths) < num_ranks:
            return None
        try:
            parts = run_in_threads(lambda path: check_files(json.loads(self.store.read(path))), paths, _THREADS)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"{self.url}/{checkpoint}/parts: a part of the manifest {error}") from error
        return {name: entry for part in parts for name, entry in part.items()}

    def publish(self, checkpoint: Checkpoint) -> None:
        """Write the manifest: from now on the checkpoint is whole."""
        self._write(f"{checkpoint.folder}/manifest.json", write_manifest(checkpoint))

    def published(self) -> list[Checkpoint]:
        """Every checkpoint that has a manifest, by step, with what is wrong with it.

        Raises `InputError` for one of a newer format: what it holds cannot be known.
        """
        sizes = self.store.list("checkpoints")
        folders = {path.removesuffix("/manifest.json") for path in sizes if path.endswith("/manifest.json")}
        found = (self._read_manifest(folder, sizes) for folder in sorted(folders) if FOLDER.fullmatch(folder))
        return sorted((item for item in found if item), key=lambda item: item.step)

    def checkpoints(self) -> list[Checkpoint]:
        """Every whole checkpoint, by step. One with a missing or short file is not whole."""
        return [item for item in self.published() if not item.problem]

    def latest(self) -> Checkpoint | None:
        return max(self.checkpoints(), key=lambda item: item.step, default=None)

    def best(self, metric: str, higher_is_better: bool) -> Checkpoint:
        """The checkpoint with the best value of `metric`, of those whose weights are there; of equal ones the earliest.

        It may lack what only a training needs: then it has a `problem`. Raises `InputError` if there is none, naming
        the metrics there are.
        """
        published = self.published()
        found = [item for item in published if not item.weights_problem]
        rated = ranked(found, metric, higher_is_better)
        if not rated:
            known = sorted({name for item in found for name in item.metrics})
            gap = "".join(f" ({item.folder}/{item.problem})" for item in published[:1])
            have = f"its metrics are {', '.join(known)}" if found else f"it has no whole checkpoint yet{gap}"
            raise InputError(f"{self.url}: no checkpoint with the metric '{metric}'; {have}")
        return rated[0]

    def download(
        self, checkpoint: Checkpoint, target: Path, names: Iterable[str] | None = None, resume: bool = False
    ) -> None:
        """Get files of a checkpoint and verify each; `resume` as `ObjectStore` has it. Raises `DamagedCheckpoint`."""
        for name in checkpoint.files if names is None else names:
            path = inside(target, name)
            if path.is_file() and file_digest(path) == checkpoint.files[name].sha256:
                continue
            try:
                self.store.download(f"{checkpoint.folder}/{name}", path, resume)
            except FileNotFoundError as error:
                raise DamagedCheckpoint(f"{self.url}/{checkpoint.folder}/{name}: the file is missing") from error
            found = file_digest(path)
            if found != checkpoint.files[name].sha256:
                path.unlink()
                raise DamagedCheckpoint(
                    f"{self.url}/{checkpoint.folder}/{name}: checksum {found[:12]}… does not match the manifest's "
                    f"{checkpoint.files[name].sha256[:12]}…: the file was changed or damaged"
                )

    def unpublish(self, checkpoint: Checkpoint) -> None:
        """Take a checkpoint out of the choice; the next `prune` removes its files."""
        self.store.remove([f"{checkpoint.folder}/manifest.json"], guard=self.check_lease)

    def take_back(self, checkpoint: Checkpoint, problem: str, is_model: bool) -> None:
        """Let no training resume from a checkpoint that was found damaged; as a model it counts if `is_model`."""
        if is_model:
            self.publish(dataclasses.replace(checkpoint, problem=problem))
        else:
            self.unpublish(checkpoint)

    def prune(self, newest: int, best: int, metric: str, higher_is_better: bool) -> None:
        """Remove all but the `newest` last whole checkpoints and the `best` models, and what was not uploaded whole.

        Call it while no upload is on its way: one that is not whole was cut off, also if it is of a later step. What is
        removed was there while the lease still held: a successor's checkpoints are not known here, and not touched.
        """
        published = self.published()
        found = [item for item in published if not item.problem]
        if not found:
            return
        kept = {item.folder for item in [*found[-newest:], *ranked(published, metric, higher_is_better)[:best]]}
        folders = {match[0] for path in self.store.list("checkpoints") if (match := FOLDER.match(path))}
        self.check_lease()
        self._tell_of_lost(published, best, metric, higher_is_better)
        for item in published:
            if item.folder not in kept:
                self.unpublish(item)  # first: no half-deleted one is ever chosen
        for folder in sorted(folders - kept):
            self.store.delete(folder, guard=self.check_lease)

    def _tell_of_lost(self, published: Sequence[Checkpoint], best: int, metric: str, higher_is_better: bool) -> None:
        """Keep in mind which of the best ones go because their weights are damaged."""
        undamaged = [dataclasses.replace(item, weights_problem="") for item in published]
        wanted = {item.folder for item in ranked(undamaged, metric, higher_is_better)[:best]}
        for item in published:
            if item.folder in wanted and item.weights_problem:
                value = f"by {metric} ({item.metrics[metric]:g}) it was among the best {best}"
                self.write_warning(item.folder, f"{item.folder}{REMOVED}{item.weights_problem}; {value}")

    def _read_manifest(self, folder: str, sizes: Mapping[str, int]) -> Checkpoint | None:
        """None if it has just been removed."""
        try:
            return read_manifest(self.store.read(f"{folder}/manifest.json"), folder, sizes, self.url)
        except FileNotFoundError:
            return None
