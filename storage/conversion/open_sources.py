"""Scans that several shards need: opened once, shared by threads, closed when others need the room."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import numpy as np

Read = Callable[[int], np.ndarray]


@dataclass
class _Entry:
    read: Read | None = None  # None while it is being opened
    users: int = 1
    resources: ExitStack = field(default_factory=ExitStack)
    lock: threading.Lock = field(default_factory=threading.Lock)


class OpenSources:
    """At most `capacity` sources are open at once, each used by any number of threads, a thread using one at a time.

    `open_one(number, resources)` opens source `number`, enters whatever must be closed later into `resources`,
    and returns what reads a slice of it. `capacity` must not be below the number of threads.
    """

    def __init__(self, open_one: Callable[[int, ExitStack], Read], capacity: int) -> None:
        self._open_one, self._capacity = open_one, capacity
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # the one used longest ago first
        self._changed = threading.Condition()

    @contextmanager
    def use(self, number: int) -> Iterator[Read]:
        """What reads the slices of a source, one thread at a time. Raises what opening and reading raise."""
        entry = self._acquire(number)
        try:
            yield lambda index: self._read(entry, index)
        finally:
            with self._changed:
                entry.users -= 1

    def close(self) -> None:
        """Close what is open; nothing may be in use."""
        with self._changed:
            entries, self._entries = list(self._entries.values()), OrderedDict()
        for entry in entries:
            entry.resources.close()

    def _read(self, entry: _Entry, index: int) -> np.ndarray:
        assert entry.read
        with entry.lock:  # formats keep what they transformed last, and are not made for threads
            return entry.read(index)

    def _acquire(self, number: int) -> _Entry:
        with self._changed:
            while (entry := self._entries.get(number)) is not None:
                if entry.read:
                    entry.users += 1
                    self._entries.move_to_end(number)
                    return entry
                self._changed.wait()
            entry = self._entries[number] = _Entry()
            idle = [key for key, other in self._entries.items() if not other.users]
            evicted = [self._entries.pop(key) for key in idle[: max(0, len(self._entries) - self._capacity)]]
        for other in evicted:
            other.resources.close()
        try:
            entry.read = self._open_one(number, entry.resources)
        except BaseException:
            with self._changed:
                del self._entries[number]
            entry.resources.close()
            raise
        finally:
            with self._changed:
                self._changed.notify_all()
        return entry
