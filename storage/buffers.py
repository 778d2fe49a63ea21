"""Memory that is used again: touching fresh pages costs more than everything else a reader does with the bytes."""

from __future__ import annotations

import threading
import weakref

import numpy as np

_STEP = 2**16
_SMALLEST = 2**16  # below that the allocator is as good


class Recycler:
    """Arrays whose memory goes back here when the last view of them is gone. Safe to share by threads.

    At most `max_idle_bytes` wait to be used again; more is given back to the system.
    """

    def __init__(self, max_idle_bytes: int) -> None:
        self._max_idle, self._idle_bytes = max_idle_bytes, 0
        self._idle: dict[int, list[np.ndarray]] = {}
        # taken again by a thread that holds it if the collector ends an array in between
        self._lock = threading.RLock()

    def empty(self, num_bytes: int) -> np.ndarray:
        """(num_bytes,) uint8, contents arbitrary."""
        if num_bytes < _SMALLEST:
            return np.empty(num_bytes, np.uint8)
        size = -(-num_bytes // _STEP) * _STEP
        with self._lock:
            waiting = self._idle.get(size)
            memory = waiting.pop() if waiting else None
            self._idle_bytes -= size if memory is not None else 0
        if memory is None:
            memory = np.empty(size, np.uint8)
        # an array over a memoryview: every view of it refers to it, so it ends after the last of them
        array = np.frombuffer(memory.data, np.uint8, num_bytes)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: np.ndarray) -> None:
        with self._lock:
            if self._idle_bytes + memory.nbytes <= self._max_idle:
                self._idle.setdefault(memory.nbytes, []).append(memory)
                self._idle_bytes += memory.nbytes
