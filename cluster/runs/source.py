"""Where initial weights come from: a checkpoint of a run, or a model directory, at a URL. Nothing there is executed.

What lies there somebody else may have written: names and sizes are checked, files compared with their checksums, and
weights are safetensors alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from larmor.cluster.runs.checkpoint import WEIGHTS, FileEntry, Files
from larmor.cluster.runs.pull import metric_direction
from larmor.cluster.runs.run_folder import RunFolder
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.local_names import inside
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import again_if_damaged

if TYPE_CHECKING:  # who reads a record needs no pydantic
    from larmor.recon.recipe.init_from import InitFromConfig

_LARGEST_HEADER = 100_000_000  # bytes; safetensors' own limit
_STATE = "{network}/state-"


@dataclass(frozen=True)
class Stored:
    """A tensor of the source: the file and the name it has there, and its shape."""

    file: str
    name: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """A checkpoint (`folder` below the run, `step`) or a model directory (""). `config` is that of its training."""

    store: ObjectStore
    folder: str
    step: int | None
    config: Mapping[str, Any]
    files: Files

    @property
    def url(self) -> str:
        return f"{self.store.url}/{self.folder}".rstrip("/")

    @property
    def is_model(self) -> bool:
        return not self.folder

    @property
    def sha256(self) -> str:
        """Of the generator's weights."""
        return self.files[WEIGHTS].sha256

    def setting(self, section: str, key: str) -> Any:
        """A value of its configuration; None for what another Larmor did not have."""
        found = self.config.get(section)
        return found.get(key) if isinstance(found, Mapping) else None

    def weights(self) -> dict[str, Stored]:
        """Name → the tensors of the generator as it is evaluated: averaged, where the training averages."""
        return {item.name: item for item in self._tensors(WEIGHTS)}

    def trained(self, network: str) -> dict[str, Stored]:
        """Name → weights and buffers of a network as its engine saved them; none for a network that is not there."""
        files = [name for name in self.files if name.startswith(_STATE.format(network=network))]
        found = [item for file in sorted(files) for item in self._tensors(file)]
        kinds = ("weight/", "buffer/")
        return {item.name.partition("/")[2]: item for item in found if item.name.startswith(kinds)}

    def download(self, names: Iterable[str], target: Path) -> None:
        """Get these files, each compared with its checksum. Raises `InputError` for one that is damaged or gone."""
        for name in names:
            again_if_damaged(lambda name=name: self._download(name, target))  # type: ignore[misc]

    def _download(self, name: str, target: Path) -> None:
        path = inside(target, name)
        try:
            self.store.download(self._place(name), path)
        except FileNotFoundError as error:
            raise InputError(f"init_from={self.url}: {name} is gone; a running training may have removed it") from error
        expected = self.files[name].sha256
        if (found := file_digest(path)) != expected:
            raise InputError(
                f"init_from={self.url}: {name} was changed or damaged (SHA-256 {found[:12]}…, recorded "
                f"{expected[:12]}…); take another checkpoint, or pull the model again"
            )

    def _tensors(self, file: str) -> list[Stored]:
        """What a safetensors file holds, of its header alone."""
        try:
            size = int.from_bytes(self.store.read(self._place(file), 0, 8), "little")
            if not 0 < size < min(_LARGEST_HEADER, self.files[file].size):
                raise ValueError("it has no header")
            header = json.loads(self.store.read(self._place(file), 8, 8 + size))
            tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
            return [Stored(file, name, tuple(map(int, entry["shape"]))) for name, entry in tensors.items()]
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InputError(f"init_from={self.url}: {file} is no safetensors file ({error}); pull it again") from error

    def _place(self, name: str) -> str:
        return f"{self.folder}/{name}".lstrip("/")


def find_source(config: InitFromConfig) -> Source:
    """The source that `init_from` names. Reads its configuration and manifest alone.

    Raises `InputError` if neither a run nor a model is there, for a run without a checkpoint, and for weights that are
    not those of `sha256`.
    """
    store = ObjectStore(config.url)
    store.check_access()
    if store.exists("sweep.yaml"):
        raise InputError(
            f"init_from={config.url}: is a sweep; name one of its trials, {config.url.rstrip('/')}/trials/ID, or the "
            "folder to which `larmor pull` brings its best one"
        )
    if store.exists("zarr.json"):
        raise InputError(f"init_from={config.url}: is a data set; name a run, or a model that was pulled")
    if not store.exists("config.yaml"):
        raise InputError(f"init_from={config.url}: there is neither a run nor a pulled model (no config.yaml)")
    content = _config(store)
    source = _model(store, content) if store.exists(WEIGHTS) else _run(store, content, config.checkpoint)
    if config.sha256 is not None and config.sha256 != source.sha256:
        raise InputError(
            f"init_from={source.url}: is not what init_from.sha256 names (SHA-256 {config.sha256[:12]}…, there "
            f"{source.sha256[:12]}…); restore it, or set init_from.sha256=null"
        )
    return source


def _config(store: ObjectStore) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(store.read("config.yaml"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"init_from={store.url}: its config.yaml is not YAML ({error})") from error
    if not isinstance(content, Mapping):
        raise InputError(f"init_from={store.url}: its config.yaml is not the configuration of a training")
    if content.get("decoding") is not None:
        raise InputError(f"init_from={store.url}: decodes fMRI and reconstructs no MRI; name another run or model")
    return content


def _model(store: ObjectStore, content: Mapping[str, Any]) -> Source:
    digest, step = "", None
    if store.exists("metrics.json"):
        try:
            record = json.loads(store.read("metrics.json"))
            digest, step = str(record.get("sha256", {}).get(WEIGHTS, "")), record.get("step")
        except (ValueError, AttributeError) as error:
            raise InputError(f"init_from={store.url}: its metrics.json is not JSON ({error}); pull it again") from error
    digest = digest or hashlib.sha256(store.read(WEIGHTS)).hexdigest()  # of a folder that was made by hand
    return Source(store, "", step, content, {WEIGHTS: FileEntry(store.size(WEIGHTS), digest)})


def _run(store: ObjectStore, content: Mapping[str, Any], which: str) -> Source:
    run = RunFolder(store.url)
    training = content.get("training")
    metric = training.get("best_metric", "psnr") if isinstance(training, Mapping) else "psnr"
    chosen = run.latest() if which == "latest" else run.best(*metric_direction(run, str(metric)))
    if chosen is None or WEIGHTS not in chosen.files:
        raise InputError(f"init_from={store.url}: has no whole checkpoint yet; let it train until its first one")
    return Source(store, chosen.folder, chosen.step, content, chosen.files)
