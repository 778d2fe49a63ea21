"""Memory that is used again: touching fresh pages costs more than everything else a reader does with the bytes."""

from __future__ import annotations

import mmap
import threading
import weakref

import numpy as np

_STEP = 2**16
_SMALLEST = 2**16  # below that the allocator is as good
_HUGE_PAGE = 2**21


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
            memory = fresh_memory(size)
        # an array over a memoryview: every view of it refers to it, so it ends after the last of them
        array = np.frombuffer(memory.data, np.uint8, num_bytes)
        weakref.finalize(array, self._take_back, memory).atexit = False
        return array

    def _take_back(self, memory: np.ndarray) -> None:
        with self._lock:
            if self._idle_bytes + memory.nbytes <= self._max_idle:
                self._idle.setdefault(memory.nbytes, []).append(memory)
                self._idle_bytes += memory.nbytes


def fresh_memory(size: int) -> np.ndarray:
    """(size,) uint8, in huge pages where the system has them: one page fault for 2 MiB instead of 512.

    NumPy asks for them too, but within malloc's memory, which begins where it likes: hardly any page is whole there.
    """
    whole = size // _HUGE_PAGE * _HUGE_PAGE
    if not whole or not hasattr(mmap, "MADV_HUGEPAGE"):
        return np.empty(size, np.uint8)
    # Linux aligns a mapping of whole huge pages; what is too much is given back before anything touches it
    memory = mmap.mmap(-1, -(-size // _HUGE_PAGE) * _HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE, 0, whole)
    memory.resize(size)
    return np.frombuffer(memory, np.uint8)
