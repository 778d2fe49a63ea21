"""Encoded slices on a local disk, so that epochs after the first do not touch the network."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path

_SLICES_PER_FOLDER = 1000
_IDENTITY = re.compile(r"[0-9a-f]{32}")
_STALE_SECONDS = 3600.0
_LEAST_FREE = 0.05  # part of the disk that is left to others


class DiskCache:
    """A folder of at most `max_bytes`, shared by the workers of a machine; one file for each slice.

    Workers measure what others add now and then only: each but one may exceed the bound by a fiftieth.
    Files appear whole (written beside, then renamed) and carry the slice's own CRC-32C, which the reader
    checks: a damaged file is discarded and fetched again. Every data set has a folder named by its content;
    folders of other data sets are removed when room is needed, the one that was opened longest ago first.
    When there is room for no more, what is there stays: each epoch reads every slice once, so throwing out
    slices for others would only cost. A disk that is almost full stops the cache from growing, never the training.
    """

    def __init__(self, folder: Path, max_bytes: int, identity: str, split: str) -> None:
        self._root, self._max_bytes = folder, max_bytes
        self._own = folder / identity[:32]
        self._folder = self._own / split
        self._lock = threading.Lock()
        self._added = self._pending = 0
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.utime(self._own)
        self._used, self._full = self._measure(), self._is_disk_full()

    def get(self, index: int, into: Sequence[memoryview]) -> bool:
        """Read an encoded slice into the parts, one after another, if it is there and fills them exactly."""
        try:
            with self._file(index).open("rb", buffering=0) as file:
                return all(file.readinto(part) == len(part) for part in into) and not file.read(1)
        except OSError:  # not there, or the disk has failed: the store has it
            return False

    def put(self, index: int, parts: Sequence[memoryview]) -> None:
        """Keep an encoded slice, given in parts, if there is room."""
        num_bytes = sum(map(len, parts))
        target = self._file(index)
        partial = target.with_name(f"{target.name}.partial-{uuid.uuid4().hex[:8]}")
        has_room = False
        try:
            has_room = self._room_for(num_bytes)
            if has_room:
                target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)  # again, if another worker evicted it
                with partial.open("wb") as file:
                    file.writelines(parts)
                partial.replace(target)
        except OSError:  # no space left, a quota, or somebody removed the folder: continue without
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            self._full = True
        finally:
            with self._lock:
                self._pending -= num_bytes if has_room else 0

    def discard(self, index: int) -> None:
        """Remove a damaged slice."""
        with contextlib.suppress(OSError):
            self._file(index).unlink(missing_ok=True)

    def _file(self, index: int) -> Path:
        return self._folder / str(index // _SLICES_PER_FOLDER) / str(index)

    def _room_for(self, num_bytes: int) -> bool:
        with self._lock:
            if self._full:
                return False
            # other workers add files too: measure again before they and we could overshoot by much
            if self._added > self._max_bytes // 50 or self._used + num_bytes > self._max_bytes:
                self._used, self._added = self._measure() + self._pending, 0
                self._full = self._is_disk_full()
            if self._used + num_bytes > self._max_bytes:
                self._evict(num_bytes)
            if self._full or self._used + num_bytes > self._max_bytes:
                self._full = True
                return False
            self._used += num_bytes
            self._added += num_bytes
            self._pending += num_bytes
            return True

    def _is_disk_full(self) -> bool:
        disk = shutil.disk_usage(self._root)
        return disk.free < _LEAST_FREE * disk.total

    def _evict(self, num_bytes: int) -> None:
        others = [path for path in self._data_sets() if path != self._own]
        for path in sorted(others, key=lambda path: path.stat().st_mtime):
            if self._used + num_bytes <= self._max_bytes:
                return
            shutil.rmtree(path, ignore_errors=True)
            self._used = self._measure() + self._pending

    def _data_sets(self) -> list[Path]:
        """The folders that a cache has made: a user may have named a folder that holds other things too."""
        return [path for path in self._root.iterdir() if _IDENTITY.fullmatch(path.name) and not path.is_symlink()]

    def _measure(self) -> int:
        return sum(size for path in self._data_sets() for size in _sizes(path))


def _sizes(folder: Path) -> Iterator[int]:
    """Bytes of every file below `folder`; removes what a killed worker left half-written."""
    for path, _, names in os.walk(folder):
        for name in names:
            file = Path(path) / name
            with contextlib.suppress(FileNotFoundError):
                status = file.stat()
                if ".partial-" in name and time.time() - status.st_mtime > _STALE_SECONDS:
                    file.unlink()
                else:
                    yield status.st_size
