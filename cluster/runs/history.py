"""A run's history in its folder: rows of losses, one for each step.

    history/STEP.json   the rows of up to 2,000 steps, the last of which is STEP or will be

S3 cannot append, so the newest object is written anew with each report. A replay after a restart writes the same rows
to the same objects. (Runs of earlier versions have an object for each report, named for its last step.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from pathlib import Path

from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads

_STEPS = 2000  # of an object
_THREADS = 8
_FOLDER = "history"

Rows = dict[int, dict[str, float]]


class HistoryWriter:
    """Writes rows; what an earlier process wrote of the same object stays. For one thread at a time."""

    def __init__(
        self, store: ObjectStore, steps_of_an_object: int = _STEPS, write: Callable[[str, bytes], None] | None = None
    ) -> None:
        """`write` puts an object, if that is not for the store to do as it likes."""
        self._store, self._steps, self._write = store, steps_of_an_object, write or store.write
        self._path = ""
        self._rows: Rows = {}

    def add(self, rows: Sequence[Mapping[str, float]]) -> None:
        """Store the rows of some steps, in order. Raises what `ObjectStore` raises."""
        for last, part in groupby(rows, key=lambda row: -(-int(row["step"]) // self._steps) * self._steps):
            path = f"{_FOLDER}/{last:08d}.json"
            if path != self._path:
                self._path, self._rows = path, _read(self._store, path)
            _merge(self._rows, part)
            self._write(path, json.dumps([self._rows[step] for step in sorted(self._rows)]).encode())


def read_history(store: ObjectStore, after: int = 0) -> list[dict[str, float]]:
    """Rows of all steps beyond `after`, in order; a step that was replayed counts once."""
    paths = [path for path in store.list(_FOLDER) if int(Path(path).stem) > after]
    rows: Rows = {}
    for part in run_in_threads(lambda path: _read(store, path), paths, _THREADS):
        _merge(rows, part.values())
    return [rows[step] for step in sorted(rows) if step > after]


def _merge(rows: Rows, more: Iterable[Mapping[str, float]]) -> None:
    for row in more:
        step = int(row["step"])
        rows[step] = {**rows.get(step, {}), **row}


def _read(store: ObjectStore, path: str) -> Rows:
    try:
        content = json.loads(store.read(path))
    except FileNotFoundError:
        return {}
    rows: Rows = {}
    _merge(rows, content)
    return rows
