"""A thread beside each rank's training: heartbeats, orders to stop, and an end to what hangs."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from larmor.cluster.worker.heartbeat import Heartbeat, Place, explain_hang, read_heartbeats, write_heartbeat
from larmor.cluster.worker.stopping import StopRequest, stop_order
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore

EXIT_CODE = 75  # temporary failure: whoever started the process may start it again
_LOOK_SECONDS = 2.0
_FIRST_STEP = 3  # times the limit, for compilers and cold caches


def _end_process(reason: str) -> None:
    """At once: a thread that waits in a collective cannot be stopped, and would keep the process."""
    print(f"larmor: {reason}", file=sys.stderr, flush=True)
    os._exit(EXIT_CODE)


class Watchdog:
    """Watches one rank while the `with` block runs.

    When nothing has moved here for almost `hang_seconds`, and nowhere else either, it says in the run's folder and on
    stderr who keeps the others waiting, and ends the process, so that the training is started again. While the store
    is away nobody is accused: waiting for it is limited elsewhere.
    """

    def __init__(
        self,
        store: ObjectStore,
        rank: int,
        world_size: int,
        progress: Place,
        request: StopRequest,
        hang_seconds: float,
        give_up: Callable[[str], None] = _end_process,
    ) -> None:
        self._store, self._rank, self._world_size = store, rank, world_size
        self._progress, self._request, self._give_up = progress, request, give_up
        self._interval = min(30.0, hang_seconds / 20)
        self._limit = hang_seconds - 4 * self._interval  # what finding out takes
        self._hang_seconds = hang_seconds
        self._count = 0
        self._next_beat = 0.0
        self._suspicion: tuple[float, int, dict[int, Heartbeat]] | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="larmor-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._progress.excuse()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end.set()
        self._thread.join(timeout=10)

    def _loop(self) -> None:
        pause = min(_LOOK_SECONDS, self._interval)
        while True:
            try:
                self._look()
            except (InputError, OSError):
                self._progress.excuse()
                self._suspicion = None
            if self._end.wait(pause):
                return

    def _look(self) -> None:
        if self._rank == 0 and self._request.reason is None and (reason := stop_order(self._store)):
            self._request.ask(reason)
        if time.monotonic() >= self._next_beat:
            self._count += 1
            write_heartbeat(self._store, self._progress.heartbeat(self._rank, self._count))
            self._next_beat = time.monotonic() + self._interval
        limit = self._limit * (_FIRST_STEP if self._progress.is_first_step else 1)
        if self._progress.idle_seconds < limit:
            self._suspicion = None
        elif self._suspicion is None or self._suspicion[1] != self._progress.moves:
            readings = read_heartbeats(self._store, self._world_size)
            self._suspicion = (time.monotonic(), self._progress.moves, readings)
        elif time.monotonic() - self._suspicion[0] > 2.5 * self._interval:
            self._decide(self._suspicion[2])

    def _decide(self, before: dict[int, Heartbeat]) -> None:
        now = read_heartbeats(self._store, self._world_size)
        self._suspicion = None
        problem = explain_hang(before, now, self._rank, self._world_size)
        if problem is None or self._end.is_set():
            return
        step = now[self._rank].step
        reason = (
            f"the training hangs after step {step}: {problem} (no progress for {self._progress.idle_seconds:.0f} "
            f"s; cluster.hang_seconds={self._hang_seconds:g})"
        )
        try:
            self._store.write(f"warnings/hang-{step:08d}-rank-{self._rank:04d}.txt", reason.encode())
        finally:
            self._give_up(reason)
