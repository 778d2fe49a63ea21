"""Where a command takes a model: a model directory, or the URL of a run, a sweep or a published model.

What comes from a URL is kept in the cache, by the digest of what it is, and serves where its source is out of reach.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from larmor.cluster.runs.checkpoint import WEIGHTS
from larmor.cluster.runs.published import SHIPPED, is_published, open_place, read_listing, shipped_model
from larmor.cluster.runs.pull import Pulled, best_checkpoint, pull_published, pull_run
from larmor.storage.objects.atomic_file import write_atomically
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.home import cache_home
from larmor.storage.objects.lock_file import locked
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway
from larmor.tuning.search.choice import choose_run
from larmor.tuning.search.sweep_folder import SweepFolder

_LOG = logging.getLogger(__name__)


def model_folder(
    place: str | Path, metric: str | None = None, trial: str | None = None, prefer: str | None = None
) -> Path:
    """The model directory of `place`: a local one as it is, that of a URL from the cache, where it is put first.

    `metric`, `trial` and `prefer` choose as in `pull`. If the source cannot be reached, what it gave last is used, with
    a warning. Raises `InputError` as `pull` does.
    """
    text = str(place)
    if not is_url(text) and not is_training(text):
        return Path(text)
    if text.startswith(SHIPPED):
        return shipped_model(text)
    known = _models() / "references" / f"{_digest(text, metric, trial, prefer)}.json"
    try:
        folder = _from_source(text, metric, trial, prefer)
    except StoreAway as error:
        if (last := _known(known)) is None:
            raise
        _LOG.warning("%s; using what it gave last, %s", error, last)
        return last
    about = {"url": text.partition("?")[0], "model": folder.name}
    write_atomically(known, json.dumps(about, indent=1).encode(), overwrite=True)
    return folder


def is_url(place: str | Path) -> bool:
    return "://" in str(place)


def is_training(source: str) -> bool:
    """Whether it is a run or a sweep: both have a configuration, which a model directory has as well."""
    if is_url(source):
        return SweepFolder(source).exists() or ObjectStore(source).exists("config.yaml")
    local = Path(source)
    return local.is_dir() and (
        SweepFolder(source).exists() or any((local / name).exists() for name in ("checkpoints", "lease", "origin.json"))
    )


def tables_folder(models: Sequence[str | Path], to: str | Path | None) -> Path:
    """Where an evaluation of these models goes: `to`, or the folder `evaluation` of the first one.

    Raises `InputError` if that one is a URL: the cache is no place for tables.
    """
    if to is None and is_url(models[0]):
        raise InputError(f"{models[0]}: is a URL, and the tables need a place; pass --to FOLDER")
    return Path(to) if to else Path(models[0]) / "evaluation"


def pull_place(
    url: str,
    target: Path,
    metric: str | None = None,
    trial: str | None = None,
    prefer: str | None = None,
    full: bool = False,
    overwrite: bool = False,
) -> Pulled:
    """What `larmor pull` does: the best checkpoint of a run or sweep, or a published model as it is."""
    if not is_published(url):
        choice = choose_run(url, metric, trial, prefer)
        return pull_run(choice.run, choice.metric, target, overwrite, full, choice.about)
    _refuse_choice(url, metric, trial, prefer, full)
    with open_place(url) as place:
        return pull_published(place, read_listing(place), target, overwrite)


def _from_source(url: str, metric: str | None, trial: str | None, prefer: str | None) -> Path:
    if is_published(url):
        _refuse_choice(url, metric, trial, prefer)
        with open_place(url) as place:
            listing = read_listing(place)
            return _kept(listing.sha256, lambda folder: pull_published(place, listing, folder, overwrite=True))
    choice = choose_run(url, metric, trial, prefer)
    best = best_checkpoint(choice.run, choice.metric)
    state = [choice.run.result() is not None, choice.about.stated() if choice.about else None]
    digest = _digest(choice.run.url, best.folder, best.files[WEIGHTS].sha256, choice.metric, state)
    return _kept(digest, lambda folder: pull_run(choice.run, choice.metric, folder, overwrite=True, about=choice.about))


def _kept(digest: str, pull: Callable[[Path], Any]) -> Path:
    """The folder in the cache, filled by `pull` if it is not there; one process at a time."""
    folder = _models() / digest
    _models().mkdir(mode=0o700, parents=True, exist_ok=True)
    with locked(_models() / f"{digest}.lock", wait=True):
        if not (folder / WEIGHTS).is_file():
            pull(folder)
    return folder


def _known(reference: Path) -> Path | None:
    try:
        folder = _models() / json.loads(reference.read_text())["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return folder if (folder / WEIGHTS).is_file() else None


def _models() -> Path:
    return cache_home() / "models"


def _digest(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def _refuse_choice(url: str, metric: str | None, trial: str | None, prefer: str | None, full: bool = False) -> None:
    given = [("--metric", metric), ("--trial", trial), ("--prefer", prefer), ("--full", full)]
    for option, value in given:
        if value:
            raise InputError(f"{url}: is a published model, of one checkpoint; leave {option} out")
