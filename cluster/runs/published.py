"""A published model: what `larmor push` writes to a place, and how it is read back from places of other people.

    generator.safetensors, config.yaml, metrics.json, model-card.md   as in a model directory
    model.json                                                        written last: size and SHA-256 of each of them

Without `model.json` there is no model. What it says is checked before anything is believed: names are those of the four
files and no others, sizes have limits, and weights are safetensors. Needs no PyTorch.
"""

from __future__ import annotations

import hashlib
import importlib.resources
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from larmor.cluster.runs.checkpoint import WEIGHTS, Files, check_files, files_document
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.object_store import ObjectStore

MARKER = "model.json"
LIMITS: Mapping[str, int] = {  # bytes
    WEIGHTS: 8 * 2**30,
    "config.yaml": 2**20,
    "metrics.json": 2**25,
    "model-card.md": 2**22,
}
REQUIRED = (WEIGHTS, "config.yaml", "metrics.json")
SHIPPED = "larmor://"
_FORMAT = 1
_MARKER_LIMIT = 2**16
_WEB = ("https://", "http://", "hf://", SHIPPED)


class Place(Protocol):
    """Where a published model lies. `read` and `download` raise `FileNotFoundError` for a file that is not there."""

    url: str

    def read(self, name: str, limit: int) -> bytes:
        """The whole file, of at most `limit` bytes."""

    def download(self, name: str, target: Path, size: int) -> None:
        """Get a file of `size` bytes, in place only when it is whole."""


@dataclass(frozen=True)
class Listing:
    """What `model.json` says; its SHA-256 is that of the model."""

    files: Files
    sha256: str


class _StorePlace:
    """A folder in the object store."""

    def __init__(self, store: ObjectStore, url: str) -> None:
        self.url = url
        self._store = store

    def read(self, name: str, limit: int) -> bytes:
        size = self._store.size(name)
        if size > limit:
            raise InputError(f"{self.url}/{name}: has {size} bytes, more than {limit}; it is not what it should be")
        return self._store.read(name)

    def download(self, name: str, target: Path, size: int) -> None:
        if (found := self._store.size(name)) != size:
            raise InputError(f"{self.url}/{name}: has {found} bytes, and not the {size} that {MARKER} states")
        self._store.download(name, target, resume=True)


def is_published(url: str) -> bool:
    """Whether a published model is meant, and not a run or a sweep."""
    if url.startswith(_WEB):
        return True
    store = ObjectStore(url)
    store.check_access()  # soon: with the patience of a training we would wait for minutes
    return store.exists(MARKER)


@contextmanager
def open_place(url: str) -> Iterator[Place]:
    """The place that a URL names: of the web, of a hub, in a store, or a model that Larmor ships.

    Raises `InputError` for a URL that is none of these.
    """
    if url.startswith("hf://"):
        from larmor.storage.objects.hub_files import HubFiles

        yield HubFiles(url)
    elif url.startswith(("https://", "http://")):
        with _web_place(url) as place:
            yield place
    elif url.startswith(SHIPPED):
        yield _StorePlace(ObjectStore(shipped_model(url)), url)
    else:
        store = ObjectStore(url)
        store.check_access()
        yield _StorePlace(store, store.url)


@contextmanager
def _web_place(url: str) -> Iterator[Place]:
    from larmor.storage.objects.web_files import WebFiles

    files = WebFiles(url)
    if not files.url.endswith(".zip"):
        yield files
        return
    from larmor.storage.objects.zip_files import ZipFiles

    with tempfile.TemporaryDirectory(prefix="larmor-") as scratch:
        archive = Path(scratch) / "model.zip"
        try:
            files.download_whole(archive, sum(LIMITS.values()))
        except FileNotFoundError as error:
            raise InputError(f"{files.url}: there is no such file; check the URL") from error
        yield ZipFiles(archive, files.url, MARKER)


def shipped_models() -> list[str]:
    """The names of the models that come with Larmor."""
    return sorted(path.name for path in _shipped().iterdir() if path.is_dir()) if _shipped().is_dir() else []


def shipped_model(url: str) -> Path:
    """The folder of `larmor://NAME`. Raises `InputError` for another name than one of `shipped_models`."""
    name = url.removeprefix(SHIPPED).rstrip("/")
    if name not in shipped_models():
        raise InputError(f"{url}: is not shipped here; choose of {', '.join(shipped_models()) or 'none'}")
    return _shipped() / name


def _shipped() -> Path:
    return Path(str(importlib.resources.files("larmor.recon.models"))) / "shipped"


def write_listing(files: Files) -> bytes:
    """The content of `model.json`."""
    return json.dumps({"format": _FORMAT, "files": files_document(files)}, indent=1).encode()


def read_listing(place: Place) -> Listing:
    """Raises `InputError` if there is no model, one of a newer format, or anything in it that no model has."""
    try:
        content = place.read(MARKER, _MARKER_LIMIT)
    except FileNotFoundError as error:
        raise InputError(
            f"{place.url}: there is no published model here (no {MARKER}); check the URL; `larmor push` publishes one"
        ) from error
    problem = f"{place.url}/{MARKER}: is not what `larmor push` writes"
    try:
        document = json.loads(content)
        written = document["format"]
        if isinstance(written, int) and written > _FORMAT:
            raise InputError(
                f"{place.url}: has model format {written}, this Larmor reads up to {_FORMAT}; update Larmor"
            )
        files = check_files(document["files"])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{problem} ({str(error)[:100]}); do not trust its author") from error
    for name, entry in files.items():
        if name not in LIMITS:
            raise InputError(f"{problem}: it names {name[:100]!r}, which no model has; do not trust its author")
        if not 0 <= entry.size <= LIMITS[name]:
            raise InputError(f"{problem}: {name} has {entry.size} bytes, the limit is {LIMITS[name]}")
    if missing := [name for name in REQUIRED if name not in files]:
        raise InputError(f"{problem}: it names no {missing[0]}; push the model again")
    return Listing(files, hashlib.sha256(content).hexdigest())


def fetch(place: Place, listing: Listing, folder: Path) -> None:
    """Get every file of a model into `folder`, resuming what an earlier call left there, and verify it.

    Raises `InputError` for a file that is missing, that does not match its checksum, or is no safetensors.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, entry in listing.files.items():
        path = folder / name
        if path.is_file() and file_digest(path) == entry.sha256:
            continue
        try:
            place.download(name, path, entry.size)
        except FileNotFoundError as error:
            raise InputError(f"{place.url}: {name} is missing there; push the model again") from error
        if (found := file_digest(path)) != entry.sha256:
            path.unlink()
            raise InputError(
                f"{place.url}/{name}: checksum {found[:12]}… does not match the {entry.sha256[:12]}… of {MARKER}: it "
                "was changed or damaged; pull again, or have the model pushed again"
            )
    check_weights(folder / WEIGHTS, place.url)


def check_weights(path: Path, owner: str) -> None:
    """Raises `InputError` if the file is anything but safetensors. Nothing is loaded, and nothing unpickled."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="np") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise InputError(
            f"{owner}: its {path.name} is not a safetensors file ({error}); nothing else is loaded, do not trust it"
        ) from error
