"""One process at a time drives a run: numbered leases in its folder, made by create-if-absent alone.

    lease/00000007.json   host, process, since when, last renewed, and whether it was let go

The highest number counts. Its owner renews it every third of its time to live, and marks it when it lets go. Only lower
ones are removed, so numbers grow for ever. Who takes over makes the next number, which the store grants to one of many.

Whether an owner is dead is seen, not computed: on its own machine its process is looked up, elsewhere its lease is
watched for one time to live without a renewal. Clocks are believed only for a lease that ran out half an hour ago: S3
refuses signatures that are 15 minutes off its own clock, so no two clients are further apart.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from larmor.storage.objects.conditional_writes import check_conditional_writes
from larmor.storage.objects.errors import InputError
from larmor.storage.objects.object_store import ObjectStore
from larmor.storage.objects.store_errors import StoreAway

TIME_TO_LIVE = 60.0  # seconds
_CLOCKS_APART = 1800.0
_FOLDER = "lease"
_LOG = logging.getLogger(__name__)

Say = Callable[[str], None]


class LeaseLost(InputError):
    """Another process drives the run now; what this one would still write must not count."""


@dataclass(frozen=True)
class Owner:
    """A process, and enough of its surroundings to know whether its number means anything here."""

    host: str
    system: str  # boot and process namespace: containers of one machine count processes on their own
    pid: int
    began: float

    @staticmethod
    def this_process() -> Owner:
        return Owner(socket.gethostname(), _system(), os.getpid(), psutil.Process().create_time())

    def is_alive(self, seen_from: Owner) -> bool | None:
        """None if it cannot be known from there."""
        if (self.host, self.system) != (seen_from.host, seen_from.system):
            return None
        try:
            process = psutil.Process(self.pid)
            if process.status() == psutil.STATUS_ZOMBIE:
                return False
            # a clock that was set shifts the time at which processes seem to have begun: that is no proof of death
            return True if abs(process.create_time() - self.began) < 1 else None
        except psutil.NoSuchProcess:
            return False
        except psutil.AccessDenied:
            return None


@dataclass(frozen=True)
class Lease:
    """What one lease object says; times in seconds since 1970, by the owner's clock."""

    number: int
    owner: Owner
    began: float
    renewed: float
    time_to_live: float
    released: bool = False

    @property
    def path(self) -> str:
        return f"{_FOLDER}/{self.number:08d}.json"

    def to_bytes(self) -> bytes:
        return json.dumps(dataclasses.asdict(self), indent=1).encode()

    def describe(self) -> str:
        """Who, where, since when."""
        return f"process {self.owner.pid} on {self.owner.host}, since {_clock(self.began)}"


def newest(store: ObjectStore) -> Lease | None:
    """The lease that counts. Raises `InputError` if it cannot be read."""
    while True:
        number = _highest(store)
        if number == 0:
            return None
        path = f"{_FOLDER}/{number:08d}.json"
        try:
            content = json.loads(store.read(path))
            return Lease(**{**content, "owner": Owner(**content["owner"])})
        except FileNotFoundError:
            continue  # a newer one has come, and this one was removed
        except (ValueError, TypeError, KeyError) as error:
            raise InputError(
                f"{store.url}/{path}: is not a lease of Larmor; remove it if nothing writes to this folder"
            ) from error


def check_lease(store: ObjectStore, number: int) -> None:
    """Raises `LeaseLost` if a higher lease than `number` is there."""
    if _highest(store) > number:
        other = newest(store)
        raise LeaseLost(
            f"{store.url}: another process has taken it over ({other.describe() if other else 'unknown'}), so this one "
            f"stops; this happens to a process that was suspended, or cut off from the store, for {TIME_TO_LIVE:.0f} "
            "s; "
            "earlier checkpoints are kept"
        )


def refuse_if_held(store: ObjectStore) -> None:
    """Raises `InputError` if a process that is known to live holds the lease."""
    lease = newest(store)
    if lease and not lease.released and lease.owner.is_alive(Owner.this_process()):
        raise _held(store, lease)


def delete_all_but_lease(store: ObjectStore, guard: Callable[[], None]) -> None:
    """Empty a folder while this process holds its lease, as `guard` sees; what comes meanwhile stays."""
    found = [path for path in store.list(unfinished=True) if not path.startswith(f"{_FOLDER}/")]
    guard()
    store.remove(found, guard)


@contextlib.contextmanager
def hold(store: ObjectStore, say: Say, seconds: float = TIME_TO_LIVE, me: Owner | None = None) -> Iterator[int]:
    """Hold the lease of a folder while the block runs; gives its number. `say` is told if that takes waiting.

    Raises `InputError` if another process has it, or the store would give it to several.
    """
    check_conditional_writes(store, f"{_FOLDER}/probe-{uuid.uuid4().hex}")
    lease = _acquire(store, me or Owner.this_process(), seconds, say)
    end = threading.Event()
    thread = threading.Thread(target=_keep, args=(store, lease, end), name="larmor-lease", daemon=True)
    thread.start()
    away = False
    try:
        yield lease.number
    except StoreAway:
        away = True  # the lease runs out by itself
        raise
    finally:
        end.set()
        thread.join(timeout=seconds / 3)
        if not away and not thread.is_alive():
            _release(store, lease)


def _acquire(store: ObjectStore, me: Owner, seconds: float, say: Say) -> Lease:
    while True:
        lease = newest(store)
        if lease and not lease.released:
            alive = lease.owner.is_alive(me)
            if alive:
                raise _held(store, lease)
            out = lease.renewed + lease.time_to_live + _CLOCKS_APART < time.time()
            if alive is None and not out and not _is_silent(store, lease, say):
                continue
        now = time.time()
        mine = Lease(lease.number + 1 if lease else 1, me, now, now, seconds)
        if not store.create(mine.path, mine.to_bytes()):
            continue
        if _highest(store) > mine.number:  # others took turns since we looked, and cleaned up
            store.delete(mine.path)
            continue
        for number in _numbers(store):
            if number < mine.number:
                store.delete(f"{_FOLDER}/{number:08d}.json")
        return mine


def _is_silent(store: ObjectStore, lease: Lease, say: Say) -> bool:
    """Watch a lease for its time to live: True if nothing happened to it, False if it was let go or replaced.

    Raises `InputError` if it was renewed.
    """
    say(
        f"{store.url}: {lease.describe()}, holds its lease, last renewed at {_clock(lease.renewed)}; waiting up to "
        f"{lease.time_to_live:.0f} s to see whether that process is still alive"
    )
    pause, watched = lease.time_to_live / 30, 0.0
    while watched < lease.time_to_live:
        began = time.monotonic()
        time.sleep(pause)
        seen = newest(store)
        if seen is None or seen.number != lease.number or seen.released:
            return False
        if seen.renewed != lease.renewed:
            raise _held(store, seen)
        # while the store is away its owner cannot renew it either
        watched += min(time.monotonic() - began, 2 * pause)
    return True


def _keep(store: ObjectStore, lease: Lease, end: threading.Event) -> None:
    while not end.wait(lease.time_to_live / 3):
        try:
            check_lease(store, lease.number)
            store.write(lease.path, dataclasses.replace(lease, renewed=time.time()).to_bytes())
        except LeaseLost as error:
            _LOG.warning("%s", error)  # whatever this process writes next is refused
            return
        except (InputError, OSError) as error:
            _LOG.warning("%s/%s: not renewed (%s)", store.url, lease.path, error)


def _release(store: ObjectStore, lease: Lease) -> None:
    try:
        if _highest(store) == lease.number:
            store.write(lease.path, dataclasses.replace(lease, renewed=time.time(), released=True).to_bytes())
    except (InputError, OSError) as error:
        _LOG.warning("%s/%s: not released, it expires by itself (%s)", store.url, lease.path, error)


def _numbers(store: ObjectStore) -> list[int]:
    stems = [Path(path).stem for path in store.list(_FOLDER)]
    return sorted(int(stem) for stem in stems if stem.isdecimal())


def _highest(store: ObjectStore) -> int:
    return max(_numbers(store), default=0)


def _held(store: ObjectStore, lease: Lease) -> InputError:
    return InputError(
        f"{store.url}: {lease.describe()}, is writing to it (its lease runs until "
        f"{_clock(lease.renewed + lease.time_to_live)} and is renewed while it lives); wait for it, stop it, or choose "
        "another name=…"
    )


def _clock(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))


def _system() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return f"booted {psutil.boot_time():.0f}"
