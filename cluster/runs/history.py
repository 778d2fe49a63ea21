"""A run's history in its folder: rows of losses, one for each step.

    history/STEP.json   the rows of up to 2,000 steps, the last of which is STEP or will be

S3 cannot append, so the newest object is written anew with each report. A replay after a restart writes the same rows
to the same objects. (Runs of earlier versions have an object for each report, named for its last step.)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby
from operator import lt
from pathlib import Path
from typing import TypeVar

from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads

_STEPS = 2000  # of an object
_THREADS = 8
_FOLDER = "history"
_DIGITS = 8  # of an object's name, which then sort as their steps do

R = TypeVar("R")

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
                self._path, self._rows = path, {int(row["step"]): row for row in _read(self._store, path)}
            _merge(self._rows, part)
            self._write(path, json.dumps([self._rows[step] for step in sorted(self._rows)]).encode())


def read_history(store: ObjectStore, after: int = 0) -> list[dict[str, float]]:
    """Rows of all steps beyond `after`, in order; a step that was replayed counts once.

    Costs one listing of the objects that hold them, and these.
    """
    rows: list[dict[str, float]] = []
    for part in read_parts(store, after, lambda part: part):
        if rows and part and part[0]["step"] <= rows[-1]["step"]:  # objects of earlier versions, after a restart
            rows = _in_order([*rows, *part])
        else:
            rows += part
    return [row for row in rows if row["step"] > after] if after else rows


def read_parts(store: ObjectStore, after: int, make: Callable[[list[dict[str, float]]], R]) -> list[R]:
    """What `make` makes of the rows of each object with steps beyond `after`, in order."""
    first = f"{_FOLDER}/{after:08d}.json" if 0 < after < 10**_DIGITS else ""
    paths = [path for path in store.list(_FOLDER, False, first) if int(Path(path).stem) > after]
    return run_in_threads(lambda path: make(_read(store, path)), paths, _THREADS)


def _in_order(rows: Iterable[Mapping[str, float]]) -> list[dict[str, float]]:
    """Each step once, ascending; of a step that comes twice the later figures."""
    found: Rows = {}
    _merge(found, rows)
    return [found[step] for step in sorted(found)]


def _merge(rows: Rows, more: Iterable[Mapping[str, float]]) -> None:
    for row in more:
        step = int(row["step"])
        rows[step] = {**rows.get(step, {}), **row}


def _read(store: ObjectStore, path: str) -> list[dict[str, float]]:
    """The rows of an object, ascending; none if it is not there."""
    try:
        rows: list[dict[str, float]] = json.loads(store.read(path))
    except FileNotFoundError:
        return []
    steps = [row["step"] for row in rows]
    return rows if all(map(lt, steps, steps[1:])) else _in_order(rows)
