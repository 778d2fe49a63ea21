"""Reports on their way to one tracker, in a thread: a service that is slow or away keeps no training waiting.

    trackers/NAME.json   in the run's folder: where the tracker is, the id that it gave the run, the last step it has

What could not be sent is sent later, by this process or by the next one that trains the run: `metrics.jsonl` has it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

from larmor.cluster.runs.event_file import tag
from larmor.cluster.runs.lease import LeaseLost
from larmor.cluster.runs.reports import read_lines
from larmor.cluster.runs.run_folder import RunFolder
from larmor.cluster.worker.tracker import End, Entry, Tracker
from larmor.storage.objects.errors import InputError

_LOG = logging.getLogger(__name__)
_MOST_ENTRIES, _MOST_PICTURES = 2000, 8  # that wait; the oldest go
_AT_ONCE = 100  # entries of one call
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0  # seconds between two attempts


@dataclass(frozen=True)
class Note:
    """What a run's folder remembers of a tracker."""

    place: str
    id: str
    step: int


class Delivery:
    """Sends reports to `tracker`; steps that it has are not sent again. `close` before the run's folder goes."""

    def __init__(self, tracker: Tracker, run: RunFolder) -> None:
        self._tracker, self._run = tracker, run
        self._path = f"trackers/{tracker.name}.json"
        self._pending: list[Entry] = []
        self._lock, self._wake, self._closing = threading.Lock(), threading.Event(), threading.Event()
        self._note: Note | None = None  # once connected
        self._end: End = "finished"
        self._failures = 0
        self._problem = ""
        self._thread = threading.Thread(target=self._work, name=f"larmor-{tracker.name}", daemon=True)
        self._thread.start()

    def add(self, entry: Entry) -> None:
        """Returns at once."""
        with self._lock:
            self._pending.append(entry)
            del self._pending[:-_MOST_ENTRIES]
            for old in [item for item in self._pending if item.picture is not None][:-_MOST_PICTURES]:
                old.picture = None
        self._wake.set()

    def close(self, how: End, seconds: float, beat: Callable[[], None] = lambda: None) -> None:
        """The run ends. Waits until all is sent, for so many `seconds` at most; `beat` is called meanwhile.

        What is left is recorded as a warning in the run's folder.
        """
        self._end = how
        self._closing.set()
        self._wake.set()
        deadline = time.monotonic() + seconds
        while self._thread.is_alive() and time.monotonic() < deadline:
            beat()
            self._thread.join(0.2)
        with self._lock:
            left = len(self._pending)
        if left or self._note is None:
            with contextlib.suppress(InputError, LeaseLost):
                self._run.write_warning(self._tracker.name, self._what_is_missing(left))

    def _what_is_missing(self, left: int) -> str:
        reason = self._problem or "it is slow"
        return (
            f"tracking.{self._tracker.name}={self._tracker.place} lacks {left} reports ({reason}); the same command "
            "sends them once it can be reached"
        )

    def _work(self) -> None:
        try:
            while True:
                closing = self._closing.is_set()
                delivered = self._try(closing)
                if closing:
                    return
                if delivered:
                    self._wake.wait()
                    self._wake.clear()
                else:
                    self._closing.wait(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._failures - 1)))
        except LeaseLost:
            pass  # another process trains the run, and tells the tracker

    def _try(self, closing: bool) -> bool:
        """Send what there is; False if that failed, of which people are told once."""
        try:
            self._deliver()
            if closing:
                self._tracker.end(self._end)
        except LeaseLost:
            raise
        except Exception as error:
            self._failures += 1
            self._problem = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            if self._failures == 1:
                _LOG.warning(
                    "tracking.%s=%s cannot be reached (%s); the training goes on, and what is missing is sent when it "
                    "can: check the address, the network, the key and the library where the workers run",
                    self._tracker.name,
                    self._tracker.place,
                    self._problem,
                )
            return False
        self._failures, self._problem = 0, ""
        return True

    def _deliver(self) -> None:
        if self._note is None:
            self._connect()
        while True:
            with self._lock:
                entries = self._pending[:_AT_ONCE]
            if not entries:
                return
            self._send(entries)
            assert self._note, "connected"
            with self._lock:
                self._pending = [entry for entry in self._pending if entry.step > self._note.step]

    def _send(self, entries: list[Entry]) -> None:
        assert self._note, "connected"
        last, news = self._note.step, []
        for entry in entries:
            if entry.step > last:
                news.append(entry)
                last = entry.step
        if news:
            self._tracker.log(news)
            self._note = dataclasses.replace(self._note, step=last)
            self._keep(self._note)

    def _connect(self) -> None:
        known = self._known()
        notes = [known] if known else []

        def keep(id: str) -> None:
            notes.append(Note(self._tracker.place, id, 0))
            self._keep(notes[-1])

        step = self._tracker.begin(known.id if known else None, keep)
        note = notes[-1]
        self._note = note if step is None else dataclasses.replace(note, step=step)
        self._run.clear_warning(self._tracker.name)
        with self._lock:
            first = self._pending[0].step if self._pending else None
            earlier = [entry for entry in self._reported() if first is None or entry.step < first]
            self._pending = [*earlier, *self._pending]

    def _reported(self) -> list[Entry]:
        """What the run's folder has of earlier, at most the newest 2,000 reports."""
        return [entry_of(json.loads(line)) for line in read_lines(self._run.store)]

    def _known(self) -> Note | None:
        """None if the run is new to the tracker, or the tracker has moved."""
        try:
            note = Note(**json.loads(self._run.store.read(self._path)))
        except FileNotFoundError:
            return None
        return note if note.place == self._tracker.place else None

    def _keep(self, note: Note) -> None:
        self._run.store.write(self._path, json.dumps(asdict(note)).encode(), guard=self._run.check_lease)


def entry_of(record: dict[str, float]) -> Entry:
    """A report, as `metrics.jsonl` has it, by the names of TensorBoard."""
    figures = {tag(name): value for name, value in record.items() if name not in ("step", "time")}
    return Entry(int(record["step"]), record["time"], figures)
