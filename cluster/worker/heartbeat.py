"""Where each rank of a run is: one small object per rank in the run's folder, and who keeps the others waiting.

    heartbeats/rank-0001.json   step, phase, seconds in it, host, process; `turn` counts the phases of the step before
                                this one, `count` grows with every heartbeat, `moves` with every sign of work

Nothing here compares clocks of two machines: what does not change between two readings stands still.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from larmor.recon.training.step_clock import PHASES
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.parallel import run_in_threads

_THREADS = 16  # 512 heartbeats take a second, not the half minute of one after another
START = "start"  # the phase before the first of `PHASES`


@dataclass(frozen=True)
class Heartbeat:
    """One rank at one moment. `step` counts finished steps, `turn` the changes of phase since the last of them."""

    rank: int
    step: int
    phase: str
    turn: int
    seconds: float
    moves: int
    count: int
    host: str
    pid: int

    @property
    def place(self) -> tuple[int, int]:
        """How far the rank is. All ranks enter the same phases in the same order, some more than once in a step."""
        return self.step, self.turn

    def describe(self) -> str:
        return f"rank {self.rank} (process {self.pid} on {self.host})"


class Place:
    """Where this rank is: told by the training's thread, read by the watchdog's."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._step, self._phase, self._turn, self._moves = 0, START, 0, 0
        self._since = self._moved = time.monotonic()

    def at(self, step: int, phase: str) -> None:
        """The rank works: on `phase` of the step after `step`."""
        with self._lock:
            self._moved = time.monotonic()
            if (step, phase) != (self._step, self._phase):
                self._since = self._moved
                self._turn = self._turn + 1 if step == self._step else 0
            self._step, self._phase, self._moves = step, phase, self._moves + 1

    def excuse(self) -> None:
        """Time up to now does not count as standing still."""
        with self._lock:
            self._moved = time.monotonic()

    @property
    def idle_seconds(self) -> float:
        """How long nothing has moved."""
        return time.monotonic() - self._moved

    @property
    def step(self) -> int:
        """Steps that are done."""
        return self._step

    @property
    def moves(self) -> int:
        return self._moves

    @property
    def is_first_step(self) -> bool:
        """Whether nothing but starting and one step has been seen: compilers take their time then."""
        return self._phase == START or self._moves < 2 * len(PHASES)

    def heartbeat(self, rank: int, count: int) -> Heartbeat:
        with self._lock:
            seconds = round(time.monotonic() - self._since, 1)
            place = self._step, self._phase, self._turn
            return Heartbeat(rank, *place, seconds, self._moves, count, socket.gethostname(), os.getpid())


def write_heartbeat(store: ObjectStore, beat: Heartbeat) -> None:
    store.write(_path(beat.rank), json.dumps(asdict(beat)).encode())


def read_heartbeats(store: ObjectStore, world_size: int) -> dict[int, Heartbeat]:
    """The newest heartbeat of each rank that has written one."""

    def read(rank: int) -> Heartbeat | None:
        try:
            return Heartbeat(**json.loads(store.read(_path(rank))))
        except (FileNotFoundError, ValueError, TypeError):
            return None

    found = run_in_threads(read, range(world_size), _THREADS)
    return {rank: beat for rank, beat in enumerate(found) if beat is not None}


def explain_hang(before: Mapping[int, Heartbeat], now: Mapping[int, Heartbeat], me: int, world_size: int) -> str | None:
    """Who keeps the others waiting, from two readings; None if somebody still moves.

    First those whose heartbeat stands still (frozen, or gone), then those who are behind the others.
    """
    if any(rank in before and before[rank].moves != beat.moves for rank, beat in now.items()):
        return None
    frozen = [rank for rank in range(world_size) if rank != me and not _beats(before.get(rank), now.get(rank))]
    if frozen:
        named = [now[rank].describe() if rank in now else f"rank {rank}" for rank in frozen]
        return f"{', '.join(named)}: no sign of life; frozen, gone, or cut off from the object store"
    furthest = max(beat.place for beat in now.values())
    behind = [beat for beat in now.values() if beat.place < furthest]
    if behind:
        places = [f"{beat.describe()}, in {beat.phase} after step {beat.step}" for beat in behind]
        ahead = next(beat for beat in now.values() if beat.place == furthest)
        return f"{'; '.join(places)}: the others wait for it in {ahead.phase} after step {ahead.step}"
    beat = now[me]
    if world_size == 1:
        return f"{beat.describe()} stands still in {beat.phase} after step {beat.step}"
    return (
        f"all {world_size} ranks wait for each other in {beat.phase} after step {beat.step}: a collective is stuck, "
        "look at the network between their hosts"
    )


def _beats(before: Heartbeat | None, now: Heartbeat | None) -> bool:
    return now is not None and (before is None or (before.pid, before.count) != (now.pid, now.count))


def _path(rank: int) -> str:
    return f"heartbeats/rank-{rank:04d}.json"
