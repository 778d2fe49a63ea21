"""What a conversion has done so far, kept beside its data set, so that a killed one can be resumed.

URL/conversion/plan.json             which conversion this is: sources, options, and a random identity
URL/conversion/sources/N.json        what was found in source N
URL/conversion/shards/NAME.json      that a shard is stored, its checksum and those of its slices

Records carry the identity: those of an earlier conversion count for nothing.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from larmor.storage.dataset import dataset, writing
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

_PLAN = f"{dataset.JOURNAL}/plan.json"


@dataclass(frozen=True)
class Journal:
    """The journal of one conversion. `resumed` if another process began it; methods may be called by threads.

    Several processes may do the same conversion: they share the journal, and write the same bytes.
    """

    store: ObjectStore
    plan: Mapping[str, Any]
    identity: str
    resumed: bool
    _new_folders: tuple[Path, ...] = ()

    def read(self, name: str) -> dict[str, Any] | None:
        """The record `name`, None if there is none of this conversion."""
        if not self.resumed:
            return None
        record = _read_json(self.store, f"{dataset.JOURNAL}/{name}.json")
        return record if record and record.get("identity") == self.identity else None

    def write(self, name: str, record: Mapping[str, Any]) -> None:
        content = json.dumps({**record, "identity": self.identity}).encode()
        self.store.write(f"{dataset.JOURNAL}/{name}.json", content)

    @property
    def is_cleared(self) -> bool:
        """Whether an older data set was unpublished for this conversion: what is published now is its own."""
        plan = _read_json(self.store, _PLAN) or {}
        return bool(plan.get("identity") == self.identity and plan.get("cleared"))

    def mark_cleared(self) -> None:
        self.check()
        self.store.write(_PLAN, _encode(self.plan, self.identity, cleared=True))

    def check(self) -> None:
        """Raises `InputError` if another conversion has taken the place since."""
        if not self._is_ours():
            raise InputError(
                f"{self.store.url}: another conversion has started here in the meantime; choose another URL"
            )

    def remove(self) -> None:
        """Delete the journal; the plan goes last, so that a process killed meanwhile can do it again."""
        if self._is_ours():
            for name in ("shards", "sources"):
                self.store.delete(f"{dataset.JOURNAL}/{name}")
            self.store.delete(dataset.JOURNAL)

    def _is_ours(self) -> bool:
        """Also if there is none: then another process has ended the same conversion."""
        plan = _read_json(self.store, _PLAN)
        return plan is None or plan.get("identity") == self.identity

    def discard(self) -> None:
        """`remove`, and the folders that were made for it: as if there had been no conversion."""
        self.remove()
        for folder in self._new_folders:
            with contextlib.suppress(OSError):  # something else lies in it
                folder.rmdir()


def open_journal(store: ObjectStore, plan: Mapping[str, Any], overwrite: bool) -> Journal:
    """Begin the conversion `plan`, or find the journal of the same one that did not end.

    Raises `InputError` if a data set is at `store` (unless `overwrite`, or it is this conversion's own), files of
    others are, or the journal of another conversion is (unless `overwrite`, which removes that journal).
    """
    plan = json.loads(json.dumps(plan))  # tuples become lists, as in what is read back
    new_folders = tuple(_missing_folders(store))
    found = _read_json(store, _PLAN)
    if found and found.get("plan") == plan and found.get("cleared"):
        return Journal(store, plan, found["identity"], resumed=True)
    writing.refuse_occupied(store, overwrite)
    if found and found.get("plan") != plan and overwrite:
        store.delete(dataset.JOURNAL)
        found = None
    identity = uuid.uuid4().hex
    created = found is None and store.create(_PLAN, _encode(plan, identity, cleared=False))
    if not created:
        found = _read_json(store, _PLAN)
        if found is None:  # the conversion that was there has ended meanwhile
            return open_journal(store, plan, overwrite)
        if found.get("plan") != plan:
            raise InputError(
                f"{store.url}: holds an unfinished conversion of other sources, or with other options; repeat that "
                "conversion unchanged, or pass --overwrite to discard it"
            )
        identity = found["identity"]
    journal = Journal(store, plan, identity, not created, new_folders)
    if created:
        try:
            # another conversion may have been published since; it removed its journal afterwards
            writing.refuse_occupied(store, overwrite)
        except InputError:
            journal.discard()
            raise
    return journal


def _encode(plan: Mapping[str, Any], identity: str, cleared: bool) -> bytes:
    return json.dumps({"identity": identity, "cleared": cleared, "plan": plan}, indent=1).encode()


def _read_json(store: ObjectStore, path: str) -> dict[str, Any] | None:
    try:
        content = json.loads(store.read(path))
    except FileNotFoundError:
        return None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"{store.url}/{path}: is not JSON ({error}); remove {store.url}/{dataset.JOURNAL}") from error
    return content if isinstance(content, dict) else None


def _missing_folders(store: ObjectStore) -> list[Path]:
    """The folders on disk that the first object of `store` makes, innermost first."""
    if not store.is_local:
        return []
    folder = Path(store.url)
    return [path for path in (folder, *folder.parents) if not path.exists()]
