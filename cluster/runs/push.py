"""Publish a model directory: to a folder of a store, or as one commit to a repository of a hub; never half of it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from larmor.cluster.runs.checkpoint import WEIGHTS, FileEntry, Files
from larmor.cluster.runs.front_matter import UNKNOWN, with_licence
from larmor.cluster.runs.model_card import write_card
from larmor.cluster.runs.published import LIMITS, MARKER, REQUIRED, check_weights, write_listing
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.file_digest import file_digest
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:
    from larmor.storage.objects.hub_files import HubFiles

_CARD = "model-card.md"
_HUBS_CARD = "README.md"
_MADE_BY_HUB = {".gitattributes", _HUBS_CARD}
_LIMIT = 2**16


@dataclass(frozen=True)
class Pushed:
    """Where the model lies now, and what the user should know; `is_new` is False if it lay there already."""

    url: str
    notes: tuple[str, ...]
    is_new: bool = True


def push_model(
    folder: Path, url: str, *, licence: str | None = None, overwrite: bool = False, public: bool = False
) -> Pushed:
    """Publish the model directory `folder` at `url`: `s3://…`, a folder, or `hf://OWNER/NAME[@REVISION]`.

    Only the four files of a model are read. `licence` is an id for the card (`apache-2.0`); a new repository of a hub
    is private unless `public`. The same model is not written twice. Raises `InputError` for what is no whole model
    directory, for a place that holds another model (unless `overwrite`) or anything else, and as the store does.
    """
    place = _destination(url)
    record = _checked(folder)
    with _prepared(folder, licence) as files:
        if isinstance(place, ObjectStore):
            is_new = _to_store(url, place, files, overwrite)
        else:
            is_new = _to_hub(place, files, overwrite, public, f"Model of step {record.get('step', '?')}, by Larmor")
    return Pushed(url, tuple(_notes(record, licence, folder)), is_new)


def _destination(url: str) -> ObjectStore | HubFiles:
    if not url.startswith("hf://"):
        return ObjectStore(url)
    from larmor.storage.objects.hub_files import HubFiles

    return HubFiles(url)


def _checked(folder: Path) -> dict[str, Any]:
    """The record of a model directory whose weights are those that were pulled."""
    for name in REQUIRED:
        if not (folder / name).is_file():
            raise InputError(f"{folder / name}: no such file; a model directory is made by `larmor pull`")
    try:
        record = json.loads((folder / "metrics.json").read_text())
        expected = record["sha256"][WEIGHTS]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{folder / 'metrics.json'}: is not what `larmor pull` writes; pull the model again"
        ) from error
    if file_digest(folder / WEIGHTS) != expected:
        raise InputError(f"{folder / WEIGHTS}: has changed since it was pulled (SHA-256, metrics.json); pull it again")
    check_weights(folder / WEIGHTS, str(folder))
    for name, limit in LIMITS.items():
        if (folder / name).is_file() and (size := (folder / name).stat().st_size) > limit:
            raise InputError(f"{folder / name}: has {size} bytes, a published model has at most {limit}")
    return dict(record)


@contextmanager
def _prepared(folder: Path, licence: str | None) -> Iterator[dict[str, Path]]:
    """The files to publish by name, `model.json` last: copies, which nobody changes meanwhile."""
    with tempfile.TemporaryDirectory(prefix="larmor-") as scratch:
        staged = Path(scratch)
        for name in LIMITS:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, staged / name)
        card = staged / _CARD
        if not card.is_file() or not card.read_text().startswith("---\n"):  # of an older Larmor
            write_card(staged, folder.resolve().name)
        if licence:
            card.write_text(with_licence(card.read_text(), licence))
        names = [name for name in LIMITS if (staged / name).is_file()]
        entries: Files = {name: FileEntry((staged / name).stat().st_size, file_digest(staged / name)) for name in names}
        (staged / MARKER).write_bytes(write_listing(entries))
        yield {name: staged / name for name in [*names, MARKER]}


def _to_store(url: str, store: ObjectStore, files: Mapping[str, Path], overwrite: bool) -> bool:
    """Whether anything was written. `model.json` goes first when a model is replaced, and comes last."""
    store.check_access()
    there = set(store.list())
    if strange := sorted(there - {*LIMITS, MARKER}):
        raise InputError(f"{url}: holds {strange[0]}, which belongs to no published model; push to another place")
    if MARKER in there:
        if not _differs(url, lambda: store.read(MARKER), files, overwrite):
            return False
        store.remove([MARKER])
    for name, path in files.items():
        if name != MARKER:
            store.write(name, path.read_bytes())
    store.remove(sorted(there - set(files)))
    if not store.create(MARKER, files[MARKER].read_bytes()):
        raise InputError(
            f"{url}: another `larmor push` has written there at the same time; push again with --overwrite"
        )
    return True


def _to_hub(hub: HubFiles, files: Mapping[str, Path], overwrite: bool, public: bool, message: str) -> bool:
    """Whether anything was written."""
    there = set(hub.names() or ())
    if strange := sorted(there - {*LIMITS, MARKER} - _MADE_BY_HUB):
        raise InputError(f"{hub.url}: holds {strange[0]}, which belongs to no model of Larmor; push to another one")
    if MARKER in there and not _differs(hub.url, lambda: hub.read(MARKER, _LIMIT), files, overwrite):
        return False
    hub.commit({**files, _HUBS_CARD: files[_CARD]}, message, public)
    return True


def _differs(url: str, read: Callable[[], bytes], files: Mapping[str, Path], overwrite: bool) -> bool:
    """Whether another model is there, which may be replaced."""
    if read() == files[MARKER].read_bytes():
        return False
    if not overwrite:
        raise InputError(f"{url}: holds another model; pass --overwrite to replace it, or push to another place")
    return True


def _notes(record: Mapping[str, Any], licence: str | None, folder: Path) -> Iterator[str]:
    card = folder / _CARD
    if not licence and (not card.is_file() or f"\nlicense: {UNKNOWN}\n" in card.read_text()[:200]):
        yield "the card states no licence; --licence ID does"
    data = record.get("origin", {}).get("data") or {}
    subjects = {name for entry in data.get("splits", {}).values() for name in entry["subjects"]}
    if subjects:
        yield f"config.yaml, metrics.json and the card name the data set's URL and its {len(subjects)} subjects"
