"""A run's reports as one JSON line each, for people and programs: step, losses, validation, speed, goodput, time.

    metrics.jsonl          the newest reports, at most 2,000
    metrics/NUMBER.jsonl   2,000 older ones each

S3 cannot append, so the newest file is written anew with each report: that is why it does not grow for ever.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from larmor.cluster.runs.attempts import Attempt, first_and_last, goodput
from larmor.cluster.runs.event_file import EventFile
from larmor.storage.objects.object_store import ObjectStore

if TYPE_CHECKING:  # who reads reports needs no NumPy
    import numpy as np

    Picture = np.ndarray | None  # (height, width) uint8

NEWEST = "metrics.jsonl"
Report = dict[str, float]  # name → figure, with step, time and attempt
Rows = Sequence[Mapping[str, float]]


class Reports:
    """What rank 0 of an attempt tells the world: its history, `metrics.jsonl` and TensorBoard's event files.

    Written in order by a thread of their own, so that a store that is slow or away does not keep the training waiting.
    After an error nothing more is written, and the next `add` raises it. Whoever publishes a checkpoint waits for
    them before, so that nothing of a checkpointed step is lost. `write_history` is called in that thread, `tell` by
    `add` itself, before anybody can read of the report.
    """

    def __init__(
        self,
        store: ObjectStore,
        attempt: Attempt,
        scratch: Path,
        lines_of_a_file: int = 2000,
        write_history: Callable[[int, Rows], None] = lambda step, rows: None,
        tell: Callable[[Report, Picture], None] = lambda record, picture: None,
    ) -> None:
        self._store, self._attempt, self._most_lines = store, attempt, lines_of_a_file
        self._write_history, self._tell = write_history, tell
        found = first_and_last(store)
        self._first_began = found[0].began if found else attempt.began
        self._lines = read_lines(store)
        self._events = EventFile(store, attempt.number, attempt.step, scratch)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="larmor-reports")
        self._newest: Future[None] | None = None
        self._error: BaseException | None = None

    def add(self, step: int, metrics: Mapping[str, float], history: Rows = (), picture: Picture = None) -> None:
        """Take over a report and the rows since the last one, and what the validation looks like.

        Raises the error that an earlier report met.
        """
        if self._error:
            raise self._error
        now = time.time()
        record: Report = {
            "step": step,
            "time": now,
            "attempt": self._attempt.number,
            "goodput": goodput(metrics, self._first_began, now),
            **metrics,
        }
        self._tell(record, picture)
        self._newest = self._thread.submit(self._write, record, history, picture)

    def up_to_now(self) -> Callable[[], None]:
        """A function that waits until everything added before is stored, and raises the error if it cannot be."""
        newest = self._newest
        return lambda: newest.result() if newest else None

    def wait(self) -> None:
        """Until everything that was added is stored. Raises the error if it cannot be."""
        self.up_to_now()()

    def close(self) -> None:
        """Wait for what is under way."""
        self._thread.shutdown()

    def _write(self, record: Mapping[str, float], history: Rows, picture: Picture) -> None:
        if self._error:
            raise self._error
        try:
            self._write_history(int(record["step"]), history)
            self._write_record(record, picture)
        except BaseException as error:
            self._error = error
            raise

    def _write_record(self, record: Mapping[str, float], picture: Picture) -> None:
        if len(self._lines) >= self._most_lines:
            number = len(self._store.list("metrics")) + 1
            self._store.write(f"metrics/{number:04d}.jsonl", _joined(self._lines))
            self._lines.clear()
        self._lines.append(json.dumps(record))
        self._store.write(NEWEST, _joined(self._lines))
        self._events.add(record, picture)


def read_lines(store: ObjectStore) -> list[str]:
    """The lines of the newest reports."""
    try:
        return store.read(NEWEST).decode().splitlines()
    except FileNotFoundError:
        return []


def last_report(store: ObjectStore) -> Report | None:
    """The newest report, without reading all of them; None before the first."""
    try:
        tail = store.read(NEWEST, -8192)
    except FileNotFoundError:
        return None
    lines = tail.decode(errors="replace").splitlines()
    return json.loads(lines[-1]) if lines else None


def new_reports(store: ObjectStore) -> Callable[[], list[Report]]:
    """A function that returns the reports which it has not returned before; of what was there at first, none."""
    seen = store.size(NEWEST) if store.exists(NEWEST) else 0

    def fetch() -> list[Report]:
        nonlocal seen
        content = _content(store, seen)
        if not content and store.exists(NEWEST) and store.size(NEWEST) < seen:
            seen = 0  # a new file was begun
            content = _content(store, seen)
        seen += len(content)
        return [json.loads(line) for line in content.splitlines()]

    return fetch


def _content(store: ObjectStore, start: int) -> bytes:
    try:
        return store.read(NEWEST, start)
    except FileNotFoundError:
        return b""


def _joined(lines: list[str]) -> bytes:
    return "".join(f"{line}\n" for line in lines).encode()
